"""Where the noise scale is heading as training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rightbatch.fit.intervals import NORMAL_QUANTILE, t_quantile
from rightbatch.fit.noise_scale import NoiseScale

Direction = Literal["growing", "shrinking", "flat", "undecided"]
# An exponent below this, 1.15 times per doubling of the examples, is as good as none.
FLAT_EXPONENT = 0.2
MIN_POINTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """The noise scale as a power of the examples seen, with its 90 % interval."""

    direction: Direction
    exponent: float | None
    """noise scale ~ examples ** exponent; None with fewer than 3 decided points."""
    low: float | None
    high: float | None
    num_points: int
    """Decided points that were fitted."""
    num_undecided: int
    """Points left out because nothing bounds them above."""


def fit_heading(points: Sequence[NoiseScale]) -> Heading:
    """Fit log(noise scale) = a + exponent log(examples seen) by weighted least squares.

    Each point weighs by its own error. Where the points scatter more than these errors say, because
    the growth is no power law, the interval is widened by the scatter. ``flat`` is claimed only
    where the whole interval is near 0. A late point without an upper bound may have grown beyond
    what was measured; then neither ``flat`` nor ``shrinking`` is claimed.

    Args:
        points: of one pilot; those at 0 examples and those undecided are left out.
    """
    usable = [p for p in points if p.decided and p.examples_seen > 0 and p.log_error]
    lost = [p for p in points if not p.decided]
    seen = {p.examples_seen for p in usable}
    if len(seen) < MIN_POINTS:
        return Heading(
            direction="undecided",
            exponent=None,
            low=None,
            high=None,
            num_points=len(usable),
            num_undecided=len(lost),
        )
    x = np.log([p.examples_seen for p in usable])
    y = np.log([p.noise_scale or 0.0 for p in usable])
    weights = 1 / np.square([p.log_error or 0.0 for p in usable])
    x_mean, y_mean = np.average(x, weights=weights), np.average(y, weights=weights)
    spread = float(weights @ (x - x_mean) ** 2)
    exponent = float(weights @ ((x - x_mean) * (y - y_mean))) / spread
    residuals = y - y_mean - exponent * (x - x_mean)
    degrees = len(x) - 2
    # Birge (1932): errors too small for the scatter are scaled up to it, never down.
    scatter = float(weights @ residuals**2) / degrees
    quantile = NORMAL_QUANTILE if scatter <= 1 else t_quantile(degrees)
    half = quantile * float(np.sqrt(max(scatter, 1.0) / spread))
    low, high = exponent - half, exponent + half
    lost_late = any(p.examples_seen > max(seen) / 2 for p in lost)
    return Heading(
        direction=_direction(low, high, lost_late=lost_late),
        exponent=exponent,
        low=low,
        high=high,
        num_points=len(usable),
        num_undecided=len(lost),
    )


def _direction(low: float, high: float, *, lost_late: bool) -> Direction:
    if low > 0:
        return "growing"
    if lost_late:
        return "undecided"
    if high < 0:
        return "shrinking"
    return "flat" if max(-low, high) <= FLAT_EXPONENT else "undecided"
