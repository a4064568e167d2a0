"""Which batch to start at where nothing was measured, and how to split it over memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median_high

from rightbatch.core.errors import InfeasibleError
from rightbatch.core.facts import FAMILIES_BY_NAME, OptimizerFamily
from rightbatch.core.plan import Objective
from rightbatch.core.units import format_bytes
from rightbatch.fit.calibration import SWEEPS
from rightbatch.fit.largest import largest_size
from rightbatch.plan.situation import MEMORY, SPEED, Advice, Situation, line_of
from rightbatch.plan.transformer_config import count_parameters
from rightbatch.plan.transformer_memory import Precision, estimate_transformer_memory

# Critical batch sizes in examples: McCandlish et al. (2018), Table 1 (MNIST, SVHN, CIFAR-10,
# ImageNet, two autoencoders), then those of the sweeps of docs/noise.md.
PUBLISHED = (40.0, 200.0, 200.0, 500.0, 900.0, 15_000.0)
CRITICAL_BATCH_SIZES = (*PUBLISHED, *(sweep.critical_batch_size for sweep in SWEEPS))
# Where on that range to begin, as a share of its median: time is bought with examples above 1.
_SHARES: dict[Objective, float] = {"time": 1.0, "balanced": 0.5, "compute": 0.17, "accuracy": 0.5}
# Of fp32 training, without activations.
_PARAMETER_BYTES: dict[OptimizerFamily, tuple[int, str]] = {
    "adam": (16, "weights, gradients and Adam's two averages"),
    "sgd": (12, "weights, gradients and momentum"),
    "other": (8, "weights and gradients, without the optimizer's state,"),
}
_HEADROOM = 0.1
_MIN_UPDATES_PER_EPOCH = 20


def starting_batch(situation: Situation) -> Advice:
    """Today's batch, or one on the range of published critical batch sizes, with that range."""
    spread = (min(CRITICAL_BATCH_SIZES), max(CRITICAL_BATCH_SIZES))
    name, replicas = "global_batch_size", situation.num_replicas
    if situation.batch_size is not None:
        reason = (
            "a batch that trains is better evidence than a rule; published optima lie that far apart"
        )
        size = _shared(situation.batch_size, replicas)
        rule = "today's" if size == situation.batch_size else f"today's, as a multiple of {replicas}"
        return line_of(name, size, "assumed", rule=rule, source="recipe", reason=reason, bounds=spread)
    if situation.num_train_tokens and situation.sequence_length:
        return _language_model_batch(situation, situation.num_train_tokens, situation.sequence_length)
    middle = median_high(CRITICAL_BATCH_SIZES)
    share = _SHARES[situation.objective]
    size = 2 ** round(math.log2(share * middle))
    rule = f"{share:g} x the median critical batch size, to a power of 2"
    reason = f"the median of {len(PUBLISHED)} published critical batch sizes and {len(SWEEPS)} measured"
    reason += f" for docs/noise.md is {middle:g}"
    if situation.num_train_examples is not None:
        most = max(1, situation.num_train_examples // _MIN_UPDATES_PER_EPOCH)
        if size > most:
            size = 2 ** int(math.log2(most))
            reason = f"more would leave fewer than {_MIN_UPDATES_PER_EPOCH} updates an epoch"
    if (shared := _shared(size, replicas)) != size:
        size, rule = shared, f"{rule}, as a multiple of {replicas}"
        if size == replicas:
            reason = f"an example for each of {replicas} replicas is the least"
    source = "mccandlish2018"
    return line_of(name, size, "assumed", rule=rule, source=source, reason=reason, bounds=spread)


def _language_model_batch(situation: Situation, tokens: int, sequence_length: int) -> Advice:
    """Two published laws for pre-training with AdamW; where they disagree the range says so.

    Step Law (2025), arXiv:2503.04715: 0.58 D^0.571 tokens. DeepSeek LLM (2024), arXiv:2401.02954:
    0.2920 C^0.3271 tokens, with C = 6 N D.
    """
    parameters = situation.num_parameters or 0
    if situation.transformer is not None:
        parameters = sum(count_parameters(situation.transformer).values())
    laws = sorted((0.58 * tokens**0.571, 0.2920 * (6.0 * parameters * tokens) ** 0.3271))
    low, high = (max(1, round(law / sequence_length)) for law in laws)
    return line_of(
        "global_batch_size",
        _shared(round(math.sqrt(low * high)), situation.num_replicas),
        "derived",
        rule="geometric mean of Step Law and DeepSeek's law",
        source="steplaw2025",
        reason=f"they give {laws[0]:,.0f} and {laws[1]:,.0f} tokens for {tokens:,} tokens of training",
        bounds=(low, high),
    )


def _shared(batch: int, num_replicas: int) -> int:
    """The nearest batch that replicas share evenly, an example each at least.

    >>> _shared(32, 6), _shared(2, 8)
    (30, 8)
    """
    return num_replicas * max(1, round(batch / num_replicas))


def starting_split(situation: Situation, batch: int) -> Iterator[Advice]:
    """Micro-batch and accumulation, from the memory of the device where both are known.

    Raises:
        InfeasibleError: the parameters alone, or one sequence, take more than the device has.
    """
    per_replica = batch // situation.num_replicas
    accelerator, config = situation.accelerator, situation.transformer
    if not (accelerator and config and situation.sequence_length):
        reason = f"{_fixed_memory(situation)}; activations depend on the model"
        rule = "the whole batch of a replica"
        yield line_of(
            "micro_batch_size",
            per_replica,
            "assumed",
            rule=rule,
            source="practice",
            reason=reason,
            command=MEMORY,
        )
        return
    limit = int(accelerator.memory_bytes * (1 - _HEADROOM))
    precision: Precision = "bf16" if "bf16" in accelerator.peak_flops else "fp32"
    fits = _largest(situation, limit, precision)
    micro = max(size for size in range(1, min(fits, per_replica) + 1) if per_replica % size == 0)
    room = f"{format_bytes(limit)} of {accelerator.title} with {_HEADROOM:.0%} left free"
    yield line_of(
        "precision",
        precision,
        "assumed",
        rule="16-bit autocast where the device's matrix units have it",
        source="practice",
        reason=f"{accelerator.source} lists {', '.join(accelerator.peak_flops)}",
        command=SPEED,
    )
    yield line_of(
        "micro_batch_size",
        micro,
        "derived",
        rule="largest divisor of a replica's batch that fits",
        source="korthikanti2022",
        reason=f"{fits} sequences of {situation.sequence_length} tokens fit {room}",
        command=MEMORY,
    )
    yield line_of(
        "accumulation_steps",
        per_replica // micro,
        "derived",
        rule="a replica's batch / micro-batch",
        source="definition",
        reason="no more than memory asks for",
        command=SPEED,
    )


def _fixed_memory(situation: Situation) -> str:
    """What parameters take before any example, in words.

    Raises:
        InfeasibleError: it is more than the device has.
    """
    if situation.num_parameters is None:
        return "neither model nor memory is known"
    each, what = _PARAMETER_BYTES[FAMILIES_BY_NAME[situation.optimizer.lower()]]
    fixed = each * situation.num_parameters
    text = f"{what} take about {format_bytes(fixed)} in fp32"
    if (device := situation.accelerator) is None:
        return text
    if fixed > device.memory_bytes:
        hint = "a larger device, shards over several (rightbatch train --shard), or fewer that train"
        need = f"at most the {format_bytes(device.memory_bytes)} of {device.title}"
        raise InfeasibleError(text, need=need, hint=hint)
    return f"{text}, of {format_bytes(device.memory_bytes)} on {device.title}"


def _largest(situation: Situation, limit_bytes: int, precision: Precision) -> int:
    """Most sequences per forward whose estimated peak is within the limit.

    Raises:
        InfeasibleError: not even one sequence fits.
    """
    config, length = situation.transformer, situation.sequence_length
    assert config is not None
    assert length is not None

    def peak(size: int) -> int:
        return estimate_transformer_memory(
            config,
            batch_size=size,
            sequence_length=length,
            precision=precision,
            num_replicas=situation.num_replicas,
        ).peak_bytes

    largest = largest_size(lambda size: peak(size) <= limit_bytes)
    if largest == 0:
        found = f"one sequence takes {format_bytes(peak(1))}"
        hint = "choose a larger device, or see: rightbatch memory --hf-config ... --checkpointing"
        raise InfeasibleError(found, need=f"at most {format_bytes(limit_bytes)}", hint=hint)
    return largest
