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
from rightbatch.plan.transformer_memory import (
    OPTIMIZER_STATES,
    PRECISIONS,
    Precision,
    TransformerMemory,
    estimate_transformer_memory,
)


def gpt(**changes: Any) -> TransformerConfig:
    values: dict[str, Any] = {
        "hidden_size": 64,
        "num_layers": 3,
        "num_heads": 4,
        "num_kv_heads": 4,
        "head_size": 16,
        "ff_size": 256,
        "vocab_size": 100,
        "positions": 512,
        "tied": True,
        "fused_qkv": True,
        "dropout": 0.1,
        "attention_dropout": 0.1,
    }
    return TransformerConfig(**(values | changes))


def estimate(config: TransformerConfig | None = None, **changes: Any) -> TransformerMemory:
    values: dict[str, Any] = {"batch_size": 8, "sequence_length": 128}
    return estimate_transformer_memory(config or gpt(), **(values | changes))


@given(
    batch=st.integers(1, 64),
    length=st.integers(1, 512),
    heads=st.integers(1, 8),
    size=st.integers(1, 32),
)
def test_a_layer_of_gpt_keeps_what_the_literature_says(
    batch: int, length: int, heads: int, size: int
) -> None:
    h = heads * size
    config = gpt(hidden_size=h, num_heads=heads, num_kv_heads=heads, head_size=size, ff_size=4 * h)
    sizes = {"batch_size": batch, "sequence_length": length, "flash_attention": False}
    half = estimate(config, precision="bf16-pure", **sizes).layer_activations
    assert half == batch * length * (34 * h + 5 * heads * length)  # Korthikanti et al., Eq. 1
    full = estimate(config, precision="fp32", **sizes).layer_activations
    assert full == batch * length * (66 * h + 9 * heads * length)
    fused = estimate(config, precision="bf16-pure", **(sizes | {"flash_attention": True}))
    assert fused.layer_activations == batch * length * (34 * h + 4 * heads)


@pytest.mark.parametrize(
    ("optimizer", "precision", "bytes_per_parameter"),
    [
        ("adamw", "fp32", 16),
        ("sgd", "fp32", 8),
        ("sgd-momentum", "fp32", 12),
        ("adamw", "bf16", 16),
        ("adamw", "bf16-pure", 8),
    ],
)
def test_bytes_per_parameter_are_the_known_ones(
    optimizer: str, precision: str, bytes_per_parameter: int
) -> None:
    memory = estimate(optimizer=optimizer, precision=precision)
    total = memory.parameters + memory.gradients + memory.optimizer_state
    assert total == bytes_per_parameter * sum(count_parameters(gpt()).values())


@given(
    batch=st.integers(1, 100),
    precision=st.sampled_from(PRECISIONS),
    optimizer=st.sampled_from(sorted(OPTIMIZER_STATES)),
    checkpointing=st.booleans(),
    flash=st.booleans(),
    gated=st.booleans(),
)
def test_more_examples_never_take_less(
    batch: int, precision: str, optimizer: str, checkpointing: bool, flash: bool, gated: bool
) -> None:
    options: dict[str, Any] = {
        "precision": precision,
        "optimizer": optimizer,
        "checkpointing": checkpointing,
        "flash_attention": flash,
    }
    config = gpt(gated=gated)
    one, more = (estimate(config, batch_size=b, **options).peak_bytes for b in (batch, batch + 1))
    assert 0 < one <= more


def test_checkpointing_keeps_one_input_per_layer_and_one_layer() -> None:
    plain, checkpointed = estimate(), estimate(checkpointing=True)
    boundary = 8 * 128 * 64 * 4
    assert plain.activations - checkpointed.activations == 3 * (plain.layer_activations - boundary)
    assert checkpointed.recomputed == plain.layer_activations
    assert checkpointed.peak_bytes < plain.peak_bytes


def test_each_option_adds_what_it_holds() -> None:
    weights = estimate().parameters
    assert estimate(num_replicas=8).peak_bytes == estimate().peak_bytes + weights
    assert estimate(averaged=True).peak_bytes == estimate().peak_bytes + weights
    wordy = gpt(vocab_size=2000)
    summed = estimate(wordy, accumulation_steps=2)
    assert summed.peak_bytes == estimate(wordy).peak_bytes + summed.gradients
    small = {"batch_size": 1, "sequence_length": 1}
    assert estimate(**small).peak_at == "optimizer"
    assert estimate(**small).optimizer_temporaries == weights
    assert estimate(**small, foreach=False).optimizer_temporaries == 2 * 4 * 64 * 256


def test_a_model_without_a_language_head_has_no_logits() -> None:
    memory = estimate(gpt(head="pooler", causal=False))
    assert (memory.logits, memory.first_gradients) == (0, 0)
    assert estimate().logits == 3 * 4 * 8 * 128 * 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0; need at least 1"),
        ({"sequence_length": 513}, "513 tokens; need at most the model's 512 positions"),
        ({"optimizer": "adamv"}, r"optimizer 'adamv'.*\n  hint: did you mean `adam`"),
        ({"precision": "fp16"}, r"precision 'fp16'.*\n  hint: "),
        ({"accumulation_steps": 0}, "accumulation_steps = 0"),
        ({"num_replicas": 0}, "num_replicas = 0"),
    ],
)
def test_what_no_step_has_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        estimate(**change)


@given(
    batch=st.integers(1, 512),
    precision=st.sampled_from(PRECISIONS),
    checkpointing=st.booleans(),
    accumulation=st.integers(1, 2),
    num_layers=st.integers(1, 5),
)
def test_the_parts_that_live_at_the_peak_add_up_to_it(
    batch: int, precision: Precision, checkpointing: bool, accumulation: int, num_layers: int
) -> None:
    found = estimate(
        gpt(num_layers=num_layers),
        batch_size=batch,
        precision=precision,
        checkpointing=checkpointing,
        accumulation_steps=accumulation,
    )
    assert sum(found.breakdown().values()) == found.peak_bytes
    assert found.breakdown()["parameters"] == found.parameters
    assert ("logits" in found.breakdown()) <= (found.peak_at == "backward")


def test_a_file_and_what_it_holds_give_the_same(tmp_path: Path) -> None:
    values = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 50}
    values |= {"n_positions": 32, "activation_function": "gelu_new"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    sizes = {"batch_size": 2, "sequence_length": 16}
    found = estimate_transformer_memory(values, **sizes)
    assert found == estimate_transformer_memory(path, **sizes)
    assert found == estimate_transformer_memory(str(path), **sizes)
    assert found == estimate_transformer_memory(read_transformer_config(values), **sizes)
