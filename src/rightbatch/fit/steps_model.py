"""Optimizer steps to the target against batch size: S(B) = S_min (1 + B_crit / B).

McCandlish et al. (2018), arXiv:1812.06162, Eqs. 2.11-2.12, with the learning rate re-tuned at each
batch size. S_min is not known from a pilot, so only ratios between batch sizes are claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.facts import OptimizerFamily
from rightbatch.core.plan import Interval
from rightbatch.fit.calibration import calibrate
from rightbatch.fit.intervals import NORMAL_QUANTILE
from rightbatch.fit.noise_scale import NoiseScale

# An undecided noise scale is only known from below; its upper end is taken this far above.
UNDECIDED_RANGE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsModel:
    """The critical batch size with everything that is uncertain about it, in examples."""

    critical_batch_size: float
    low: float
    high: float
    decided: bool
    """False where the noise scale had no upper bound, so that ``high`` is an assumption."""
    calibration: float
    """Critical batch size over noise scale, as found in sweeps."""
    calibration_log_sd: float
    noise: NoiseScale
    """The average over the pilot from which this follows."""

    def examples_ratio(self, batch_size: float, reference: float) -> float:
        """Examples to the target at a batch size over those at a reference batch size."""
        return float(
            relative_examples(np.array(batch_size), reference, np.array(self.critical_batch_size))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What a batch size does, at the best learning rate for each batch size."""

    batch_size: int
    progress_per_step: Interval
    """Of a step with the true gradient: 1 / (1 + B_crit/B)."""
    progress_per_example: Interval
    """Of an example in the smallest batches: 1 / (1 + B/B_crit)."""
    steps_ratio: Interval
    """Steps to the same loss over today's."""
    examples_ratio: Interval
    """Examples to the same loss over today's."""


def batches_around(batch_size: int) -> list[int]:
    """A batch size and three halvings and doublings of it, in whole examples.

    >>> batches_around(6)
    [1, 2, 3, 6, 12, 24, 48]
    """
    return sorted({max(1, round(batch_size * 2.0**power)) for power in range(-3, 4)})


def gains(model: StepsModel, batch_sizes: Sequence[int], today: int) -> list[Gain]:
    """What each batch size gains (McCandlish et al. 2018, Eqs. 2.5-2.7 and 2.11-2.12).

    Every ratio is monotone in the critical batch size, so the ends of its interval give theirs.
    Where the noise scale has no upper bound, the limit of an infinite one takes its place, and the
    value is that at the lower bound.

    Args:
        model: its interval holds the error of the noise scale and of the calibration.
        batch_sizes: examples in a step.
        today: the batch size that the ratios refer to.
    """
    value = model.critical_batch_size if model.decided else model.low
    criticals = np.array([value, model.low, model.high if model.decided else np.inf])
    inverse = 1 / criticals  # stays finite where a critical batch size does not
    found: list[Gain] = []
    for batch in batch_sizes:
        per_step = batch * inverse / (1 + batch * inverse)
        steps = today / batch * (1 + batch * inverse) / (1 + today * inverse)
        found.append(
            Gain(
                batch_size=batch,
                progress_per_step=_interval(per_step),
                progress_per_example=_interval(1 - per_step),
                steps_ratio=_interval(steps),
                examples_ratio=_interval(steps * batch / today),
            )
        )
    return found


def _interval(values: NDArray[np.float64]) -> Interval:
    """The first value, between the smallest and the largest."""
    return Interval(value=float(values[0]), low=float(values.min()), high=float(values.max()))


def relative_examples(
    batch_size: NDArray[np.float64], reference: float, critical: NDArray[np.float64]
) -> NDArray[np.float64]:
    """E(B) / E(B_ref) with E(B) = E_min (1 + B / B_crit); shapes broadcast.

    >>> float(relative_examples(np.array(96.0), 32.0, np.array(64.0)))
    1.6666666666666667
    """
    return (critical + batch_size) / (critical + reference)


def fit_steps(noise: NoiseScale, family: OptimizerFamily, *, preconditioned: bool) -> StepsModel:
    """Turn an averaged noise scale into a critical batch size with an honest interval.

    Args:
        noise: average over the pilot.
        family: of the optimizer; the calibration depends on it.
        preconditioned: whether the norms were weighted by Adam's preconditioner.
    """
    factor, log_sd = calibrate(family, preconditioned=preconditioned and family == "adam")
    if noise.noise_scale is None or noise.high is None:
        low = max(noise.low, 1.0) * factor / float(np.exp(NORMAL_QUANTILE * log_sd))
        high = max(noise.low, 1.0) * factor * UNDECIDED_RANGE
        centre = float(np.sqrt(low * high))
    else:
        # Half-widths of the two independent log intervals add in squares.
        spread = NORMAL_QUANTILE * log_sd
        # No update holds less than an example: a noise scale below cannot be told from 1.
        least, middle, most = (max(scale, 1.0) for scale in (noise.low, noise.noise_scale, noise.high))
        centre = middle * factor
        low = centre / float(np.exp(np.hypot(np.log(middle / least), spread)))
        high = centre * float(np.exp(np.hypot(np.log(most / middle), spread)))
    return StepsModel(
        critical_batch_size=centre,
        low=low,
        high=high,
        decided=noise.decided,
        calibration=factor,
        calibration_log_sd=log_sd,
        noise=noise,
    )
