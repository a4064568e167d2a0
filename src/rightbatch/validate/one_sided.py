"""From which column on are losses worse? One-sided paired tests, with the chance of a false stop kept."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rightbatch.validate.student import t_quantile


class Stop(NamedTuple):
    """The first column shown to be worse than those before it."""

    at: int | None
    """Its place; None where none was."""
    resolution: float | None
    """Smallest rise that the last test which passed could have shown; None where none did."""


def first_worse(losses: NDArray[np.float64], *, tolerance: float, level: float) -> Stop:
    """Walk along the columns while none is shown to be worse than the mean of those that passed.

    Each test is Student's on paired differences, one-sided, at ``level`` over the number of tests
    (Bonferroni), so that a stop where all columns are equal has at most the chance ``level``.

    Args:
        losses: [seeds, columns]; at least 2 seeds, infinite where a run diverged. The first column
            must be finite.
        tolerance: rise that does not count.
        level: chance of stopping although nothing rises.
    """
    seeds, columns = losses.shape
    resolution = None
    quantile = t_quantile(1 - level / max(columns - 1, 1), seeds - 1)
    for at in range(1, columns):
        rise = losses[:, at] - losses[:, :at].mean(axis=1) - tolerance
        if not np.isfinite(rise).all():
            return Stop(at, resolution)
        half = quantile * float(rise.std(ddof=1)) / math.sqrt(seeds)
        if float(rise.mean()) > half:
            return Stop(at, resolution)
        resolution = half + tolerance
    return Stop(None, resolution)
