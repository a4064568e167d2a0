"""Student's t for whole degrees of freedom, exact: its distribution and its quantiles."""

from __future__ import annotations

import math


def t_cdf(t: float, degrees: int) -> float:
    """Probability that Student's t is below ``t``.

    Finite sums in theta = atan(t / sqrt(degrees)) (Abramowitz and Stegun 1964, Eqs. 26.7.3-26.7.4).

    Args:
        t: where.
        degrees: of freedom, at least 1.

    >>> round(t_cdf(2.776445, 4), 6), t_cdf(0.0, 7)
    (0.975, 0.5)
    """
    theta = math.atan(t / math.sqrt(degrees))
    cos, sin = math.cos(theta), math.sin(theta)
    term, total = (1.0, 1.0) if degrees % 2 == 0 else (cos, cos)
    for j in range(1 + degrees % 2, degrees - 2, 2):
        term *= cos * cos * j / (j + 1)
        total += term
    if degrees % 2 == 0:
        inside = sin * total
    else:
        inside = 2 / math.pi * (theta + (sin * total if degrees > 1 else 0.0))
    return 0.5 + 0.5 * inside


def t_quantile(probability: float, degrees: int) -> float:
    """The value that Student's t stays below with a probability.

    >>> [round(t_quantile(0.975, n), 3) for n in (1, 2, 4, 30)]
    [12.706, 4.303, 2.776, 2.042]
    """
    low, high = -1.0, 1.0
    while t_cdf(low, degrees) > probability:
        low *= 2
    while t_cdf(high, degrees) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2
