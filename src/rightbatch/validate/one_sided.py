"""Up to which column do losses keep up? One-sided paired tests from both ends of a row of batches."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rightbatch.validate.student import t_quantile


class Bounds(NamedTuple):
    """Rise of one column over the first, as a log ratio, with its one-sided bounds."""

    value: float
    low: float
    high: float


class KeepsUp(NamedTuple):
    """What is shown: up to which column the rise is tolerable, and from which on it is not."""

    passed: int
    """Last column up to which every one is shown to rise less than the tolerance."""
    worse: int | None
    """First column from which on every one is shown to rise more; None where the last is not."""
    rises: tuple[Bounds, ...]


def keeps_up(losses: NDArray[np.float64], *, tolerance: float, level: float) -> KeepsUp:
    """Test each column's rise over the first against a tolerance, on paired logarithms.

    Columns are tested upwards until one is not shown to keep up, and downwards from the last until
    one is not shown to rise: in such a fixed order each whole chain errs with the chance ``level`` of
    a single test (Maurer, Hothorn and Lehmacher 1995), and no correction for many tests is due.

    Args:
        losses: [seeds, columns], positive; at least 2 seeds. Infinite where a branch diverged, which
            counts as a rise; the first column is finite.
        tolerance: log ratio that does not count.
        level: chance of a wrong statement at either end.
    """
    logs = np.log(losses)
    seeds, columns = logs.shape
    quantile = t_quantile(1 - level, seeds - 1)
    rises = [Bounds(0.0, 0.0, 0.0)]
    for at in range(1, columns):
        rise = logs[:, at] - logs[:, 0]
        if not np.isfinite(rise).all():
            rises.append(Bounds(math.inf, math.inf, math.inf))
            continue
        mean, half = float(rise.mean()), quantile * float(rise.std(ddof=1)) / math.sqrt(seeds)
        rises.append(Bounds(mean, mean - half, mean + half))
    passed = 0
    while passed + 1 < columns and rises[passed + 1].high < tolerance:
        passed += 1
    worse = columns
    while worse > 1 and rises[worse - 1].low > tolerance:
        worse -= 1
    return KeepsUp(passed, worse if worse < columns else None, tuple(rises))
