"""Step times between the sizes that were measured, and no claim beyond them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rightbatch.core.errors import InvalidInputError, MeasurementError
from rightbatch.core.samples import StepTiming
from rightbatch.fit.speed_model import SpeedModel, fit_speed, interpolation_weights


def timing(size: int, *seconds: float) -> StepTiming:
    return StepTiming(micro_batch_size=size, seconds=seconds)


def model(seconds: dict[int, float], error: float = 0.0) -> SpeedModel:
    """Five repetitions whose median is the given value."""
    spread = (1 - 2 * error, 1 - error, 1, 1 + error, 1 + 2 * error)
    return fit_speed([timing(b, *(s * f for f in spread)) for b, s in seconds.items()], [0.5, 0.1, 0.2])


def test_a_measured_size_gives_its_median_and_sizes_between_a_line() -> None:
    speed = fit_speed([timing(8, 3.0, 1.0, 2.0), timing(4, 1.0, 1.0, 9.0)], [0.5, 0.1, 0.2])
    assert speed.micro_batch_sizes == (4, 8)
    assert (speed.step_seconds(4), speed.step_seconds(8)) == (1.0, 2.0)
    assert speed.step_seconds(5) == pytest.approx(1.25)
    assert speed.examples_per_second(8) == 4.0
    assert speed.optimizer_seconds == 0.2


def test_a_few_scattered_repetitions_bound_the_interval_by_themselves() -> None:
    speed = fit_speed([timing(4, 0.9, 1.0, 30.0), timing(8, 2.0, 2.1, 60.0)], [0.1] * 3)
    assert speed.interval(4) == (0.9, 30.0)
    low, high = speed.interval(6)
    assert low == pytest.approx(1.45)
    assert high == pytest.approx(45.0)
    steady = model({4: 1.0}, error=0.1)
    assert 0.8 < steady.interval(4)[0] < 1.0 < steady.interval(4)[1] < 1.2


def test_nothing_is_claimed_outside_the_measured_range() -> None:
    speed = model({4: 1.0, 8: 2.0})
    assert speed.valid_range == (4, 8)
    for size in (3, 9):
        with pytest.raises(
            InvalidInputError, match=f"micro-batch size {size}; need a size from 4 to 8"
        ):
            speed.step_seconds(size)


def test_the_knee_is_the_smallest_size_near_the_best_even_where_throughput_falls_again() -> None:
    # Examples per second: 1, 2, 3.8, 4, 2.
    speed = model({1: 1.0, 2: 1.0, 4: 4 / 3.8, 8: 2.0, 16: 8.0})
    assert speed.knee_micro_batch_size == 4


def test_the_residual_is_the_error_of_predicting_a_size_from_its_neighbours() -> None:
    assert model({1: 1.0, 2: 2.0, 3: 3.0}).residual == pytest.approx(0.0)
    assert model({1: 1.0, 2: 4.0, 3: 3.0}).residual == pytest.approx(0.5)
    assert model({1: 1.0, 2: 2.0}).residual is None


def test_sizes_with_too_few_repetitions_are_left_out() -> None:
    speed = fit_speed([timing(1, 1.0, 1.0, 1.0), timing(2, 9.0, 9.0)], [0.1, 0.1, 0.1])
    assert speed.micro_batch_sizes == (1,)
    with pytest.raises(MeasurementError, match=r"0 size\(s\) and 3 optimizer step\(s\)"):
        fit_speed([timing(2, 9.0, 9.0)], [0.1, 0.1, 0.1])
    with pytest.raises(MeasurementError, match=r"1 size\(s\) and 2 optimizer step\(s\)"):
        fit_speed([timing(2, 9.0, 9.0, 9.0)], [0.1, 0.1])


def test_weights_of_a_line_add_to_one_and_are_exact_at_nodes() -> None:
    weights = interpolation_weights([1, 2, 3, 8], [1, 3, 8])
    assert weights.sum(axis=1) == pytest.approx(np.ones(4))
    assert weights[[0, 2, 3]] == pytest.approx(np.eye(3))
    assert weights[1] == pytest.approx([0.5, 0.5, 0.0])


@settings(deadline=None)
@given(
    seconds=st.lists(st.floats(1e-7, 1e3), min_size=1, max_size=6),
    error=st.floats(0, 0.4),
    place=st.floats(0, 1),
)
def test_predicted_seconds_are_positive_and_between_those_measured(
    seconds: list[float], error: float, place: float
) -> None:
    speed = model({2**k: s for k, s in enumerate(seconds)}, error)
    low, high = speed.valid_range
    size = round(low + place * (high - low))
    assert min(seconds) * (1 - 1e-9) <= speed.step_seconds(size) <= max(seconds) * (1 + 1e-9)
    assert speed.interval(size)[0] > 0
