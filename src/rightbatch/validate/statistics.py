"""Verdicts from paired differences: better, equivalent, worse, or not yet known.

One difference per seed: candidate less reference, both from the same initial weights and the same
order of examples. The margin, below which a difference does not matter, is fixed before any run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.comparison import Difference, Verdict
from rightbatch.core.errors import InvalidInputError
from rightbatch.validate.student import t_quantile

LEVEL = 0.95
ALIKE = 1e-5
"""Of a difference: what single precision leaves between those that are equal."""
MOST_SEEDS = 100
"""Further seeds beyond which no promise is made."""


def paired_difference(
    differences: Sequence[float], level: float = LEVEL, step: float = 0.0
) -> Difference | None:
    """Mean of differences with Student's t interval; open for one pair, None for none.

    Args:
        differences: one per seed.
        level: two-sided.
        step: in which the metric moves. Rounding to it hides a spread of step / sqrt(6), which a few
            equal differences must not be taken for none. Where it is 0, not known, equal differences
            count as one step each; those of 0 are runs that end alike.

    >>> paired_difference([0.01, 0.02, 0.03]).value
    0.02
    """
    n = len(differences)
    if n == 0:
        return None
    mean = math.fsum(differences) / n
    if n == 1:
        return Difference(value=mean, low=None, high=None, num_pairs=1)
    half = t_quantile(0.5 + level / 2, n - 1) * _spread(differences, step) / math.sqrt(n)
    return Difference(value=mean, low=mean - half, high=mean + half, num_pairs=n)


def bootstrap_interval(
    differences: Sequence[float], rng: np.random.Generator, level: float = LEVEL, draws: int = 2000
) -> tuple[float, float]:
    """Percentile interval of the mean over resampled seeds; too narrow for fewer than about 20.

    Args:
        differences: one per seed.
        rng: draws the resamples.
        level: two-sided.
        draws: resamples.
    """
    values: NDArray[np.float64] = np.asarray(differences, float)
    means = rng.choice(values, (draws, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2]).tolist()
    return low, high


def check_design(seeds: int, margin: float) -> None:
    """Refuse a comparison that could not come to a verdict.

    Raises:
        InvalidInputError: fewer than two seeds, or no margin.
    """
    if seeds < 2:
        need = "2 or more, whose spread tells chance from effect"
        raise InvalidInputError(f"{seeds} seed(s)", need=need, hint="--seeds 3, or 5 for small effects")
    if not 0 < margin < math.inf:
        need = "a margin above 0: the smallest difference in the metric that matters to you"
        raise InvalidInputError(f"margin = {margin:g}", need=need, hint="--margin 0.005")


def judge(difference: Difference | None, margin: float, *, higher_is_better: bool) -> Verdict:
    """What an interval says: equivalent where all of it is inside the margin, else its sign.

    With two-sided 95 % intervals, either of better and worse comes by chance in at most 2.5 % of
    comparisons without a difference, and equivalent in at most 2.5 % of those at the margin
    (two one-sided tests, Schuirmann 1987).

    Args:
        difference: candidate less reference.
        margin: in the metric's unit.
        higher_is_better: of the metric.

    >>> narrow = Difference(value=0.001, low=-0.001, high=0.003, num_pairs=3)
    >>> judge(narrow, 0.005, higher_is_better=True)
    'equivalent'
    """
    if difference is None or difference.low is None or difference.high is None:
        return "undecided"
    if -margin < difference.low and difference.high < margin:
        return "equivalent"
    if difference.low > 0:
        return "better" if higher_is_better else "worse"
    if difference.high < 0:
        return "worse" if higher_is_better else "better"
    return "undecided"


def more_seeds(differences: Sequence[float], margin: float, step: float = 0.0) -> int | None:
    """Further seeds until a verdict, if mean and spread stay as they are; None beyond 100.

    The number is where the half width falls below the distance of the mean from 0, or from the
    nearer margin where the mean is inside. An estimate: the spread of few seeds is itself uncertain.

    >>> more_seeds([0.011, 0.001, 0.009], 0.005)
    2
    """
    mean = abs(math.fsum(differences) / max(len(differences), 1))
    return seeds_until(max(mean, margin - mean), differences, step=step)


def seeds_until(
    distance: float, differences: Sequence[float], level: float = LEVEL, step: float = 0.0
) -> int | None:
    """Further seeds until half the interval is less than a distance; None beyond 100.

    Args:
        distance: from the mean to what it is to be told from.
        differences: one per seed so far, whose spread is taken to stay.
        level: two-sided.
        step: in which the metric moves.
    """
    n = len(differences)
    if n < 2:
        return None
    spread = _spread(differences, step)
    for wanted in range(n, n + MOST_SEEDS + 1):
        if t_quantile(0.5 + level / 2, wanted - 1) * spread / math.sqrt(wanted) < distance:
            return wanted - n
    return None


def share_closed(
    after: Sequence[float], before: Sequence[float], level: float = LEVEL, step: float = 0.0
) -> Difference | None:
    """1 - mean(after) / mean(before), with Fieller's interval over pairs; None where before is 0.

    The interval holds every share r for which the mean of after - (1 - r) before cannot be told from
    0 (Fieller 1954). It is open where the gap before cannot be told from 0 itself.

    Args:
        after: differences to the reference that are left, one per seed.
        before: differences that there were, for the same seeds.
        level: two-sided.
        step: in which the metric moves.

    >>> share_closed([-0.01, -0.012], [-0.04, -0.048]).value
    0.75
    """
    n, left, gap = len(after), math.fsum(after) / len(after), math.fsum(before) / len(before)
    if gap == 0:
        return None
    value = 1 - left / gap
    if n < 2:
        return Difference(value=value, low=None, high=None, num_pairs=n)
    covariance = np.cov(np.array([after, before], float), ddof=1)
    floor = step**2 / 6  # hidden by rounding, as in paired_difference
    scale = t_quantile(0.5 + level / 2, n - 1) ** 2 / n
    square = gap**2 - scale * max(float(covariance[1, 1]), floor)
    if square <= 0:
        return Difference(value=value, low=None, high=None, num_pairs=n)
    cross = left * gap - scale * float(covariance[0, 1])
    constant = left**2 - scale * max(float(covariance[0, 0]), floor)
    root = math.sqrt(max(cross**2 - square * constant, 0.0))
    low, high = 1 - (cross + root) / square, 1 - (cross - root) / square
    return Difference(value=value, low=low, high=high, num_pairs=n)


class Cost(NamedTuple):
    """What a run took to the target: two equal bounds, or what censoring leaves of them."""

    low: float
    """The whole run where the target was missed; 0 where the first evaluation met it."""
    high: float
    """Infinite where the target was missed."""


def cost_ratio(
    pairs: Sequence[tuple[Cost, Cost]],
) -> tuple[Difference | None, float | None, float | None]:
    """Geometric mean of paired cost ratios, or the bound that censored runs leave of it.

    A run that missed its target would have taken longer than it lasted, and one whose first evaluation
    met it may have taken less. So censoring bounds the ratio from one side, or leaves nothing.

    Args:
        pairs: candidate and reference of one seed.

    Returns:
        The ratio with its t interval on the logarithm, its lower bound, and its upper bound; at
        most one of them.

    >>> cost_ratio([(Cost(10.0, math.inf), Cost(20.0, 20.0))])
    (None, 0.5, None)
    """
    lows = [ours.low / theirs.high for ours, theirs in pairs]
    highs = [ours.high / theirs.low if theirs.low else math.inf for ours, theirs in pairs]
    at_least = _geometric_mean(lows) if pairs and min(lows) > 0 else None
    at_most = _geometric_mean(highs) if pairs and max(highs) < math.inf else None
    if at_least is None or lows != highs:
        return None, at_least, at_most
    found = paired_difference([math.log(ratio) for ratio in lows])
    assert found is not None
    ends = {
        name: None if end is None else math.exp(end)
        for name, end in (("low", found.low), ("high", found.high))
    }
    return found.replace(value=at_least, **ends), None, None


def _geometric_mean(ratios: Sequence[float]) -> float:
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios))


def metric_step(values: Sequence[float], num_examples: int) -> float:
    """What one example is worth where every value is a share or per cent of them; else 0.

    >>> metric_step([0.75, 0.5], 4), metric_step([75.0, 0.5], 4), metric_step([75.0, 50.0], 4)
    (0.25, 0.0, 25.0)
    """
    for whole in (1.0, 100.0):
        counts = [value / whole * num_examples for value in values]
        if all(0 <= c <= num_examples and abs(c - round(c)) < 1e-3 for c in counts):
            return whole / num_examples if num_examples else 0.0
    return 0.0


def _spread(values: Sequence[float], step: float) -> float:
    """Standard deviation, and at least what the steps of both metrics hide."""
    spread, mean = float(np.std(np.asarray(values, float), ddof=1)), abs(float(np.mean(values)))
    if not step and spread <= ALIKE * mean:
        step = mean
    return max(spread, step / math.sqrt(6))
