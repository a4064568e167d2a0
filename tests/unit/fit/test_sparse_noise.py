"""The positives' part of the gradient, from squared norms alone."""

import numpy as np
import pytest

import known
from rightbatch.core.samples import GradientSample, SparseNorms
from rightbatch.fit.sparse_noise import estimate_sparse_noise

MICRO, GROUPS = 8, 8


def samples(
    mean_positive: list[float], mean_negative: list[float], count: int = 12
) -> list[GradientSample]:
    """Batches of Gaussian gradients whose positives' and negatives' parts have these means."""
    rng = np.random.default_rng(0)
    found: list[GradientSample] = []
    for _ in range(count):
        positive = mean_positive + rng.standard_normal((GROUPS, 2)) / np.sqrt(MICRO)
        negative = mean_negative + 0.5 * rng.standard_normal((GROUPS, 2)) / np.sqrt(MICRO)
        norms = [
            (float((g**2).sum(axis=1).mean()), float((g.mean(axis=0) ** 2).sum()))
            for g in (positive + negative, positive, negative)
        ]
        (small, big), (positive_small, positive_big), (negative_small, negative_big) = norms
        found.append(
            known.sample(1.0, 1.0, small=MICRO, big=MICRO * GROUPS).replace(
                small_sq_norm=small,
                big_sq_norm=big,
                positives=SparseNorms(
                    positive_small_sq_norm=positive_small,
                    positive_big_sq_norm=positive_big,
                    negative_small_sq_norm=negative_small,
                    negative_big_sq_norm=negative_big,
                    positives_per_example=0.3,
                ),
            )
        )
    return found


def test_parts_that_nearly_cancel_are_seen_as_such() -> None:
    view = estimate_sparse_noise(samples([3.0, 0.0], [-2.0, 0.2]))
    assert view is not None
    # |G+|^2 = 9 and tr = 2; |G-|^2 = 4.04 and tr = 0.5; G = (1, 0.2).
    assert view.positives.low < 2 / 9 < (view.positives.high or 0)
    assert view.negatives.low < 0.5 / 4.04 < (view.negatives.high or 0)
    cosine, ratio = -2 / np.sqrt(4.04), 3 / np.sqrt(1.04)
    assert view.cosine is not None
    assert view.norm_ratio is not None
    assert (view.cosine.low or 0) < cosine < (view.cosine.high or 0)
    assert (view.norm_ratio.low or 0) < ratio < (view.norm_ratio.high or 0)
    assert view.cosine.value == pytest.approx(cosine, abs=0.02)
    assert view.positives_per_example == pytest.approx(0.3)


def test_parts_at_a_right_angle_have_a_cosine_of_zero() -> None:
    view = estimate_sparse_noise(samples([2.0, 0.0], [0.0, 2.0]))
    assert view is not None
    assert view.cosine is not None
    assert (view.cosine.low or 0) < 0 < (view.cosine.high or 0)
    assert abs(view.cosine.value) < 0.1


def test_a_part_lost_in_noise_has_no_cosine() -> None:
    view = estimate_sparse_noise(samples([0.0, 0.0], [2.0, 0.0]))
    assert view is not None
    assert view.cosine is None
    assert not view.positives.decided


def test_samples_without_positives_give_nothing() -> None:
    assert estimate_sparse_noise([known.sample(1.0, 1.0)] * 3) is None
    assert estimate_sparse_noise([]) is None
