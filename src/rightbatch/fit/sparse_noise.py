"""Rare targets: the noise of the positives' part of the gradient beside that of the whole.

G = G+ + G-, the sums over positive and over other targets, both divided by all targets. The two
parts often nearly cancel, so that |G|^2 is a small rest and the noise scale of the whole swings
while that of the positives stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.plan import Interval
from rightbatch.core.samples import GradientSample
from rightbatch.fit.intervals import jackknife, t_quantile
from rightbatch.fit.noise_scale import NoiseScale, estimate_noise_scale, moments


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseNoise:
    """The positives' and the negatives' part of a gradient, at one stretch of training."""

    examples_seen: int
    positives: NoiseScale
    """B+, in examples."""
    negatives: NoiseScale
    norm_ratio: Interval | None
    """|G+| / |G|; None where either was lost in noise."""
    cosine: Interval | None
    """Between G+ and G-; near -1 where they cancel, and beyond by its error. None as above."""
    positives_per_example: float


def estimate_sparse_noise(samples: Sequence[GradientSample]) -> SparseNoise | None:
    """Estimate both parts' noise scales and how they stand to each other.

    <G+, G-> = (|G|^2 - |G+|^2 - |G-|^2) / 2 from unbiased squares; intervals by the jackknife over
    samples, with Student's t.

    Args:
        samples: taken at the same parameters, at least 3.

    Returns:
        None where the samples hold no positives' norms.

    Raises:
        MeasurementError: fewer than 3 samples.
    """
    parts = [(sample, sample.positives) for sample in samples if sample.positives]
    if len(parts) < len(samples) or not parts:
        return None
    positives = [
        sample.replace(small_sq_norm=p.positive_small_sq_norm, big_sq_norm=p.positive_big_sq_norm)
        for sample, p in parts
    ]
    negatives = [
        sample.replace(small_sq_norm=p.negative_small_sq_norm, big_sq_norm=p.negative_big_sq_norm)
        for sample, p in parts
    ]
    squares = np.array([
        [moments(s, s.small_sq_norm, s.big_sq_norm).grad_sq_norm for s in row]
        for row in zip(samples, positives, negatives, strict=True)
    ])
    whole, plus, minus = (estimate_noise_scale(part) for part in (samples, positives, negatives))
    return SparseNoise(
        examples_seen=samples[-1].examples_seen,
        positives=plus,
        negatives=minus,
        norm_ratio=_interval(_norm_ratio, squares) if whole.decided and plus.decided else None,
        cosine=_interval(_cosine, squares) if plus.decided and minus.decided else None,
        positives_per_example=float(np.mean([p.positives_per_example for _, p in parts])),
    )


def _norm_ratio(squares: NDArray[np.float64]) -> float:
    whole, positive, _ = squares
    return float(np.sqrt(positive / whole)) if min(whole, positive) > 0 else float("nan")


def _cosine(squares: NDArray[np.float64]) -> float:
    whole, positive, negative = squares
    if min(positive, negative) <= 0:
        return float("nan")
    return float((whole - positive - negative) / (2 * np.sqrt(positive * negative)))


def _interval(
    statistic: Callable[[NDArray[np.float64]], float], squares: NDArray[np.float64]
) -> Interval | None:
    value, error = jackknife(statistic, squares)
    if not np.isfinite([value, error]).all():
        return None
    half = t_quantile(len(squares) - 1) * error
    return Interval(value=value, low=value - half, high=value + half)
