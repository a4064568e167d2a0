"""The shape of a transformer, read from a Hugging Face ``config.json``, and its parameter count.

Families: decoders of the Llama kind (llama, mistral, qwen2, qwen3), gpt2, and encoders of the BERT
kind (bert, roberta). A size that such a file names and that is not known here is refused rather
than ignored: it would change the count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from rightbatch.core.errors import InvalidInputError, did_you_mean

Head = Literal["language_model", "pooler", "none"]

# Tensors that an activation function keeps for backward, beside its output. ``gelu_new`` is composed
# of Python operators in transformers: it keeps its input, tanh, the halved input and 1 + tanh.
ACTIVATIONS = {"relu": 0, "gelu": 1, "gelu_pytorch_tanh": 1, "silu": 1, "swish": 1, "gelu_new": 4}

_LLAMA = {
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "ff_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "activation": "hidden_act",
}
_BERT = _LLAMA | {
    "positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
}
_GPT2 = {
    "hidden_size": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "vocab_size": "vocab_size",
    "positions": "n_positions",
    "dropout": "resid_pdrop",
    "attention_dropout": "attn_pdrop",
    "activation": "activation_function",
}
_GATED = {"llama", "mistral", "qwen2", "qwen3"}
_NAMES = dict.fromkeys(sorted(_GATED), _LLAMA) | {"gpt2": _GPT2, "bert": _BERT, "roberta": _BERT}

# Integers of a config that hold a size but change neither parameters nor saved tensors here.
_HARMLESS = re.compile(
    r".*_ids?|n_ctx|num_labels|num_beams|num_beam_groups|num_return_sequences|max_length|min_length"
    r"|.*no_repeat_ngram_size|chunk_size_feed_forward|pretraining_tp|max_window_layers|sliding_window"
    r"|max_position_embeddings|original_max_position_embeddings|top_k|summary_.*|problem_type"
)
_LOOKS_LIKE_A_SIZE = re.compile(r".*(size|dim|rank|layers?|heads?|experts?|n_|num_|vocab|inner).*")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Sizes and options that parameters and activations depend on."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    ff_size: int
    vocab_size: int
    positions: int = 0
    """Rows of learned position embeddings; 0 where positions are rotary."""
    token_types: int = 0
    gated: bool = False
    """SwiGLU and RMSNorm without biases, as in Llama; else an MLP and LayerNorm with biases."""
    qkv_bias: bool = True
    output_bias: bool = True
    mlp_bias: bool = True
    qk_norm: bool = False
    fused_qkv: bool = False
    """Whether queries, keys and values come from one matrix."""
    causal: bool = True
    tied: bool = False
    """Whether the output layer shares the embedding's weights."""
    head: Head = "language_model"
    activation: str = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse sizes that no model has.

        Raises:
            InvalidInputError: a size is not positive, heads don't divide, or a name is unknown.
        """
        for name in ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_size", "ff_size"):
            if getattr(self, name) < 1:
                raise InvalidInputError(
                    f"{name} = {getattr(self, name)}", need="at least 1", hint=f"change {name}"
                )
        if self.num_heads % self.num_kv_heads:
            found = f"{self.num_heads} query heads on {self.num_kv_heads} key-value heads"
            hint = "change num_key_value_heads"
            raise InvalidInputError(found, need="a whole number of queries per key", hint=hint)
        if self.activation not in ACTIVATIONS:
            hint = did_you_mean(self.activation, ACTIVATIONS)
            found = f"activation {self.activation!r}"
            raise InvalidInputError(found, need="one whose saved tensors are known", hint=hint)

    @property
    def query_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.num_kv_heads * self.head_size

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's matrices, without biases."""
        attention = self.hidden_size * (2 * self.query_size + 2 * self.kv_size)
        return attention + (3 if self.gated else 2) * self.hidden_size * self.ff_size


def read_transformer_config(source: Path | str | Mapping[str, Any]) -> TransformerConfig:
    """Read a ``config.json``, or what it holds.

    >>> read_transformer_config(
    ...     {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12,
    ...      "vocab_size": 50257, "n_positions": 1024, "activation_function": "gelu_new"}
    ... ).ff_size
    3072

    Raises:
        InvalidInputError: no such file, no JSON object, an unknown family, a missing or unknown size.
    """
    values = source if isinstance(source, Mapping) else _load(Path(source))
    family = values.get("model_type")
    if family not in _NAMES:
        hint = did_you_mean(str(family), _NAMES)
        need = "a family whose layers are known"
        raise InvalidInputError(f"model_type {family!r}", need=need, hint=hint)
    names = _NAMES[family]
    _refuse_unknown_sizes(values, family)
    shape: dict[str, Any] = {
        field: _number(values, name, family)
        for field, name in names.items()
        if field != "activation" and (name in values or "dropout" not in field)
    }
    hidden, heads = shape["hidden_size"], shape["num_heads"]
    options: dict[str, Any] = {
        "activation": values.get(names["activation"], "silu" if family in _GATED else "gelu_new"),
        "num_kv_heads": heads,
        "head_size": hidden // max(heads, 1),
        "head": _head(values, family),
        "tied": values.get("tie_word_embeddings", family not in _GATED),
    }
    if family in _GATED:
        options |= _gated_options(values, family, options)
    elif family == "gpt2":
        options |= {"ff_size": values.get("n_inner") or 4 * hidden, "fused_qkv": True}
    else:
        options |= {"causal": False}
    if "head_dim" not in values and hidden % max(heads, 1):
        found, hint = f"hidden size {hidden} on {heads} heads", "change the number of heads"
        raise InvalidInputError(found, need="a whole head size", hint=hint)
    return TransformerConfig(**(shape | options))


def count_parameters(config: TransformerConfig) -> dict[str, int]:
    """Parameters by part; a tied output layer counts once, under ``embeddings``.

    >>> gpt2 = TransformerConfig(
    ...     hidden_size=768, num_layers=12, num_heads=12, num_kv_heads=12, head_size=64, ff_size=3072,
    ...     vocab_size=50257, positions=1024, tied=True
    ... )
    >>> sum(count_parameters(gpt2).values())
    124439808
    """
    h, norm = config.hidden_size, config.hidden_size * (1 if config.gated else 2)
    biases = config.qkv_bias * (config.query_size + 2 * config.kv_size) + config.output_bias * h
    biases += config.mlp_bias * (h + (2 if config.gated else 1) * config.ff_size)
    layer = config.layer_weights + biases + 2 * norm + config.qk_norm * 2 * config.head_size
    rows = config.vocab_size + config.positions + config.token_types
    head = 0
    if config.head == "language_model":
        head = 0 if config.tied else config.vocab_size * h
        head += 0 if config.causal else h * h + h + norm + config.vocab_size
    elif config.head == "pooler":
        head = h * h + h
    return {
        "embeddings": rows * h,
        "layers": config.num_layers * layer,
        "norm": norm,  # the last one of a decoder, the first one of an encoder
        "head": head,
    }


def _load(path: Path) -> Mapping[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidInputError: there is none.
    """
    hint = "give the config.json of a Hugging Face model"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path}: {error}", need="a JSON file", hint=hint) from error
    if not isinstance(values, dict):
        raise InvalidInputError(f"{path} holds no object", need="a JSON object", hint=hint)
    return cast(dict[str, Any], values)


def _number(values: Mapping[str, Any], name: str, family: str) -> int | float:
    """A size as an integer, a dropout rate as any number.

    Raises:
        InvalidInputError: it is missing or something else.
    """
    value = values.get(name)
    kinds = (int, float) if "drop" in name else int
    if isinstance(value, bool) or not isinstance(value, kinds):
        found = f"no {name}" if value is None else f"{name} = {value!r}"
        need = f"the number {name} of a {family} config"
        raise InvalidInputError(found, need=need, hint=f'add "{name}": ...')
    return value


def _head(values: Mapping[str, Any], family: str) -> Head:
    """By the class that the file was saved from; without one, what the family is used for."""
    architectures: list[str] = values.get("architectures") or []
    name = architectures[0] if architectures else ""
    if name.endswith(("ForCausalLM", "LMHeadModel", "ForMaskedLM")):
        return "language_model"
    if not name and family not in ("bert", "roberta"):
        return "language_model"
    return "pooler" if family in ("bert", "roberta") else "none"


def _gated_options(
    values: Mapping[str, Any], family: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    attention_bias = bool(values.get("attention_bias", family == "qwen2"))
    return {
        "gated": True,
        "num_kv_heads": values.get("num_key_value_heads") or options["num_kv_heads"],
        "head_size": values.get("head_dim") or (128 if family == "qwen3" else options["head_size"]),
        "qkv_bias": attention_bias,
        "output_bias": attention_bias and family != "qwen2",
        "mlp_bias": bool(values.get("mlp_bias", False)),
        "qk_norm": family == "qwen3",
        "attention_dropout": values.get("attention_dropout", 0.0),
    }


def _refuse_unknown_sizes(values: Mapping[str, Any], family: str) -> None:
    """Stop at an integer that looks like a size and is none of this family's.

    Raises:
        InvalidInputError: there is one.
    """
    known = {*_NAMES[family].values(), "n_inner"} if family == "gpt2" else {*_NAMES[family].values()}
    known |= {"num_key_value_heads", "head_dim"} if family in _GATED else set()
    for name, value in values.items():
        if name in known or isinstance(value, bool) or not isinstance(value, int):
            continue
        if _LOOKS_LIKE_A_SIZE.fullmatch(name) and not _HARMLESS.fullmatch(name):
            found = f"unknown size {name} = {value} in a {family} config"
            raise InvalidInputError(found, need="sizes of this family", hint=did_you_mean(name, known))
