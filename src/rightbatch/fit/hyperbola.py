"""Steps to target against batch size, fitted to a real sweep: S(B) = S_min (1 + B_crit / B).

McCandlish et al. (2018), arXiv:1812.06162, Eqs. 2.11-2.12, fitted by least squares on the logarithm,
each batch size at its own best learning rate. E_min = S_min B_crit are the fewest examples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.errors import MeasurementError
from rightbatch.fit.intervals import NORMAL_QUANTILE, t_quantile

LEVEL = 0.90
MIN_SIZES = 3
WITHIN = 0.2
"""A regime reaches as far as its limit is kept within this share."""
_REFINEMENTS = 5  # each narrows the grid's spacing by 20
_GRID = np.exp(np.linspace(math.log(1e-3), math.log(1e3), 241))  # of B_crit over the middle batch

Regime = Literal["perfect scaling", "diminishing returns", "stagnation"]
Steps = Mapping[int, Mapping[float, Sequence[float]]]
"""Batch size to learning-rate factor to steps per seed; infinite where the target was missed."""


class Hyperbola(NamedTuple):
    """A fit, with what it leaves unexplained; without a bend it is one of its two limits."""

    min_steps: float
    """0 where steps halve with every doubling of the batch."""
    min_examples: float
    """0 where steps do not fall with the batch."""
    residuals: tuple[float, ...]
    """log(measured) - log(fitted), one per batch size."""

    @property
    def critical_batch_size(self) -> float:
        """0 or infinite without a bend."""
        return self.min_examples / self.min_steps if self.min_steps else math.inf

    @property
    def has_bend(self) -> bool:
        """Whether both limits show in the steps."""
        return self.min_steps > 0 and self.min_examples > 0

    def steps(self, batch_size: float) -> float:
        """Fitted steps to the target."""
        return self.min_steps + self.min_examples / batch_size

    @property
    def log_rms(self) -> float:
        """Root mean square of the residuals, with two parameters' degrees of freedom taken."""
        n = len(self.residuals)
        return math.sqrt(math.fsum(r * r for r in self.residuals) / max(n - 2, 1))


class Best(NamedTuple):
    """The learning rate that needs fewest steps at a batch size."""

    batch_size: int
    factor: float
    """Of the rule's rate."""
    steps: float
    """Geometric mean over seeds."""
    on_edge: bool
    """Whether it is the smallest or largest rate tried, so that a better one may lie beyond."""


def best_rates(steps: Steps) -> list[Best]:
    """The best rate of each batch size at which some rate reached the target with every seed.

    >>> best_rates({8: {1.0: [100.0, 100.0], 2.0: [50.0, float("inf")]}})[0].factor
    1.0
    """
    found: list[Best] = []
    for size in sorted(steps):
        means = {f: _geometric(seeds) for f, seeds in sorted(steps[size].items()) if len(seeds)}
        if not means or not math.isfinite(min(means.values())):
            continue
        factor = min(means, key=means.__getitem__)
        edge = factor in {min(means), max(means)}
        found.append(Best(size, factor, means[factor], edge))
    return found


def fit_hyperbola(batch_sizes: Sequence[float], steps: Sequence[float]) -> Hyperbola:
    """Fit both constants; S_min follows in closed form from every B_crit that is tried.

    Steps that fall no slower than 1/B, or not at all, are fitted by that limit of the curve.

    Args:
        batch_sizes: at least three different ones.
        steps: to the target, positive.

    Raises:
        MeasurementError: fewer batch sizes.

    >>> sizes = [8, 32, 128, 512]
    >>> round(fit_hyperbola(sizes, [100 * (1 + 64 / b) for b in sizes]).critical_batch_size, 6)
    64.0
    """
    b, y = np.asarray(batch_sizes, float), np.log(np.asarray(steps, float))
    if len(set(b.tolist())) < MIN_SIZES:
        found = f"the target was reached at {len(set(b.tolist()))} batch sizes"
        hint = "sweep more batch sizes, or train longer"
        raise MeasurementError(found, need=f"{MIN_SIZES} or more", hint=hint)
    grid: NDArray[np.float64] = math.exp(float(np.log(b).mean())) * _GRID
    at = _least(grid, b, y)
    if at == 0:
        least, fewest = 1.0, 0.0
    elif at == len(grid) - 1:
        least, fewest = 0.0, 1.0
    else:
        for _ in range(_REFINEMENTS):
            grid = np.geomspace(grid[max(at - 1, 0)], grid[min(at + 1, len(grid) - 1)], 41)
            at = _least(grid, b, y)
        least, fewest = 1.0, float(grid[at])
    residuals = y - np.log(least + fewest / b)
    level = float(residuals.mean())
    scale = math.exp(level)
    return Hyperbola(scale * least, scale * fewest, tuple((residuals - level).tolist()))


def critical_bounds(
    steps: Steps, fit: Hyperbola, rng: np.random.Generator, draws: int = 200
) -> tuple[float | None, float | None]:
    """90 % bounds of B_crit: seeds are drawn anew, rates chosen anew, and residuals scattered anew.

    Seeds say how well each point is known, residuals how well the curve holds; both count, so that a
    handful of seeds is not taken for certainty. A bound is None where more than a twentieth of the
    draws has no bend on that side. Without a bend there is at most one, and it lies inside the sweep.

    Few runs show too little scatter now and then, so residuals are stretched as Student's t is against
    the normal distribution, with the runs at the best rates less two parameters as degrees of freedom.

    Args:
        steps: of the sweep, the same number of seeds at each rate.
        fit: to all of it.
        rng: for the draws.
        draws: how many.
    """
    points = best_rates(steps)
    runs = sum(len(steps[one.batch_size][one.factor]) for one in points)
    stretch = t_quantile(max(runs - 2, 1)) / NORMAL_QUANTILE
    scatter = stretch * math.sqrt(len(points) / max(len(points) - 2, 1)) * np.array(fit.residuals)
    found: list[float] = []
    for _ in range(draws):
        drawn = {
            size: {factor: _resample(seeds, rng) for factor, seeds in rates.items()}
            for size, rates in steps.items()
        }
        best = best_rates(drawn)
        values = [one.steps * math.exp(rng.choice(scatter)) for one in best]
        found.append(fit_hyperbola([one.batch_size for one in best], values).critical_batch_size)
    low, high = np.quantile(found, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2], method="nearest").tolist()
    if not fit.has_bend:
        sizes = [one.batch_size for one in points]
        low = min(low, max(sizes)) if fit.min_examples else 0.0
        high = max(high, min(sizes)) if fit.min_steps else math.inf
    return low if low > 0 else None, high if math.isfinite(high) else None


def regime(batch_size: float, critical: float) -> Regime:
    """Where a batch size lies: examples within 20 % of the fewest, steps within 20 %, or between.

    >>> [regime(b, 100.0) for b in (20, 21, 500)]
    ['perfect scaling', 'diminishing returns', 'stagnation']
    """
    if batch_size <= WITHIN * critical:
        return "perfect scaling"
    return "diminishing returns" if batch_size < critical / WITHIN else "stagnation"


def overhead_batch(anchor: float, critical: float, overhead: float = WITHIN) -> float:
    """Batch at which steps are ``overhead`` above linear scaling from a small anchor batch.

    CBS of Zhang et al. (2025), arXiv:2410.21676: E(B) = (1 + overhead) E(anchor).

    >>> overhead_batch(0.0, 100.0)
    20.0
    """
    return (1 + overhead) * anchor + overhead * critical


def _least(grid: NDArray[np.float64], b: NDArray[np.float64], y: NDArray[np.float64]) -> int:
    """Which B_crit of a grid leaves the least variance of log S - log(1 + B_crit / B)."""
    return int(np.argmin(np.var(y - np.log1p(grid[:, None] / b), axis=1)))


def _geometric(values: Sequence[float]) -> float:
    return math.exp(math.fsum(math.log(v) for v in values) / len(values))


def _resample(values: Sequence[float], rng: np.random.Generator) -> list[float]:
    return rng.choice(np.asarray(values, float), len(values)).tolist()
