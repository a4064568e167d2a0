"""Training memory of a transformer from its shape alone: no code, no device, no tensors.

Notation of Korthikanti et al. (2022), arXiv:2205.05198, Sec. 4: s tokens per sequence, b sequences,
h hidden size, a heads, L layers. Their Eq. 1, sbh (34 + 5 as/h) bytes per layer in 16 bits, is the
sum over the tensors that backward needs; here the same sum is written by tensor, so that other
precisions, grouped-query attention, gated MLPs and fused attention follow. The peak is the largest
of four instants: backward of the loss, when every activation lives and no gradient does yet,
backward of the last and of the first layer, and the optimizer's step, when gradients live alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rightbatch.core.errors import InvalidInputError, did_you_mean
from rightbatch.plan.transformer_config import (
    ACTIVATIONS,
    TransformerConfig,
    count_parameters,
    read_transformer_config,
)

Precision = Literal["fp32", "bf16", "bf16-pure"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "bf16-pure")

ERROR_SHARES = {False: (-0.005, 0.005), True: (-0.04, 0.07)}
"""Least and most by which peaks missed traces of GPT-, BERT- and Llama-like models on emulated CUDA,
fp32 and autocast, fused attention or not; without and with checkpointing."""

# Numbers that an optimizer keeps per parameter, of the parameter's own type.
OPTIMIZER_STATES = {"adam": 2, "adamw": 2, "sgd": 0, "sgd-momentum": 1, "rmsprop": 1, "adagrad": 1}
# At the start of backward: log-probabilities, their gradient, and that of the logits, in fp32.
_LOGIT_COPIES = 3
_MASK_BYTES = 1  # of a dropout mask on CUDA
_INDEX_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerMemory:
    """Bytes by part; ``peak_bytes`` adds up those that live together."""

    parameters: int
    """Weights, at the precision they are kept in."""
    gradients: int
    first_gradients: int
    """Of them, those of the output layer, which are born first."""
    last_gradients: int
    """Of them, those of the first layer and what comes before it, which are born last."""
    optimizer_state: int
    averages: int
    """Averaged weights."""
    buckets: int
    """Second copy of the gradients that data-parallel replicas reduce."""
    casts: int
    """16-bit copies of fp32 weights, held from forward to backward."""
    layer_activations: int
    """What one layer needs for its backward."""
    activations: int
    """What all layers, the embedding and the last norm keep from forward to backward."""
    recomputed: int
    """``layer_activations`` with checkpointing, where they come on top; else 0."""
    layer_temporaries: int
    """What backward of one layer adds to its activations."""
    logits: int
    """Log-probabilities over the vocabulary, with gradients."""
    optimizer_temporaries: int
    inputs: int
    accumulates: bool
    """Whether gradients of earlier micro-batches live during forward."""

    @property
    def fixed_bytes(self) -> int:
        """What always lives, whatever the batch."""
        return self.parameters + self.optimizer_state + self.averages + self.buckets

    @property
    def backward_bytes(self) -> int:
        """Live at the largest instant of backward: the loss, the last layer, or the first."""
        return self.fixed_bytes + self.inputs + sum(self._backward().values())

    @property
    def optimizer_bytes(self) -> int:
        """Live during the optimizer's step."""
        return self.fixed_bytes + self.inputs + self.gradients + self.optimizer_temporaries

    @property
    def peak_bytes(self) -> int:
        """The larger of both."""
        return max(self.backward_bytes, self.optimizer_bytes)

    @property
    def peak_at(self) -> Literal["backward", "optimizer"]:
        """Which of both it is."""
        return "backward" if self.backward_bytes > self.optimizer_bytes else "optimizer"

    def breakdown(self) -> dict[str, int]:
        """Bytes by part at the peak; they sum to ``peak_bytes``, and parts of no bytes are left out."""
        always = {
            "parameters": self.parameters,
            "optimizer_state": self.optimizer_state,
            "averages": self.averages,
            "buckets": self.buckets,
            "inputs": self.inputs,
        }
        rest = {"gradients": self.gradients, "temporaries": self.optimizer_temporaries}
        if self.peak_at == "backward":
            rest = self._backward()
        return {name: amount for name, amount in (always | rest).items() if amount}

    def _backward(self) -> dict[str, int]:
        """What lives beside the fixed part at the largest instant of backward."""
        born = self.gradients if self.accumulates else 0
        kept = {"casts": self.casts, "activations": self.activations}
        at_loss = kept | {"logits": self.logits, "gradients": born}
        at_last = kept | {
            "recomputed": self.recomputed,
            "temporaries": self.layer_temporaries,
            "gradients": max(born, self.first_gradients),
        }
        at_first = {
            "activations": self.layer_activations,
            "temporaries": self.layer_temporaries,
            "gradients": max(born, self.gradients - self.last_gradients),
        }
        return max((at_loss, at_last, at_first), key=lambda parts: sum(parts.values()))


def estimate_transformer_memory(  # noqa: PLR0913 - each changes the sum, and all but two have defaults
    config: TransformerConfig | Mapping[str, Any] | Path | str,
    *,
    batch_size: int,
    sequence_length: int,
    optimizer: str = "adamw",
    precision: Precision = "fp32",
    checkpointing: bool = False,
    flash_attention: bool = True,
    foreach: bool = True,
    accumulation_steps: int = 1,
    num_replicas: int = 1,
    averaged: bool = False,
) -> TransformerMemory:
    """Estimate the tensor bytes of a training step on a CUDA device.

    Not in it: the allocator's rounding and fragmentation, the CUDA context, libraries' workspaces.

    Args:
        config: the model's shape: a Hugging Face ``config.json``, what it holds, or what
            ``read_transformer_config`` made of it.
        batch_size: sequences in each forward of one replica.
        sequence_length: tokens in each, padding included.
        optimizer: a name in ``OPTIMIZER_STATES``.
        precision: ``bf16`` is autocast, where weights, gradients and state stay fp32; ``bf16-pure``
            keeps all in 16 bits.
        checkpointing: every layer keeps its input alone and is run again in backward.
        flash_attention: attention without its matrix of scores.
        foreach: the optimizer works on all parameters at once, torch's default on CUDA.
        accumulation_steps: micro-batches per optimizer step.
        num_replicas: data-parallel devices.
        averaged: whether averaged weights are kept.

    Raises:
        InvalidInputError: the config is not readable, a name unknown, a count below 1, or the sequence
            too long for the model.
    """
    if not isinstance(config, TransformerConfig):
        config = read_transformer_config(config)
    _check(config, batch_size, sequence_length, optimizer, precision)
    _check_counts(accumulation_steps=accumulation_steps, num_replicas=num_replicas)
    tokens = batch_size * sequence_length
    kept = 2 if precision == "bf16-pure" else 4
    parts = count_parameters(config)
    weights = kept * sum(parts.values())
    vocabulary = config.vocab_size * config.hidden_size
    has_logits = config.head == "language_model"
    attention, mlp = _layer_bytes_per_token(config, sequence_length, precision, flash_attention)
    mlp_added, scores_added = _added_bytes_per_token(
        config, sequence_length, precision, flash_attention
    )
    layer = tokens * (attention + mlp)
    largest_matrix = config.hidden_size * max(config.vocab_size, config.ff_size, config.query_size)
    boundary = tokens * kept * config.hidden_size
    casts = 0
    if precision == "bf16":
        num_layers = 1 if checkpointing else config.num_layers
        casts = 2 * (num_layers * config.layer_weights + has_logits * vocabulary)
    return TransformerMemory(
        parameters=weights,
        gradients=weights,
        first_gradients=has_logits * kept * vocabulary,
        last_gradients=kept
        * (
            parts["layers"] // config.num_layers
            + parts["embeddings"]
            - (has_logits and config.tied) * vocabulary
        ),
        optimizer_state=OPTIMIZER_STATES[optimizer] * weights,
        averages=averaged * weights,
        buckets=(num_replicas > 1) * weights,
        casts=casts,
        layer_activations=layer,
        activations=config.num_layers * (boundary if checkpointing else layer)
        + tokens * _end_bytes_per_token(config, precision),
        recomputed=checkpointing * layer,
        # The MLP goes first and gives its activations back before the scores get their gradients.
        layer_temporaries=tokens * max(mlp_added, scores_added - mlp),
        logits=has_logits * _LOGIT_COPIES * 4 * tokens * config.vocab_size,
        optimizer_temporaries=weights if foreach else 2 * kept * largest_matrix,
        inputs=2 * _INDEX_BYTES * tokens,
        accumulates=accumulation_steps > 1,
    )


def _sizes(precision: Precision) -> tuple[int, int]:
    """Bytes of a number in matrix products, and in norms and the residual stream."""
    return (4, 4) if precision == "fp32" else (2, 4) if precision == "bf16" else (2, 2)


def _norm_bytes_per_token(width: int, config: TransformerConfig, precision: Precision) -> int:
    """What a norm keeps beside its output, which the next layer keeps.

    LayerNorm keeps its input. RMSNorm as Hugging Face writes it keeps the input in fp32 and the
    normalized values.
    """
    _, residual = _sizes(precision)
    return width * (4 + residual) if config.gated else width * residual


def _layer_bytes_per_token(
    config: TransformerConfig, sequence_length: int, precision: Precision, flash: bool
) -> tuple[int, int]:
    """Bytes that attention and MLP of one layer keep for backward, per token, norms included."""
    e, _ = _sizes(precision)
    h, query, kv = config.hidden_size, config.query_size, config.kv_size
    norm = _norm_bytes_per_token(h, config, precision)
    mask = _MASK_BYTES * h if config.dropout else 0
    # Autocast converts the input afresh for each matrix.
    copies = 1 if precision != "bf16" or config.fused_qkv else 3
    attention = norm + copies * e * h + e * query + mask
    # Only 16-bit kernels share keys and values among query heads; elsewhere they are repeated.
    attention += e * (query + 2 * (kv if flash and e == 2 else query))
    if config.qk_norm:
        attention += _norm_bytes_per_token(query + kv, config, precision)
    if flash:
        attention += 4 * config.num_heads  # one logarithm per row of scores
    else:
        attention += config.num_heads * sequence_length * _score_bytes(config, precision)
    # Gated: gate, its activation, the other half, their product. Else: what the activation keeps,
    # and its output.
    tensors = 4 if config.gated else ACTIVATIONS[config.activation] + 1
    copies = 2 if precision == "bf16" and config.gated else 1
    return attention, norm + copies * e * h + tensors * e * config.ff_size + mask


def _score_bytes(config: TransformerConfig, precision: Precision) -> int:
    """Bytes kept per attention score."""
    return sum(_probability_bytes(config, precision)) + bool(config.attention_dropout) * _MASK_BYTES


def _probability_bytes(config: TransformerConfig, precision: Precision) -> tuple[int, int]:
    """Of a softmax's result, and of the copy that is multiplied with the values, if there is one."""
    e, _ = _sizes(precision)
    # Autocast computes a softmax in fp32, and so do models of the Llama kind by themselves.
    result = 4 if precision == "bf16" or config.gated else e
    return result, e if config.attention_dropout or result != e else 0


def _end_bytes_per_token(config: TransformerConfig, precision: Precision) -> int:
    """What the embedding, the norm outside the layers and the input of the head keep."""
    e, _ = _sizes(precision)
    h = config.hidden_size
    total = _norm_bytes_per_token(h, config, precision) + (_MASK_BYTES * h if config.dropout else 0)
    if config.head == "language_model":
        total += e * h
        if not config.causal:  # a matrix, an activation and a norm before the output
            total += e * h * (ACTIVATIONS[config.activation] + 1)
            total += _norm_bytes_per_token(h, config, precision)
    return total


def _added_bytes_per_token(
    config: TransformerConfig, sequence_length: int, precision: Precision, flash: bool
) -> tuple[int, int]:
    """What gradients in the MLP, and at the scores, add to the activations that still live."""
    e, residual = _sizes(precision)
    stream = residual * config.hidden_size
    mlp = stream + e * config.ff_size * (2 if config.gated else 1)
    if flash:
        return mlp, 0
    probabilities, multiplied = _probability_bytes(config, precision)
    return mlp, stream + (2 * probabilities - multiplied) * config.num_heads * sequence_length


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InvalidInputError(f"{name} = {count}", need="at least 1", hint=f"change {name}")


def _check(
    config: TransformerConfig, batch_size: int, sequence_length: int, optimizer: str, precision: str
) -> None:
    """Refuse what no training step has.

    Raises:
        InvalidInputError: as ``estimate_transformer_memory`` says.
    """
    _check_counts(batch_size=batch_size, sequence_length=sequence_length)
    if config.positions and sequence_length > config.positions:
        found = f"sequences of {sequence_length} tokens"
        need = f"at most the model's {config.positions} positions"
        raise InvalidInputError(found, need=need, hint="shorten them")
    if optimizer not in OPTIMIZER_STATES:
        hint = did_you_mean(optimizer, OPTIMIZER_STATES)
        raise InvalidInputError(f"optimizer {optimizer!r}", need="a known state size", hint=hint)
    if precision not in PRECISIONS:
        hint = did_you_mean(precision, PRECISIONS)
        raise InvalidInputError(f"precision {precision!r}", need="a known precision", hint=hint)
