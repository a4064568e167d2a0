"""From what the hooks of one update saw to a sample, for each source of norms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.samples import Coupling, GradientSample
from rightbatch.measure.gradients import in_reals
from rightbatch.measure.meter.leaves import MicroBatchNorms, squared_norms
from rightbatch.measure.meter.model_facts import MIN_COVERED
from rightbatch.measure.meter.whole import gather_over_replicas
from rightbatch.measure.meter.window import (
    Pair,
    Reduction,
    pair_of_examples,
    pair_of_micro_batches,
)

# Rounding of a sum over the batch; half-precision gradients differ by more.
CHECK_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}


class Skipped(NamedTuple):
    """Why a measured update gave no sample."""

    reason: str


NOT_FINITE = Skipped("gradients that are not finite")


def sample_of_examples(
    micro: MicroBatchNorms,
    squares: Mapping[nn.Parameter, Tensor],
    uncovered: set[nn.Parameter],
    num_examples: int,
    scale: float,
    reduction: Reduction,
) -> GradientSample | Skipped:
    """Both norms over exactly the covered parameters.

    Args:
        micro: norms of the whole gradient, by parameter.
        squares: of single examples' contributions, [1 or 2, N] by parameter.
        uncovered: parameters whose squares are not to be trusted.
        num_examples: N.
        scale: of the loss.
        reduction: of the loss.
    """
    covered = {p for p in micro.norms if p in squares and p not in uncovered}
    share = share_of(covered, micro.norms)
    if share < MIN_COVERED:
        return Skipped("per-example gradients of too few parameters")
    device = next(iter(micro.norms.values())).device
    of_examples = torch.stack([squares[p].to(device) for p in covered]).double().sum((0, 2)).tolist()
    (whole,) = squared_norms([micro], covered)
    if not _finite(of_examples, whole):
        return NOT_FINITE
    pairs = [
        pair_of_examples(num_examples, small / scale**2, big / scale**2, reduction)
        for small, big in zip(of_examples, whole, strict=True)
    ]
    return _sample(pairs, share, None)


def sample_of_micro_batches(
    micro: Sequence[MicroBatchNorms],
    sizes: Sequence[float],
    whole: MicroBatchNorms,
    *,
    scale: float,
    changed: float,
    reduction: Reduction,
    coupling: Coupling | None,
) -> GradientSample | Skipped:
    """Micro-batches of one process against what they add up to.

    Args:
        micro: norms of what each added to ``.grad``.
        sizes: examples of each.
        whole: norms of ``.grad`` now.
        scale: of the loss.
        changed: what ``.grad`` was divided by since backward.
        reduction: of the loss.
        coupling: for the record.

    Raises:
        InvalidInputError: ``.grad`` was divided by something else than the loss scale.
    """
    if len(micro) < 2:
        return Skipped("a single micro-batch in the update")
    *parts, wholes = squared_norms([*micro, whole])
    if not _finite(*parts, wholes):
        return NOT_FINITE
    untouched = abs(changed - 1) < 1e-3
    if not untouched and abs(changed / scale - 1) > 1e-3:
        found = f"a gradient divided by {changed:.4g} between backward and update()"
        need = "the gradient as backward left it, or unscaled"
        hint = "clip after update(); with a GradScaler, update(scaler=scaler)"
        raise InvalidInputError(found, need=need, hint=hint)
    left = (scale if untouched else 1.0) ** 2
    pairs = [
        pair_of_micro_batches(
            sizes, [part[k] / scale**2 for part in parts], square / left, reduction, "micro-batches"
        )
        for k, square in enumerate(wholes)
    ]
    return _sample(pairs, 1.0, coupling)


def sample_of_replicas(
    model: DistributedDataParallel,
    micro: Sequence[MicroBatchNorms],
    sizes: Sequence[float],
    whole: MicroBatchNorms,
    *,
    scale: float,
    reduction: Reduction,
    coupling: Coupling | None,
    extra_share: float | None,
) -> tuple[GradientSample | Skipped, float | None]:
    """Micro-batches of all processes against ``.grad``, the mean over processes of their sums.

    Args:
        model: gives the processes.
        micro: norms of what each micro-batch of this process gave, before averaging.
        sizes: examples of each.
        whole: norms of ``.grad`` now.
        scale: of the loss.
        reduction: of the loss.
        coupling: for the record.
        extra_share: what measuring adds to an update on this process.

    Returns:
        The sample, the same on every process; the mean of ``extra_share``, None if one has none.
    """
    *parts, wholes = squared_norms([*micro, whole])
    extra = -1.0 if extra_share is None else extra_share
    mine = [[extra, size, *part] for size, part in zip(sizes, parts, strict=True)]
    gathered = gather_over_replicas(model, mine)
    extras = [row[0] for row in gathered]
    shared = None if min(extras) < 0 else sum(extras) / len(extras)
    if not _finite(*gathered, wholes):
        return NOT_FINITE, shared
    # A mean is never longer than its parts together: were it still scaled, it would be.
    longest = sum(math.sqrt(row[2]) for row in gathered)
    unscaled = scale > 1 and math.sqrt(wholes[0]) * scale <= 1.001 * longest
    replicas = len(gathered) // len(micro)
    # .grad is a mean over replicas; under "sum" the sum over all is meant.
    part = 1 / scale**2 / (replicas**2 if reduction == "mean" else 1)
    factor = (1 if unscaled else 1 / scale**2) * (replicas**2 if reduction == "sum" else 1)
    pairs = [
        pair_of_micro_batches(
            [row[1] for row in gathered],
            [row[2 + k] * part for row in gathered],
            wholes[k] * factor,
            reduction,
            "replicas",
        )
        for k in range(len(wholes))
    ]
    return _sample(pairs, 1.0, coupling), shared


def sample_of_groups(
    micro: Sequence[MicroBatchNorms],
    sizes: Sequence[float],
    whole: MicroBatchNorms,
    coupling: Coupling | None,
) -> GradientSample | Skipped:
    """Groups' summed gradients against their sum.

    Args:
        micro: norms of each group's gradient, summed over its examples.
        sizes: examples of each.
        whole: norms of the sum of all.
        coupling: for the record.
    """
    *parts, wholes = squared_norms([*micro, whole])
    if not _finite(*parts, wholes):
        return NOT_FINITE
    pairs = [
        pair_of_micro_batches(sizes, [part[k] for part in parts], square, "sum", "groups")
        for k, square in enumerate(wholes)
    ]
    return _sample(pairs, 1.0, coupling)


def failing(
    gradients: Mapping[nn.Parameter, Tensor],
    summed: Mapping[nn.Parameter, Tensor],
    precision: torch.dtype,
) -> set[nn.Parameter]:
    """Parameters whose gradient is not the sum of what the examples were seen to add to it.

    Args:
        gradients: as autograd gave them.
        summed: contributions of all examples.
        precision: the coarsest that gradients of outputs came in.
    """
    failed: set[nn.Parameter] = set()
    for p, gradient in gradients.items():
        if p not in summed:
            failed.add(p)
            continue
        whole = in_reals(gradient.to_dense() if gradient.is_sparse else gradient).double()
        distance = torch.linalg.vector_norm(in_reals(summed[p]).double() - whole)
        if distance > CHECK_TOLERANCE[precision] * torch.linalg.vector_norm(whole):
            failed.add(p)
    return failed


def share_of(part: set[nn.Parameter], whole: Mapping[nn.Parameter, object]) -> float:
    """Elements of some parameters over those of all; 1 where there are none."""
    elements = sum(p.numel() for p in whole)
    return sum(p.numel() for p in whole if p in part) / elements if elements else 1.0


def _finite(*rows: Sequence[float]) -> bool:
    return all(math.isfinite(value) for row in rows for value in row)


def _sample(pairs: Sequence[Pair], covered: float, coupling: Coupling | None) -> GradientSample:
    """A plain pair, and the preconditioned one where there is one."""
    plain, weighted = pairs[0], pairs[1] if len(pairs) > 1 else None
    return GradientSample(
        examples_seen=0,
        small_batch_size=plain.small_batch_size,
        big_batch_size=plain.big_batch_size,
        small_sq_norm=plain.small_sq_norm,
        big_sq_norm=plain.big_sq_norm,
        preconditioned_small_sq_norm=weighted and weighted.small_sq_norm,
        preconditioned_big_sq_norm=weighted and weighted.big_sq_norm,
        source=plain.source,
        num_small_batches=plain.num_small_batches,
        covered=covered,
        coupling=coupling,
    )
