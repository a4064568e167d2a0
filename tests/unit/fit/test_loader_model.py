"""A line through loading times, and what sets the pace."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import known
from rightbatch.core.errors import MeasurementError
from rightbatch.core.samples import LoaderTiming
from rightbatch.fit.bound import find_bound
from rightbatch.fit.loader_model import fit_loader
from rightbatch.fit.speed_model import fit_speed


def timing(size: int, *seconds: float, workers: int = 0) -> LoaderTiming:
    return LoaderTiming(micro_batch_size=size, num_workers=workers, seconds=seconds)


def test_a_line_is_recovered() -> None:
    model = fit_loader([timing(b, *(2e-4 + 3e-6 * b,) * 3) for b in (8, 64, 512)])
    assert model.batch_seconds == pytest.approx(2e-4)
    assert model.example_seconds == pytest.approx(3e-6)
    assert model.residual == pytest.approx(0, abs=1e-9)
    assert model.valid_range == (8, 512)
    assert model.load_seconds(100) == pytest.approx(5e-4)
    assert model.examples_per_second(100) == pytest.approx(2e5)


def test_a_slow_moment_does_not_move_the_line() -> None:
    model = fit_loader([timing(b, 1e-6 * b, 1e-6 * b, 5.0) for b in (8, 64, 512)])
    assert model.example_seconds == pytest.approx(1e-6, rel=1e-6)


def test_one_size_gives_a_pace_without_a_fixed_cost() -> None:
    model = fit_loader([timing(64, 6.4e-3)])
    assert (model.batch_seconds, model.example_seconds) == (0.0, pytest.approx(1e-4))


def test_a_term_that_came_out_negative_is_dropped_and_the_other_refitted() -> None:
    steep = fit_loader([timing(8, 1e-6), timing(64, 1e-3), timing(512, 1e-2)])
    assert steep.batch_seconds == 0.0
    assert steep.example_seconds == pytest.approx(1e-3 / 64)
    falling = fit_loader([timing(8, 3e-3), timing(64, 2e-3), timing(512, 1e-3)])
    assert (falling.batch_seconds, falling.example_seconds) == (pytest.approx(2e-3), 0.0)
    assert falling.residual == pytest.approx(1 / 3)


def test_nothing_timed_is_refused() -> None:
    with pytest.raises(MeasurementError, match="0 loader timings"):
        fit_loader([])


def test_workers_overlap_with_computing() -> None:
    assert fit_loader([timing(8, 1.0, workers=2)]).overlaps
    assert not fit_loader([timing(8, 1.0)]).overlaps


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 10), min_size=3, max_size=3))
def test_coefficients_are_never_negative(seconds: list[float]) -> None:
    model = fit_loader([timing(b, s) for b, s in zip((8, 64, 512), seconds, strict=True)])
    assert model.batch_seconds >= 0
    assert model.example_seconds >= 0
    assert model.load_seconds(1) > 0
    assert np.isfinite(model.residual)


@pytest.mark.parametrize(
    ("load", "batch", "bound"),
    [((0.0, 2e-5), 512, "input"), ((0.0, 1e-6), 8, "overhead"), ((0.0, 1e-6), 512, "compute")],
)
def test_what_sets_the_pace_is_named(load: tuple[float, float], batch: int, bound: str) -> None:
    samples = known.measurements(known.Laws(load_seconds=load))  # 1 ms and 10 us an example
    speed = fit_speed(samples.step_timings, samples.optimizer_seconds)
    assert find_bound(speed, fit_loader(samples.loader_timings), batch) == bound
