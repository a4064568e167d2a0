"""The curve of steps over batch size, recovered from sweeps whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rightbatch.core.errors import MeasurementError
from rightbatch.fit.hyperbola import (
    best_rates,
    critical_bounds,
    fit_hyperbola,
    overhead_batch,
    regime,
)

SIZES = [8, 16, 32, 64, 128, 256, 512]
INF = math.inf


@given(critical=st.floats(4, 1024), least=st.floats(1, 1e5))
def test_exact_steps_give_back_both_constants(critical: float, least: float) -> None:
    found = fit_hyperbola(SIZES, [least * (1 + critical / b) for b in SIZES])
    assert found.critical_batch_size == pytest.approx(critical, rel=1e-5)
    assert found.min_steps == pytest.approx(least, rel=1e-5)
    assert max(map(abs, found.residuals)) < 1e-6
    assert found.steps(critical) == pytest.approx(2 * least, rel=1e-5)


def test_the_fit_is_the_least_squares_of_a_fine_search() -> None:
    rng = np.random.default_rng(0)
    steps = [100 * (1 + 60 / b) * math.exp(0.2 * rng.standard_normal()) for b in SIZES]
    found = fit_hyperbola(SIZES, steps)
    logs, b = np.log(steps), np.array(SIZES, float)
    errors = {c: float(np.var(logs - np.log1p(c / b))) for c in np.exp(np.linspace(0, 8, 20001))}
    assert found.critical_batch_size == pytest.approx(min(errors, key=errors.__getitem__), rel=1e-3)
    spread = math.sqrt(len(SIZES) * min(errors.values()) / (len(SIZES) - 2))
    assert found.log_rms == pytest.approx(spread, rel=1e-3)


@pytest.mark.parametrize(
    ("steps", "least", "fewest", "bounds"),
    [
        ([100.0] * 7, 100, 0, (None, 8)),
        ([512 / b for b in SIZES], 0, 512, (512, None)),
    ],
)
def test_steps_without_a_bend_bound_it_by_the_end_of_the_sweep(
    steps: list[float], least: float, fewest: float, bounds: tuple[float | None, float | None]
) -> None:
    found = fit_hyperbola(SIZES, steps)
    assert (found.min_steps, found.min_examples) == (pytest.approx(least), pytest.approx(fewest))
    assert not found.has_bend
    assert [found.steps(b) for b in SIZES] == pytest.approx(steps)
    by_rate = {b: {1.0: [value]} for b, value in zip(SIZES, steps, strict=True)}
    assert critical_bounds(by_rate, found, np.random.default_rng(0)) == bounds
    with pytest.raises(MeasurementError, match="at 2 batch sizes"):
        fit_hyperbola(SIZES[:2], steps[:2])


def test_the_best_rate_reached_the_target_with_every_seed() -> None:
    steps = {8: {1.0: [90.0, 40.0], 2.0: [30.0, INF], 4.0: [100.0, 100.0]}, 16: {1.0: [INF, INF]}}
    (best,) = best_rates(steps)
    assert (best.batch_size, best.factor, best.on_edge) == (8, 1.0, True)
    assert best.steps == pytest.approx(60.0)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    covered, repeats = 0, 30
    for _ in range(repeats):
        steps = {
            b: {1.0: [100 * (1 + 64 / b) * math.exp(0.15 * rng.standard_normal()) for _ in range(3)]}
            for b in SIZES
        }
        best = best_rates(steps)
        fit = fit_hyperbola([one.batch_size for one in best], [one.steps for one in best])
        low, high = critical_bounds(steps, fit, rng, draws=40)
        assert low is not None
        assert high is not None
        covered += low <= 64 <= high
    assert 0.8 <= covered / repeats <= 1.0


def test_intervals_of_few_sizes_with_one_seed_hold_the_truth_as_often_as_they_say() -> None:
    rng, sizes = np.random.default_rng(4), SIZES[::3]
    covered, repeats = 0, 50
    for _ in range(repeats):
        values = [100 * (1 + 64 / b) * math.exp(0.1 * rng.standard_normal()) for b in sizes]
        steps = {b: {1.0: [value]} for b, value in zip(sizes, values, strict=True)}
        low, high = critical_bounds(steps, fit_hyperbola(sizes, values), rng, draws=40)
        covered += (low or 0) <= 64 <= (high or INF)
    assert 0.8 <= covered / repeats <= 1.0


def test_an_interval_is_open_where_draws_lose_the_bend() -> None:
    rng = np.random.default_rng(0)
    steps = {
        b: {1.0: [(1 + 4000 / b) * math.exp(rng.standard_normal() / 3) for _ in range(3)]}
        for b in SIZES
    }
    best = best_rates(steps)
    fit = fit_hyperbola([one.batch_size for one in best], [one.steps for one in best])
    assert critical_bounds(steps, fit, rng, draws=40)[1] is None


def test_regimes_end_where_a_limit_is_missed_by_a_fifth() -> None:
    def examples(b: float) -> float:
        return b * (1 + 100 / b)

    def steps(b: float) -> float:
        return 1 + 100 / b

    assert regime(20, 100) == "perfect scaling"
    assert examples(20) == pytest.approx(1.2 * 100)
    assert regime(500, 100) == "stagnation"
    assert steps(500) == pytest.approx(1.2)
    batch = overhead_batch(8, 100)
    assert examples(batch) == pytest.approx(1.2 * examples(8))
