"""Training memory of a transformer from its shape alone: no code, no device, no tensors.

Notation of Korthikanti et al. (2022), arXiv:2205.05198, Sec. 4: s tokens per sequence, b sequences,
h hidden size, a heads, L layers. Their Eq. 1, sbh (34 + 5 as/h) bytes per layer in 16 bits, is the
sum over the tensors that backward needs; here the same sum is written by tensor, so that other
precisions, grouped-query attention, gated MLPs and fused attention follow. Two instants can be the
peak: the beginning of backward, when every activation lives and no gradient does yet, and the
optimizer's step, when it is the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rightbatch.core.errors import InvalidInputError, did_you_mean
from rightbatch.plan.transformer_config import ACTIVATIONS, TransformerConfig, count_parameters

Precision = Literal["fp32", "bf16", "bf16-pure"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "bf16-pure")

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
    optimizer_state: int
    averages: int
    """Averaged weights."""
    buckets: int
    """Second copy of the gradients that data-parallel replicas reduce."""
    casts: int
    """16-bit copies of fp32 weights, held from forward to backward."""
    layer_activations: int
    """What one layer keeps for backward."""
    activations: int
    """All layers, the embedding and the last norm, as far as they are kept."""
    recomputed: int
    """Activations of the layer that is recomputed, with checkpointing."""
    logits: int
    """Outputs over the vocabulary with their gradients."""
    backward_temporaries: int
    """Gradients of activations inside one layer."""
    optimizer_temporaries: int
    inputs: int
    accumulates: bool
    """Whether gradients of earlier micro-batches live during forward."""

    @property
    def fixed_bytes(self) -> int:
        """What does not depend on the batch and always lives."""
        return self.parameters + self.optimizer_state + self.averages + self.buckets

    @property
    def backward_bytes(self) -> int:
        """Live at the largest instant of forward and backward."""
        kept = self.fixed_bytes + self.inputs + self.casts + self.activations
        kept += self.gradients if self.accumulates else 0
        return kept + max(self.logits, self.recomputed + self.backward_temporaries)

    @property
    def optimizer_bytes(self) -> int:
        """Live during the optimizer's step."""
        return self.fixed_bytes + self.inputs + self.gradients + self.optimizer_temporaries

    @property
    def peak_bytes(self) -> int:
        """The larger of both instants."""
        return max(self.backward_bytes, self.optimizer_bytes)

    @property
    def peak_at(self) -> Literal["backward", "optimizer"]:
        """Which of both it is."""
        return "backward" if self.backward_bytes >= self.optimizer_bytes else "optimizer"


def estimate_transformer_memory(
    config: TransformerConfig,
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
        config: the model's shape, as ``read_transformer_config`` reads it.
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
        InvalidInputError: a name is unknown, a count below 1, or the sequence too long for the model.
    """
    _check(config, batch_size, sequence_length, optimizer, precision)
    _check_counts(accumulation_steps=accumulation_steps, num_replicas=num_replicas)
    tokens = batch_size * sequence_length
    parts = count_parameters(config)
    kept = 2 if precision == "bf16-pure" else 4
    weights = kept * sum(parts.values())
    layer = tokens * _layer_bytes_per_token(config, sequence_length, precision, flash_attention)
    boundary = tokens * kept * config.hidden_size
    has_logits = config.head == "language_model"
    casts = 0
    if precision == "bf16":
        casts = 2 * (
            config.num_layers * config.linear_weights
            + has_logits * config.vocab_size * config.hidden_size
        )
    return TransformerMemory(
        parameters=weights,
        gradients=weights,
        optimizer_state=OPTIMIZER_STATES[optimizer] * weights,
        averages=weights if averaged else 0,
        buckets=weights if num_replicas > 1 else 0,
        casts=casts,
        layer_activations=layer,
        activations=config.num_layers * (boundary if checkpointing else layer)
        + tokens * _end_bytes_per_token(config, precision),
        recomputed=layer if checkpointing else 0,
        logits=_LOGIT_COPIES * 4 * tokens * config.vocab_size if has_logits else 0,
        backward_temporaries=tokens
        * _temporary_bytes_per_token(config, sequence_length, precision, flash_attention),
        optimizer_temporaries=weights
        if foreach
        else 2
        * kept
        * max(config.vocab_size * config.hidden_size, config.ff_size * config.hidden_size),
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
) -> int:
    """Bytes that one layer keeps for backward, per token."""
    e, _ = _sizes(precision)
    h, query, kv = config.hidden_size, config.query_size, config.kv_size
    mask = _MASK_BYTES * h if config.dropout else 0
    scores = config.num_heads * sequence_length
    total = 2 * _norm_bytes_per_token(h, config, precision)
    total += e * h  # input of the query, key and value matrices
    if config.qk_norm:
        total += _norm_bytes_per_token(query + kv, config, precision)
    if flash:
        total += e * (query + 2 * kv) + 4 * config.num_heads  # and one logarithm per row
    else:
        total += 3 * e * query  # keys and values are repeated for every query head
        total += scores * _score_bytes(config, precision)
    total += e * query + mask  # input of the output matrix
    total += e * h  # input of the MLP
    # Gated: gate, its activation, the other half, their product; else: what the activation keeps
    # and its output.
    total += e * config.ff_size * (4 if config.gated else ACTIVATIONS[config.activation] + 1)
    return total + mask


def _score_bytes(config: TransformerConfig, precision: Precision) -> int:
    """Bytes kept per attention score: probabilities, and with dropout its mask and result."""
    e, _ = _sizes(precision)
    softmax_in_fp32 = precision == "bf16" or config.gated
    probabilities = 4 if softmax_in_fp32 else e
    multiplied = e if config.attention_dropout or probabilities != e else 0
    return probabilities + multiplied + (_MASK_BYTES if config.attention_dropout else 0)


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


def _temporary_bytes_per_token(
    config: TransformerConfig, sequence_length: int, precision: Precision, flash: bool
) -> int:
    """Gradients that live together inside one layer: of the MLP's width, or of the scores."""
    e, residual = _sizes(precision)
    mlp = e * config.ff_size * (3 if config.gated else 2)
    scores = 0 if flash else 2 * e * config.num_heads * sequence_length
    return residual * config.hidden_size + max(mlp, scores)


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
