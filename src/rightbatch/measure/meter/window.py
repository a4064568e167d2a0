"""What one measured update found, and how it becomes a pair of squared norms.

Notation: c_j is what micro-batch j with b_j examples added to ``.grad``, C their sum over K of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.samples import GradientSource

Reduction = Literal["mean", "sum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Squared norms at two batch sizes, of gradients of the mean over examples."""

    small_batch_size: float
    big_batch_size: int
    small_sq_norm: float
    big_sq_norm: float
    num_small_batches: int
    source: GradientSource


def pair_of_micro_batches(
    sizes: Sequence[float],
    squares: Sequence[float],
    total_square: float,
    reduction: Reduction,
    source: GradientSource = "micro-batches",
) -> Pair:
    """Norms per example from what each micro-batch added to the gradient.

    ``mean``: micro-batches weigh alike, c_j = g_j / K, whatever their sizes; so E|g_j|^2 =
    |G|^2 + tr(Sigma)/b_j, and their mean g has the variance of K harmonic means of examples.
    ``sum``: they weigh by examples, c_j = b_j g_j, and the pair is that of a one-way analysis of
    variance: weighted least squares of the |g_j|^2 with weights b_j. Both are unbiased; for equal
    sizes they are the same.

    Args:
        sizes: examples of each, b_j.
        squares: |c_j|^2.
        total_square: |C|^2.
        reduction: of the user's loss.
        source: for the record.

    >>> pair_of_micro_batches([2, 2], [1.0, 4.0], 5.0, "mean").small_sq_norm
    10.0
    >>> pair_of_micro_batches([2, 2], [4.0, 16.0], 80.0, "sum").big_sq_norm
    5.0
    """
    k, examples = len(sizes), sum(sizes)
    if reduction == "sum":
        small_size = examples / k
        small = sum(c / b for c, b in zip(squares, sizes, strict=True)) / examples
        big = total_square / examples**2
    else:
        small_size = k / sum(1 / b for b in sizes)
        small = k * sum(squares)
        # |C|^2 belongs to K harmonic means of examples; moved to the examples there were.
        trace = (small - total_square) / (1 / small_size - 1 / (k * small_size))
        big = total_square + trace * (1 / examples - 1 / (k * small_size))
    return Pair(
        small_batch_size=small_size,
        big_batch_size=round(examples),
        small_sq_norm=small,
        big_sq_norm=big,
        num_small_batches=k,
        source=source,
    )


def pair_of_examples(
    num_examples: int, sum_of_squares: float, total_square: float, reduction: Reduction
) -> Pair:
    """Norms from single examples' contributions c_i to the gradient.

    Args:
        num_examples: of the batch, N.
        sum_of_squares: the sum of |c_i|^2.
        total_square: |C|^2 over the same parameters.
        reduction: ``mean``: c_i = g_i / N; ``sum``: c_i = g_i.

    >>> pair_of_examples(2, 1.0 + 9.0, 16.0, "sum").big_sq_norm
    4.0
    """
    n = num_examples
    scale = n if reduction == "mean" else 1 / n
    return Pair(
        small_batch_size=1,
        big_batch_size=n,
        small_sq_norm=sum_of_squares * scale,
        big_sq_norm=total_square if reduction == "mean" else total_square / n**2,
        num_small_batches=n,
        source="per-example",
    )


def examples_of_micro_batches(seen: Sequence[int], k: int, declared: int | None) -> list[float]:
    """Examples of each micro-batch: as seen, or an even share of what the user says.

    Args:
        seen: first dimensions of the model's inputs; 0 where there was none.
        k: micro-batches.
        declared: by the user, of all together.

    Raises:
        InvalidInputError: neither tells.

    >>> examples_of_micro_batches([8, 8], 2, None), examples_of_micro_batches([3], 1, 6)
    ([8.0, 8.0], [6.0])
    """
    if declared is not None and (len(seen) != k or sum(seen) != declared):
        return [declared / k] * k
    if len(seen) != k or not all(seen):
        found = "a model called in a way that does not show how many examples it gets"
        hint = "update(examples=len(batch))"
        raise InvalidInputError(found, need="their number", hint=hint)
    return [float(size) for size in seen]
