"""Which way the noise scale moves: claimed only where the points say so."""

import numpy as np
import pytest

from rightbatch.fit.noise_heading import Heading, fit_heading
from rightbatch.fit.noise_scale import NoiseScale

SEEN = (100, 200, 400, 800, 1600, 3200)


def point(seen: int, value: float, error: float = 0.1, *, lost: bool = False) -> NoiseScale:
    return NoiseScale(
        examples_seen=seen,
        noise_scale=value,
        low=value * np.exp(-1.6 * error),
        high=None if lost else value * np.exp(1.6 * error),
        grad_sq_norm=1.0,
        trace_covariance=value,
        num_samples=6,
        source="groups",
        log_error=error,
    )


def heading(exponent: float, error: float, jitter: float = 0.0, seed: int = 0) -> Heading:
    rng = np.random.default_rng(seed)
    logs = [np.log(50) + exponent * np.log(s / 100) + jitter * rng.standard_normal() for s in SEEN]
    return fit_heading([point(s, float(np.exp(y)), error) for s, y in zip(SEEN, logs, strict=True)])


@pytest.mark.parametrize(
    ("exponent", "error", "direction"),
    [
        (0.5, 0.1, "growing"),
        (-0.5, 0.1, "shrinking"),
        (0.0, 0.1, "flat"),
        (0.05, 0.1, "flat"),
        (0.0, 1.0, "undecided"),  # no growth seen, and none excluded
        (0.5, 3.0, "undecided"),
    ],
)
def test_a_power_law_is_found_and_named(exponent: float, error: float, direction: str) -> None:
    found = heading(exponent, error)
    assert found.exponent == pytest.approx(exponent)
    assert found.direction == direction
    assert found.low is not None
    assert found.high is not None
    assert found.low < exponent < found.high


def test_the_interval_holds_the_exponent_in_about_ninety_per_cent() -> None:
    found = [heading(0.3, 0.2, jitter=0.2, seed=seed) for seed in range(400)]
    held = np.mean([(h.low or 0) <= 0.3 <= (h.high or 0) for h in found])
    assert 0.87 <= held <= 0.97  # never narrowed below the points' own errors, so a little more


def test_scatter_beyond_the_points_errors_widens_the_interval() -> None:
    found = [heading(0.3, 0.01, jitter=0.4, seed=seed) for seed in range(300)]
    held = np.mean([(h.low or 0) <= 0.3 <= (h.high or 0) for h in found])
    assert 0.85 <= held <= 0.95


def test_precise_points_rule_over_rough_ones() -> None:
    points = [point(s, 50.0, 0.01) for s in SEEN[:4]] + [point(s, 5000.0, 5.0) for s in SEEN[4:]]
    assert abs(fit_heading(points).exponent or 9) < 0.01


def test_fewer_than_three_decided_points_have_no_direction() -> None:
    found = fit_heading([point(100, 50.0), point(200, 70.0), point(400, 90.0, lost=True)])
    assert (found.direction, found.exponent) == ("undecided", None)
    assert (found.num_points, found.num_undecided) == (2, 1)


def test_a_late_point_without_an_upper_bound_forbids_flat_and_shrinking() -> None:
    steady = [point(s, 50.0, 0.05) for s in SEEN]
    assert fit_heading(steady).direction == "flat"
    lost = point(6400, 80.0, lost=True)
    assert fit_heading([*steady, lost]).direction == "undecided"
    early = point(50, 80.0, lost=True)
    assert fit_heading([early, *steady]).direction == "flat"
    rising = [point(s, 5.0 * s, 0.05) for s in SEEN]
    assert fit_heading([*rising, lost]).direction == "growing"
