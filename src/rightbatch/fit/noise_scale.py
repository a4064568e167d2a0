"""Gradient noise scale: how many examples one step can usefully average.

Notation of McCandlish et al. (2018), arXiv:1812.06162, Eqs. 2.9 and A.1-A.2:
    G         true gradient, shape [D]; |G|^2 is its squared norm
    Sigma     covariance of one example's gradient, [D, D]; only tr(Sigma) is used
    B_simple  tr(Sigma) / |G|^2, in examples
    b, B      sizes of a small and a large batch at the same parameters
With a preconditioned optimizer each coordinate's square is first divided by sqrt(v) + eps. Batches
drawn without replacement from N examples vary less: 1/b becomes (1/b)(N - b)/(N - 1) (footnote 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.errors import InvalidInputError, MeasurementError
from rightbatch.core.notebook import Shown
from rightbatch.core.samples import GradientSample
from rightbatch.fit.intervals import NORMAL_QUANTILE, fieller_ratio, log_error_of_ratio

MIN_SAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseScale(Shown):
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
    """How the norms were taken, with ``preconditioned`` where they were, and what couples examples."""
    log_error: float | None = None
    """Standard error of the logarithm of ``noise_scale``; None where that has no value."""
    targets_per_example: float = 1.0
    """Counted targets, such as tokens, in an example: the scale times this is the scale in targets."""
    covered: float = 1.0
    """Share of the trainable parameters whose gradients were seen."""

    @property
    def decided(self) -> bool:
        """Whether |G|^2 can be told from zero, so that the scale is bounded on both sides."""
        return self.noise_scale is not None and self.high is not None


class Moments(NamedTuple):
    """Unbiased estimates from one pair of norms; either may come out negative."""

    grad_sq_norm: float
    """Of |G|^2."""
    trace_covariance: float
    """Of tr(Sigma)."""


def moments(sample: GradientSample, small_sq_norm: float, big_sq_norm: float) -> Moments:
    """|G|^2 and tr(Sigma) from squared norms at the sample's two batch sizes (Eqs. A.1-A.2).

    Args:
        sample: gives the sizes and the population they were drawn from.
        small_sq_norm: mean over the small batches.
        big_sq_norm: of their union.

    Raises:
        MeasurementError: the small batch is not smaller, or the large one larger than its population.
    """
    b, big = sample.small_batch_size, sample.big_batch_size
    population = sample.population
    if not 0 < b < big or (population is not None and not max(big, 2) <= population):
        found = f"batches of {b:g} and {big:g} examples" + (
            f" out of {population}" if population else ""
        )
        need, hint = "0 < small < big, and big <= population", "measure at two batch sizes"
        raise MeasurementError(found, need=need, hint=hint)
    per_small, per_big = (_variance_share(size, population) for size in (b, big))
    trace = (small_sq_norm - big_sq_norm) / (per_small - per_big)
    return Moments(big_sq_norm - trace * per_big, trace)


def _variance_share(size: float, population: int | None) -> float:
    """Variance of a batch's mean over that of one example."""
    return (
        1 / size if population is None else (1 / size - 1 / population) * population / (population - 1)
    )


def estimate_noise_scale(
    samples: Sequence[GradientSample],
    *,
    preconditioned: bool = False,
    half_life_examples: float | None = None,
) -> NoiseScale:
    """Estimate B_simple from squared gradient norms at two batch sizes.

    For independent examples E|g_B|^2 = |G|^2 + tr(Sigma)/B, so each pair gives unbiased estimates
    of both terms, but not of their ratio: average first, divide last. Over a stretch of training
    it is the ratio of the two averages; a drift of either widens the interval.

    Args:
        samples: pairs of norms, in order of training; at least 3.
        preconditioned: use the norms weighted by the optimizer's preconditioner.
        half_life_examples: weight of a sample halves with every so many examples that training has
            seen since; None weights all alike. A growing scale is then seen late by the growth over
            1.44 half-lives.

    Raises:
        InvalidInputError: a half-life that is not positive.
        MeasurementError: fewer than 3 samples, or none preconditioned when that was asked for.
    """
    if len(samples) < MIN_SAMPLES:
        hint = "give the measurement more time: --time-budget"
        raise MeasurementError(
            f"{len(samples)} gradient sample(s)", need=f"at least {MIN_SAMPLES}", hint=hint
        )
    pairs = [moments(sample, *_norms(sample, preconditioned)) for sample in samples]
    signal, noise = ([pair[k] for pair in pairs] for k in (0, 1))
    weights = _weights([s.examples_seen for s in samples], half_life_examples)
    ratio = fieller_ratio(noise, signal, weights)
    coupling = next((s.coupling for s in samples if s.coupling), None)
    return NoiseScale(
        examples_seen=samples[-1].examples_seen,
        noise_scale=ratio.value,
        low=ratio.low,
        high=ratio.high,
        grad_sq_norm=float(np.average(signal, weights=weights)),
        trace_covariance=float(np.average(noise, weights=weights)),
        num_samples=len(samples),
        source=samples[0].source
        + (", preconditioned" if preconditioned else "")
        + (f", coupled by {coupling}" if coupling else ""),
        log_error=log_error_of_ratio(noise, signal, weights),
        targets_per_example=float(np.average([s.targets_per_example for s in samples])),
        covered=min(s.covered for s in samples),
    )


def _weights(seen: Sequence[int], half_life: float | None) -> list[float]:
    if half_life is None:
        return [1.0] * len(seen)
    if not half_life > 0:
        found = f"half_life_examples = {half_life}"
        raise InvalidInputError(
            found, need="a positive number of examples", hint="None weights all alike"
        )
    return [2 ** ((at - max(seen)) / half_life) for at in seen]


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

    B_crit of S = S_min (1 + B_crit/B) is the mean of the noise scale over the run (McCandlish et al.
    2018, Appendix D); sums of tr(Sigma) and |G|^2 over a whole run would be ruled by its large early
    gradients instead.

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
        log_error=_pooled_error(points, weights),
        targets_per_example=float(weights @ [point.targets_per_example for point in points]),
        covered=min(point.covered for point in points),
    )


def steps_needed(scale: NoiseScale, relative_error: float) -> int | None:
    """How many more samples like these bring the 90 % interval to within a relative error.

    The error of the logarithm shrinks as 1/sqrt(n). Where the scale is undecided it is itself
    poorly known, and the answer with it. None where |G|^2 came out negative: nothing can be said.

    Args:
        scale: from at least 3 samples.
        relative_error: half-width wanted, such as 0.2: the upper end is then 1.2 times the value.

    Raises:
        InvalidInputError: the relative error is not positive.
    """
    if not relative_error > 0:
        found = f"relative_error = {relative_error}"
        raise InvalidInputError(found, need="a positive share", hint="0.2 asks for 20 %")
    if scale.log_error is None:
        return None
    wanted = float(np.log1p(relative_error)) / NORMAL_QUANTILE
    total = scale.num_samples * (scale.log_error / wanted) ** 2
    return max(0, int(np.ceil(total)) - scale.num_samples)


def _pooled_error(points: Sequence[NoiseScale], weights: NDArray[np.float64]) -> float | None:
    errors = [point.log_error for point in points]
    if any(error is None for error in errors):
        return None
    return float(np.hypot.reduce(weights * np.array(errors, float)))


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
