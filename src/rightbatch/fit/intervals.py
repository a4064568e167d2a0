"""Intervals from few samples: Student's t, Fieller's ratio, the median. All are two-sided 90 %."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.90
NORMAL_QUANTILE = NormalDist().inv_cdf(0.5 + LEVEL / 2)


def t_quantile(degrees: int) -> float:
    """Upper quantile of Student's t for a two-sided 90 % interval.

    Expansion in 1/degrees (Abramowitz and Stegun 1964, Eq. 26.7.5); within 0.3 % from 3 degrees
    up, exact below.

    >>> [round(t_quantile(n), 3) for n in (1, 2, 5, 30)]
    [6.314, 2.92, 2.015, 1.697]
    """
    if degrees <= 2:
        return (6.313752, 2.919986)[degrees - 1]
    z = NORMAL_QUANTILE
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / degrees**power for power, term in enumerate(terms))


class Ratio(NamedTuple):
    """A ratio of two means and its interval; ``high`` is None where the data set no upper bound."""

    value: float | None
    low: float
    high: float | None


class _Moments(NamedTuple):
    """Weighted means of pairs, the covariance [2, 2] of these means, and how many pairs count."""

    means: NDArray[np.float64]
    covariance: NDArray[np.float64]
    effective: int


def _moments(
    numerators: Sequence[float], denominators: Sequence[float], weights: Sequence[float] | None
) -> _Moments:
    pairs = np.array([numerators, denominators], float)
    n = pairs.shape[1]
    w = np.full(n, 1 / n) if weights is None else np.asarray(weights, float) / np.sum(weights)
    shrink = float(w @ w)  # 1/n for equal weights
    means = pairs @ w
    centred = pairs - means[:, None]
    covariance = (w * centred) @ centred.T * shrink / (1 - shrink)
    return _Moments(means, covariance, int(1 / shrink + 1e-9))


def fieller_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    weights: Sequence[float] | None = None,
) -> Ratio:
    """Interval for mean(numerators) / mean(denominators) from n >= 2 independent pairs.

    The interval holds every ratio r for which mean(a - r b) cannot be told from zero (Fieller
    1954). It is unbounded when the denominator itself cannot be told from zero, which is what
    such data mean. Averages are taken before the division, because the mean of per-pair ratios
    is biased. Where the pairs drift, the interval is for the ratio of their averages, and the
    drift widens it.

    Args:
        numerators: one of each pair.
        denominators: the other.
        weights: of the pairs; equal where None. Student's t then has (sum w)^2 / sum w^2 - 1
            degrees of freedom (Kish 1965).

    >>> fieller_ratio([2.0, 2.2, 1.8], [1.0, 1.1, 0.9])
    Ratio(value=2.0, low=2.0, high=2.0)
    >>> fieller_ratio([2.0, 2.2, 1.8], [1.0, -1.1, 0.9]).high is None
    True
    """
    moments = _moments(numerators, denominators, weights)
    (mean_a, mean_b), covariance = moments.means.tolist(), moments.covariance
    t_squared = t_quantile(max(moments.effective - 1, 1)) ** 2
    # (mean_a - r mean_b)^2 <= t^2 Var(mean_a - r mean_b) is a quadratic inequality in r.
    square = mean_b**2 - t_squared * covariance[1, 1]
    cross = mean_a * mean_b - t_squared * covariance[0, 1]
    constant = mean_a**2 - t_squared * covariance[0, 0]
    root = float(np.sqrt(max(cross**2 - square * constant, 0.0)))
    value = mean_a / mean_b if mean_b > 0 else None
    if square > 0 and mean_b > 0:
        return Ratio(
            value, max(float(cross - root) / float(square), 0.0), float(cross + root) / float(square)
        )
    # Not bounded above: the inequality holds outside the roots, one of them positive, unless it also
    # holds at 0, where the numerator cannot be told from zero either.
    roots = [(cross - root) / square, (cross + root) / square] if square and constant > 0 else []
    return Ratio(value, float(max([0.0, *roots])), None)


def log_error_of_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    weights: Sequence[float] | None = None,
) -> float | None:
    """Standard error of log(mean(a) / mean(b)) by the delta method; None unless both are positive.

    >>> round(log_error_of_ratio([1.0, 1.2, 0.8], [1.0, 1.0, 1.0]), 4)
    0.1155
    """
    moments = _moments(numerators, denominators, weights)
    if moments.means.min() <= 0:
        return None
    gradient = np.array([1, -1]) / moments.means
    return float(np.sqrt(max(gradient @ moments.covariance @ gradient, 0.0)))


def jackknife(
    statistic: Callable[[NDArray[np.float64]], float], rows: NDArray[np.float64]
) -> tuple[float, float]:
    """A statistic of column means and its standard error, leaving out one row after another.

    Args:
        statistic: of the means, shape [columns]; smooth, such as a logarithm of a ratio.
        rows: independent samples, [n, columns]; at least 2.

    Returns:
        The statistic of all rows, and sqrt((n-1)/n sum (leave-one-out - their mean)^2); nan
        where the statistic has no value on some subset.
    """
    n = len(rows)
    means = rows.mean(axis=0)
    without = np.array([statistic(m) for m in (n * means - rows) / (n - 1)])
    return statistic(means), float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))


def median_standard_error(samples: NDArray[np.float64]) -> float:
    """Standard error of the median, from the spread of the middle half.

    The interquartile range over 1.349 is the standard deviation of a normal bulk whatever the
    outliers do; the median's error is sqrt(pi/2) times that of the mean.
    """
    q1, q3 = np.quantile(samples, [0.25, 0.75])
    return float((q3 - q1) / 1.349 * np.sqrt(np.pi / 2 / len(samples)))
