"""From a noise scale to examples at any batch size, with everything uncertain in it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rightbatch.fit.calibration import calibrate
from rightbatch.fit.intervals import NORMAL_QUANTILE
from rightbatch.fit.noise_scale import NoiseScale
from rightbatch.fit.steps_model import (
    UNDECIDED_RANGE,
    StepsModel,
    batches_around,
    fit_steps,
    gains,
    relative_examples,
)

SIZE = st.floats(1, 1e6)


def noise(value: float | None, low: float, high: float | None) -> NoiseScale:
    return NoiseScale(
        examples_seen=1000,
        noise_scale=value,
        low=low,
        high=high,
        grad_sq_norm=1.0,
        trace_covariance=1.0,
        num_samples=10,
        source="micro-batches",
    )


@settings(deadline=None)
@given(batch=SIZE, reference=SIZE, critical=SIZE)
def test_relative_examples_is_the_hyperbola_of_mccandlish(
    batch: float, reference: float, critical: float
) -> None:
    ratio = float(relative_examples(np.array(batch), reference, np.array(critical)))
    back = float(relative_examples(np.array(reference), batch, np.array(critical)))
    assert ratio * back == pytest.approx(1.0)
    # E = E_min (1 + B / B_crit) and S = E / B = S_min (1 + B_crit / B).
    assert ratio == pytest.approx((1 + batch / critical) / (1 + reference / critical))
    steps = ratio * reference / batch
    assert steps == pytest.approx((1 + critical / batch) / (1 + critical / reference))


def test_at_the_critical_batch_size_examples_double_over_the_smallest() -> None:
    assert float(relative_examples(np.array(1e6), 1e-9, np.array(1e6))) == pytest.approx(2.0)


def test_a_decided_scale_is_calibrated_and_its_errors_add_in_squares() -> None:
    model = fit_steps(noise(100.0, 80.0, 125.0), "sgd", preconditioned=False)
    factor, log_sd = calibrate("sgd", preconditioned=False)
    half = np.hypot(np.log(1.25), NORMAL_QUANTILE * log_sd)
    assert model.critical_batch_size == pytest.approx(100 * factor)
    assert np.log(model.high / model.critical_batch_size) == pytest.approx(half)
    assert np.log(model.critical_batch_size / model.low) == pytest.approx(half)
    assert model.decided
    assert model.examples_ratio(200 * factor, 100 * factor) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("family", "preconditioned", "taken"),
    [("sgd", True, False), ("adam", True, True), ("adam", False, False), ("other", True, False)],
)
def test_the_calibration_is_that_of_the_optimizer(
    family: str, preconditioned: bool, taken: bool
) -> None:
    model = fit_steps(noise(100.0, 99.0, 101.0), family, preconditioned=preconditioned)  # type: ignore[arg-type]
    wanted = calibrate(family, preconditioned=taken)  # type: ignore[arg-type]
    assert (model.calibration, model.calibration_log_sd) == wanted


@pytest.mark.parametrize("scale", [noise(None, 50.0, None), noise(300.0, 50.0, None)])
def test_an_undecided_scale_reaches_a_stated_range_above_its_bound(scale: NoiseScale) -> None:
    model = fit_steps(scale, "sgd", preconditioned=False)
    factor, log_sd = calibrate("sgd", preconditioned=False)
    assert not model.decided
    assert model.low == pytest.approx(50 * factor / np.exp(NORMAL_QUANTILE * log_sd))
    assert model.high == pytest.approx(50 * factor * UNDECIDED_RANGE)
    assert model.low < model.critical_batch_size < model.high


@settings(deadline=None)
@given(
    value=st.floats(1e-3, 1e6),
    below=st.floats(1, 100),
    above=st.floats(1, 100),
    family=st.sampled_from(["sgd", "adam", "other"]),
)
def test_the_interval_holds_the_value_whatever_the_scale(
    value: float, below: float, above: float, family: str
) -> None:
    model: StepsModel = fit_steps(
        noise(value, value / below, value * above),
        family,  # type: ignore[arg-type]
        preconditioned=False,
    )
    assert 0 < model.low <= model.critical_batch_size <= model.high


def test_gains_are_the_formulas_at_the_critical_batch_size() -> None:
    model = fit_steps(noise(100.0, 80.0, 125.0), "sgd", preconditioned=False)
    critical = model.critical_batch_size
    small, same, large = gains(model, [16, 64, 256], 64)
    assert large.progress_per_step.value == pytest.approx(1 / (1 + critical / 256))
    assert large.progress_per_example.value == pytest.approx(1 / (1 + 256 / critical))
    assert large.steps_ratio.value == pytest.approx((1 + critical / 256) / (1 + critical / 64))
    assert large.examples_ratio.value == pytest.approx(model.examples_ratio(256, 64))
    assert (same.steps_ratio.low, same.steps_ratio.high) == pytest.approx((1.0, 1.0))
    for gain in (small, large):
        for interval in (gain.progress_per_step, gain.progress_per_example, gain.steps_ratio):
            assert (interval.low or 0) < interval.value < (interval.high or 0)
    assert small.steps_ratio.value > 1 > large.steps_ratio.value


def test_gains_of_an_undecided_scale_reach_the_limit_of_an_infinite_one() -> None:
    model = fit_steps(noise(None, 50.0, None), "sgd", preconditioned=False)
    (large,) = gains(model, [256], 64)
    assert large.steps_ratio.low == pytest.approx(64 / 256)  # every example as good as the first
    assert large.examples_ratio.low == pytest.approx(1.0)
    assert large.progress_per_step.low == 0.0
    assert large.steps_ratio.high == pytest.approx((1 + model.low / 256) / (1 + model.low / 64))


def test_batches_around_a_small_one_are_whole() -> None:
    assert batches_around(1) == [1, 2, 4, 8]
    assert batches_around(32) == [4, 8, 16, 32, 64, 128, 256]


@pytest.mark.parametrize("value", [0.0, -3.0, 0.4])
def test_a_noise_scale_below_one_example_is_not_told_from_one(value: float) -> None:
    model = fit_steps(noise(value, value - 1, value + 1), "sgd", preconditioned=False)
    one = fit_steps(noise(1.0, 1.0, max(value + 1, 1.0)), "sgd", preconditioned=False)
    assert model.critical_batch_size == one.critical_batch_size
    assert (model.low, model.high) == (one.low, one.high)
