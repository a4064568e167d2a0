"""Gradient noise scale: how many examples one step can usefully average.

Notation of McCandlish et al. (2018), arXiv:1812.06162, Eqs. 2.9 and A.1-A.2:
    G         true gradient, shape [D]; |G|^2 is its squared norm
    Sigma     covariance of one example's gradient, [D, D]; only tr(Sigma) is used
    B_simple  tr(Sigma) / |G|^2, in examples
With a preconditioned optimizer each coordinate's square is first divided by sqrt(v) + eps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.errors import MeasurementError
from rightbatch.core.samples import GradientSample
from rightbatch.fit.intervals import NORMAL_QUANTILE, fieller_ratio

MIN_SAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScale:
    """An estimate of B_simple with its 90 % interval, in examples."""

    examples_seen: int
    noise_scale: float | None
    """None where the mean |G|^2 is not positive: the data cannot tell the noise scale from infinity."""
    low: float
    high: float | None
    """None where the data set no upper bound."""
    grad_sq_norm: float
    """Unbiased estimate of |G|^2; may be negative, and is shown so."""
    trace_covariance: float
    """Unbiased estimate of tr(Sigma)."""
    num_samples: int
    source: str
    """How the norms were taken, with ``preconditioned`` where they were."""

    @property
    def decided(self) -> bool:
        """Whether |G|^2 can be told from zero, so that the scale is bounded on both sides."""
        return self.noise_scale is not None and self.high is not None


def estimate_noise_scale(
    samples: Sequence[GradientSample], *, preconditioned: bool = False
) -> NoiseScale:
    """Estimate B_simple from squared gradient norms at two batch sizes.

    For independent examples E|g_B|^2 = |G|^2 + tr(Sigma)/B, so each pair gives unbiased estimates
    of both terms, but not of their ratio: average first, divide last.

    Args:
        samples: pairs taken at the same parameters; at least 3.
        preconditioned: use the norms weighted by the optimizer's preconditioner.

    Raises:
        MeasurementError: fewer than 3 samples, or none preconditioned when that was asked for.
    """
    if len(samples) < MIN_SAMPLES:
        hint = "give the measurement more time: --time-budget"
        raise MeasurementError(
            f"{len(samples)} gradient sample(s)", need=f"at least {MIN_SAMPLES}", hint=hint
        )
    pairs = [_norms(sample, preconditioned) for sample in samples]
    sizes = [(sample.small_batch_size, sample.big_batch_size) for sample in samples]
    zipped = list(zip(sizes, pairs, strict=True))
    signal = [(B * big - b * small) / (B - b) for (b, B), (small, big) in zipped]
    noise = [(small - big) / (1 / b - 1 / B) for (b, B), (small, big) in zipped]
    ratio = fieller_ratio(noise, signal)
    return NoiseScale(
        examples_seen=samples[-1].examples_seen,
        noise_scale=ratio.value,
        low=ratio.low,
        high=ratio.high,
        grad_sq_norm=float(np.mean(signal)),
        trace_covariance=float(np.mean(noise)),
        num_samples=len(samples),
        source=samples[0].source + (", preconditioned" if preconditioned else ""),
    )


def noise_over_training(
    samples: Sequence[GradientSample], *, preconditioned: bool = False
) -> list[NoiseScale]:
    """One estimate for each point of the pilot with enough samples, in order of training."""
    ordered = sorted(samples, key=lambda sample: sample.examples_seen)
    points = [list(group) for _, group in groupby(ordered, key=lambda sample: sample.examples_seen)]
    return [
        estimate_noise_scale(p, preconditioned=preconditioned) for p in points if len(p) >= MIN_SAMPLES
    ]


def average_over_training(points: Sequence[NoiseScale]) -> NoiseScale:
    """Average the noise scale over a pilot, by the trapezoidal rule in examples seen.

    The logarithm is averaged: the scale grows by orders of magnitude during training, and a plain
    mean would be its last value. A point that is not bounded above enters with its lower bound,
    and leaves the average unbounded above too.

    Raises:
        MeasurementError: no points.
    """
    if not points:
        hint = "give the measurement more time: --time-budget"
        raise MeasurementError("0 points with a noise scale", need="at least 1", hint=hint)
    weights = _trapezoid_weights(np.array([point.examples_seen for point in points], float))
    decided = all(point.decided for point in points)
    # A lower bound of 0 carries no information about the logarithm; one example is its floor.
    lows = np.log([max(point.low, 1.0) for point in points])
    centres = np.log([_centre(point) for point in points])
    highs = np.log([point.high or 1.0 for point in points])
    log_mean = float(weights @ centres)
    # Errors of different points are independent: variances add, with squared weights.
    down = float(np.sqrt((weights**2) @ np.maximum(centres - lows, 0) ** 2))
    up = float(np.sqrt((weights**2) @ np.maximum(highs - centres, 0) ** 2))
    return NoiseScale(
        examples_seen=points[-1].examples_seen,
        noise_scale=float(np.exp(log_mean)),
        low=float(np.exp(log_mean - down)) if decided else float(np.exp(weights @ lows)),
        high=float(np.exp(log_mean + up)) if decided else None,
        grad_sq_norm=points[-1].grad_sq_norm,
        trace_covariance=points[-1].trace_covariance,
        num_samples=sum(point.num_samples for point in points),
        source=points[0].source,
    )


def steps_for_precision(scale: NoiseScale, relative_error: float) -> int | None:
    """How many samples like these would bring the interval's half-width to a relative error.

    The half-width shrinks as 1/sqrt(n). None where the scale is undecided: its width is unknown.
    """
    if scale.high is None or not scale.noise_scale:
        return None
    log_sd = float(np.log(scale.high / max(scale.low, 1e-12))) / (2 * NORMAL_QUANTILE)
    wanted = float(np.log1p(relative_error)) / NORMAL_QUANTILE
    return max(1, int(np.ceil(scale.num_samples * (log_sd / wanted) ** 2)))


def _trapezoid_weights(seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights, adding to 1, of values at these positions; the first value holds back to 0."""
    gaps = np.diff(seen)
    weights = (np.append(gaps, 0.0) + np.insert(gaps, 0, 0.0)) / 2
    weights[0] += max(seen[0], 1.0)  # 1: a single point at 0 examples still counts
    return weights / weights.sum()


def _norms(sample: GradientSample, preconditioned: bool) -> tuple[float, float]:
    if not preconditioned:
        return sample.small_sq_norm, sample.big_sq_norm
    small, big = sample.preconditioned_small_sq_norm, sample.preconditioned_big_sq_norm
    if small is None or big is None:
        found = f"no preconditioned norms at {sample.examples_seen} examples"
        raise MeasurementError(
            found, need="an optimizer with second moments", hint="use the plain noise scale"
        )
    return small, big


def _centre(point: NoiseScale) -> float:
    return max(point.noise_scale, 1.0) if point.decided and point.noise_scale else max(point.low, 1.0)
