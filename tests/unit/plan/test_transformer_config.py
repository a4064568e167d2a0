import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch.core.errors import InvalidInputError
from rightbatch.plan.transformer_config import (
    TransformerConfig,
    count_parameters,
    read_transformer_config,
)

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "float16",
}
GPT2: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_ctx": 1024,
    "n_positions": 1024,
    "vocab_size": 50257,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "summary_first_dropout": 0.1,
    "task_specific_params": {"text-generation": {"max_length": 50}},
}
BERT: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 8, "intermediate_size": 14336}
QWEN: dict[str, Any] = {**LLAMA, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}

# Totals as the models' cards and checkpoints have them.
KNOWN: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2": (GPT2, 124_439_808),
    "gpt2-medium": (GPT2 | {"n_embd": 1024, "n_layer": 24, "n_head": 16}, 354_823_168),
    "gpt2-xl": (GPT2 | {"n_embd": 1600, "n_layer": 48, "n_head": 25}, 1_557_611_200),
    "bert-base": (BERT, 109_482_240),
    "bert-base with its language model": (BERT | {"architectures": ["BertForMaskedLM"]}, 109_514_298),
    "bert-large": (
        BERT
        | {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
        | {"intermediate_size": 4096},
        335_141_888,
    ),
    "roberta-base": (
        BERT
        | {"model_type": "roberta", "vocab_size": 50265, "type_vocab_size": 1}
        | {"max_position_embeddings": 514},
        124_645_632,
    ),
    "llama-7b": (LLAMA, 6_738_415_616),
    "llama-2-70b": (
        LLAMA
        | {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64}
        | {"num_key_value_heads": 8, "intermediate_size": 28672},
        68_976_648_192,
    ),
    "llama-3-8b": (LLAMA | GROUPED | {"vocab_size": 128256}, 8_030_261_248),
    "mistral-7b": (LLAMA | GROUPED | {"model_type": "mistral", "sliding_window": 4096}, 7_241_732_096),
    "qwen2-0.5b": (
        QWEN
        | {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14}
        | {"num_key_value_heads": 2, "intermediate_size": 4864}
        | {"vocab_size": 151936, "tie_word_embeddings": True},
        494_032_768,
    ),
    "qwen2.5-7b": (
        QWEN
        | {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28}
        | {"num_key_value_heads": 4, "intermediate_size": 18944, "vocab_size": 152064},
        7_615_616_512,
    ),
    "qwen3-0.6b": (
        QWEN
        | {"model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28}
        | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
        | {"intermediate_size": 3072, "vocab_size": 151936, "tie_word_embeddings": True},
        596_049_920,
    ),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_models_have_their_known_parameters(name: str) -> None:
    config, total = KNOWN[name]
    assert sum(count_parameters(read_transformer_config(config)).values()) == total


def test_a_file_is_read_like_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(BERT), encoding="utf-8")
    config = read_transformer_config(path)
    assert config == read_transformer_config(BERT)
    assert (config.causal, config.head, config.dropout) == (False, "pooler", 0.1)


@given(
    layers=st.integers(1, 5),
    heads=st.integers(1, 4),
    groups=st.integers(1, 3),
    size=st.integers(1, 8),
    ff=st.integers(1, 40),
)
def test_grouped_queries_save_what_their_heads_do_not_have(
    layers: int, heads: int, groups: int, size: int, ff: int
) -> None:
    def total(kv_heads: int) -> int:
        config = LLAMA | {
            "hidden_size": heads * groups * size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads * groups,
            "num_key_value_heads": kv_heads,
            "intermediate_size": ff,
        }
        return sum(count_parameters(read_transformer_config(config)).values())

    hidden = heads * groups * size
    fewer = heads * (groups - 1)
    assert total(heads * groups) - total(heads) == layers * 2 * hidden * fewer * size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llamma"}, r"model_type 'llamma'.*\n  hint: did you mean `llama`"),
        ({"model_type": None}, r"model_type None"),
        ({"hidden_size": None}, r"no hidden_size; need the number hidden_size of a llama config"),
        ({"hidden_size": "4096"}, r"hidden_size = '4096'"),
        ({"num_local_experts": 8}, r"unknown size num_local_experts = 8 in a llama config"),
        ({"intermediate_sizes": 8}, r"\n  hint: did you mean `intermediate_size`"),
        ({"hidden_act": "swiglu"}, r"activation 'swiglu'.*\n  hint: "),
        ({"num_attention_heads": 33}, r"hidden size 4096 on 33 heads"),
        ({"num_key_value_heads": 5}, r"32 query heads on 5 key-value heads"),
        ({"num_hidden_layers": 0}, r"num_layers = 0; need at least 1"),
    ],
)
def test_what_would_give_a_wrong_count_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_transformer_config(LLAMA | change)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"absent\.json.*need a JSON file"):
        read_transformer_config(tmp_path / "absent.json")
    listed = tmp_path / "list.json"
    listed.write_text("[]", encoding="utf-8")
    with pytest.raises(InvalidInputError, match=r"holds no object"):
        read_transformer_config(listed)


def test_heads_may_be_wider_than_the_hidden_size() -> None:
    config = read_transformer_config(LLAMA | {"head_dim": 256, "num_attention_heads": 33})
    assert isinstance(config, TransformerConfig)
    assert config.query_size == 33 * 256
