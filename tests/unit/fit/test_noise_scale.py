"""The noise scale from pairs of norms, and its average over a pilot."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

import known
from rightbatch.core.errors import InvalidInputError, MeasurementError
from rightbatch.core.samples import GradientSample
from rightbatch.fit.intervals import NORMAL_QUANTILE
from rightbatch.fit.noise_scale import (
    NoiseScale,
    average_over_training,
    estimate_noise_scale,
    moments,
    noise_over_training,
    steps_needed,
)


def point(seen: int, value: float, low: float | None = None, high: float | None = 0.0) -> NoiseScale:
    return NoiseScale(
        examples_seen=seen,
        noise_scale=value,
        low=value if low is None else low,
        high=value if high == 0.0 else high,
        grad_sq_norm=1.0,
        trace_covariance=value,
        num_samples=6,
        source="micro-batches",
    )


def noisy_samples(rng: np.random.Generator, count: int, **sizes: int) -> list[GradientSample]:
    """Around |G|^2 = 2 and tr(Sigma) = 60, with errors far smaller than either."""
    rough = rng.standard_normal((count, 2))
    return [known.sample(2 + 0.3 * a, 60 + 2 * b, **sizes) for a, b in rough]


def test_exact_norms_give_back_both_terms_and_their_ratio() -> None:
    scale = estimate_noise_scale([known.sample(2.0, 60.0)] * 3)
    assert scale.grad_sq_norm == pytest.approx(2.0)
    assert scale.trace_covariance == pytest.approx(60.0)
    assert (scale.noise_scale, scale.low, scale.high) == pytest.approx((30.0, 30.0, 30.0))
    assert (scale.decided, scale.num_samples, scale.source) == (True, 3, "micro-batches")


def test_samples_of_different_batch_sizes_are_pooled() -> None:
    mixed = [known.sample(2.0, 60.0, small=s, big=b) for s, b in ((1, 8), (6.4, 16), (32, 1024))]
    assert estimate_noise_scale(mixed).noise_scale == pytest.approx(30.0)


def test_averages_are_taken_before_the_division() -> None:
    uneven = [known.sample(s, n) for s, n in ((0.5, 60.0), (1.0, 60.0), (4.5, 60.0))]
    scale = estimate_noise_scale(uneven)
    assert scale.noise_scale == pytest.approx(60 / 2)  # the mean of ratios is 64.4


def test_a_gradient_lost_in_noise_is_undecided_with_a_lower_bound() -> None:
    lost = [known.sample(s, 60.0 + s) for s in (-1.0, 1.2, -0.4, 0.9, 0.1, -0.2)]
    scale = estimate_noise_scale(lost)
    assert (scale.decided, scale.high) == (False, None)
    assert scale.grad_sq_norm == pytest.approx(0.1)
    assert scale.low > 10


def test_a_negative_estimate_is_shown_as_it_is() -> None:
    scale = estimate_noise_scale([known.sample(s, 60.0) for s in (-1.0, -1.2, 0.1)])
    assert scale.noise_scale is None
    assert scale.grad_sq_norm == pytest.approx(-0.7)
    assert not scale.decided


def test_fewer_than_three_samples_are_refused() -> None:
    with pytest.raises(MeasurementError, match=r"2 gradient sample.*at least 3"):
        estimate_noise_scale([known.sample(1.0, 1.0)] * 2)


def test_preconditioned_norms_are_used_only_where_asked_for() -> None:
    weighted = known.sample(2.0, 60.0).replace(
        preconditioned_small_sq_norm=1 + 10 / 32, preconditioned_big_sq_norm=1 + 10 / 256
    )
    plain = estimate_noise_scale([weighted] * 3)
    adam = estimate_noise_scale([weighted] * 3, preconditioned=True)
    assert plain.noise_scale == pytest.approx(30)
    assert adam.noise_scale == pytest.approx(10)
    assert adam.source == "micro-batches, preconditioned"
    with pytest.raises(MeasurementError, match="no preconditioned norms at 1000 examples"):
        estimate_noise_scale([weighted, weighted, known.sample(2.0, 60.0)], preconditioned=True)


def test_points_come_in_order_and_those_with_too_few_samples_are_left_out() -> None:
    samples = [known.sample(1.0, float(seen), seen=seen) for seen in (300, 100, 200) for _ in range(3)]
    samples += [known.sample(1.0, 1.0, seen=400)] * 2
    points = noise_over_training(samples)
    assert [p.examples_seen for p in points] == [100, 200, 300]
    assert [p.noise_scale for p in points] == pytest.approx([100, 200, 300])


def test_a_single_point_is_its_own_average() -> None:
    scale = average_over_training([point(0, 50.0, 40.0, 70.0)])
    assert (scale.noise_scale, scale.low, scale.high) == pytest.approx((50, 40, 70))


def test_the_logarithm_is_averaged_by_the_trapezoidal_rule() -> None:
    # From 0 to 100 the first value holds; then two trapezoids of 100 and 200 examples.
    points = [point(100, 10.0), point(200, 100.0), point(400, 1000.0)]
    weights = np.array([100 + 50, 50 + 100, 100]) / 400
    expected = np.exp(weights @ np.log([10, 100, 1000]))
    scale = average_over_training(points)
    assert scale.noise_scale == pytest.approx(expected)
    assert scale.noise_scale != pytest.approx(np.exp(np.log([10, 100, 1000]).mean()))
    assert (scale.examples_seen, scale.num_samples) == (400, 18)


def test_independent_errors_of_the_points_average_out() -> None:
    factor = 2.0
    points = [point(seen, 50.0, 50 / factor, 50 * factor) for seen in (100, 200, 300, 400)]
    scale = average_over_training(points)
    weights = np.array([150, 100, 100, 50]) / 400
    assert scale.high is not None
    assert np.log(scale.high / 50) == pytest.approx(np.log(factor) * np.sqrt((weights**2).sum()))
    assert scale.low == pytest.approx(50**2 / scale.high)


def test_one_undecided_point_leaves_the_average_undecided() -> None:
    points = [point(100, 50.0, 40.0, 60.0), point(200, 500.0, 80.0, None)]
    scale = average_over_training(points)
    assert (scale.decided, scale.high) == (False, None)
    weights = np.array([150, 50]) / 200
    assert scale.low == pytest.approx(np.exp(weights @ np.log([40, 80])))
    # The undecided point enters with its bound of 80 and not with its meaningless 500.
    assert scale.noise_scale == pytest.approx(np.exp(weights @ np.log([50, 80])))


def test_no_points_are_refused() -> None:
    with pytest.raises(MeasurementError, match="0 points with a noise scale"):
        average_over_training([])


def test_four_times_the_samples_halve_the_interval() -> None:
    wide = replace(point(100, 50.0), log_error=np.log(1.5) / NORMAL_QUANTILE)  # +50 % from 6 samples
    assert steps_needed(wide, 0.5) == 0
    assert steps_needed(wide, np.sqrt(1.5) - 1) in {18, 19}  # 24 in all
    assert steps_needed(point(100, 50.0), 0.5) is None  # no error is known
    with pytest.raises(InvalidInputError, match=r"relative_error = 0\.0; need a positive share"):
        steps_needed(wide, 0.0)


def test_the_forecast_of_samples_holds_when_they_are_taken() -> None:
    rng = np.random.default_rng(2)
    wanted = 0.02
    few = estimate_noise_scale(noisy_samples(rng, 40))
    more = steps_needed(few, wanted)
    assert more is not None
    assert more > 40
    many = estimate_noise_scale(noisy_samples(rng, 40 + more))
    assert many.high is not None
    assert many.noise_scale is not None
    assert many.high / many.noise_scale - 1 == pytest.approx(wanted, rel=0.25)


def test_recent_samples_weigh_more_by_their_half_life() -> None:
    old, new = known.sample(1.0, 10.0, seen=0), known.sample(1.0, 100.0, seen=1000)
    samples = [old] * 3 + [new] * 3
    assert estimate_noise_scale(samples).noise_scale == pytest.approx(55)
    smoothed = estimate_noise_scale(samples, half_life_examples=1000)
    assert smoothed.noise_scale == pytest.approx((10 * 0.5 + 100) / 1.5)
    assert estimate_noise_scale(samples, half_life_examples=50).noise_scale == pytest.approx(
        100, rel=1e-3
    )
    with pytest.raises(InvalidInputError, match="half_life_examples = 0"):
        estimate_noise_scale(samples, half_life_examples=0)


def test_weighting_loses_samples_and_so_widens_the_interval() -> None:
    rng = np.random.default_rng(3)
    rough = noisy_samples(rng, 60)
    spaced = [sample.replace(examples_seen=100 * k) for k, sample in enumerate(rough)]
    all_alike = estimate_noise_scale(spaced)
    recent = estimate_noise_scale(spaced, half_life_examples=400)
    assert recent.high is not None
    assert all_alike.high is not None
    assert recent.high - recent.low > 1.5 * (all_alike.high - all_alike.low)
    assert recent.low < 30 < recent.high


def test_batches_that_are_much_of_the_data_are_corrected_exactly() -> None:
    # Every batch of 2 and of 5 out of 6 numbers, drawn without replacement: nothing is random.
    gradients = np.array([1.0, 3.0, -2.0, 0.5, 4.0, 2.5])
    norms = {
        size: float(np.mean([np.mean(c) ** 2 for c in combinations(gradients, size)]))
        for size in (2, 5)
    }
    sample = GradientSample(
        examples_seen=0,
        small_batch_size=2,
        big_batch_size=5,
        small_sq_norm=norms[2],
        big_sq_norm=norms[5],
        population=6,
    )
    found = moments(sample, norms[2], norms[5])
    assert found == pytest.approx((gradients.mean() ** 2, gradients.var()), rel=1e-12)
    naive = moments(sample.replace(population=None), norms[2], norms[5])
    assert naive.trace_covariance == pytest.approx(gradients.var() * 6 / 5)  # 20 % too high
    whole = sample.replace(big_batch_size=6)
    assert moments(whole, norms[2], float(gradients.mean() ** 2)) == pytest.approx(found)


@pytest.mark.parametrize(
    ("small", "big", "population"), [(8, 8, None), (9, 8, None), (0, 8, None), (2, 8, 7), (0.5, 1, 1)]
)
def test_sizes_that_give_no_estimate_are_refused(
    small: float, big: int, population: int | None
) -> None:
    sample = known.sample(1.0, 1.0).replace(
        small_batch_size=small, big_batch_size=big, population=population
    )
    with pytest.raises(MeasurementError, match="need 0 < small < big, and big <= population"):
        moments(sample, 1.0, 1.0)


def test_what_the_samples_covered_and_counted_stays_with_the_estimate() -> None:
    counted = [
        known.sample(2.0, 60.0).replace(targets_per_example=t, covered=c, coupling="batch-norm")
        for t, c in ((10.0, 1.0), (12.0, 0.9), (14.0, 0.95))
    ]
    scale = estimate_noise_scale(counted)
    assert (scale.targets_per_example, scale.covered) == (12.0, 0.9)
    assert scale.source == "micro-batches, coupled by batch-norm"
    average = average_over_training([scale, replace(scale, targets_per_example=12.0)])
    assert (average.targets_per_example, average.covered) == (12.0, 0.9)


def test_more_samples_give_a_narrower_interval_around_the_truth() -> None:
    rng = np.random.default_rng(1)
    few, many = (estimate_noise_scale(noisy_samples(rng, n)) for n in (6, 96))
    assert few.high is not None
    assert many.high is not None
    assert many.low < 30 < many.high
    assert many.high - many.low < 0.5 * (few.high - few.low)
