"""Factors between noise scales and critical batch sizes: means and spreads of sweeps."""

import math
from statistics import geometric_mean, stdev

import pytest

from rightbatch.fit.calibration import SWEEPS, UNKNOWN_FAMILY, Sweep, calibrate


def test_the_factor_is_a_geometric_mean_and_its_spread_is_that_of_a_further_task() -> None:
    sweeps = [Sweep(f"task {i}", "sgd", 100.0 * f, 100.0) for i, f in enumerate((0.8, 1.5, 3.0))]
    found = calibrate("sgd", preconditioned=False, sweeps=sweeps)
    logs = [math.log(f) for f in (0.8, 1.5, 3.0)]
    assert found.factor == pytest.approx(geometric_mean((0.8, 1.5, 3.0)), abs=0.005)
    assert found.log_sd == pytest.approx(stdev(logs) * math.sqrt(4 / 3), abs=0.005)


def test_each_kind_of_noise_scale_has_a_factor_of_its_own() -> None:
    sweeps = [Sweep(name, "adam", 240.0, 100.0, 120.0) for name in ("one", "two")]
    assert calibrate("adam", preconditioned=False, sweeps=sweeps) == (2.4, 0.0)
    assert calibrate("adam", preconditioned=True, sweeps=sweeps) == (2.0, 0.0)


@pytest.mark.parametrize("family", ["sgd", "adam"])
def test_most_sweeps_lie_within_the_spread_of_the_others(family: str) -> None:
    own = [s for s in SWEEPS if s.family == family]
    inside = 0
    for sweep in own:
        others = [s for s in own if s is not sweep]
        found = calibrate(family, preconditioned=False, sweeps=others)  # type: ignore[arg-type]
        ratio = math.log(sweep.critical_batch_size / sweep.noise_scale / found.factor)
        inside += abs(ratio) <= 1.645 * found.log_sd
    assert inside >= 0.8 * len(own)


def test_a_family_without_sweeps_is_assumed_to_lie_around_both() -> None:
    factor, spread = calibrate("other", preconditioned=False)
    assert (factor, spread) == UNKNOWN_FAMILY
    for family in ("sgd", "adam"):
        known = calibrate(family, preconditioned=False)  # type: ignore[arg-type]
        assert abs(math.log(known.factor / factor)) < spread


def test_one_sweep_shows_no_spread_and_is_not_relied_on() -> None:
    sweeps = [Sweep("one", "sgd", 300.0, 100.0)]
    assert calibrate("sgd", preconditioned=False, sweeps=sweeps) == UNKNOWN_FAMILY


def test_every_adam_sweep_has_both_noise_scales() -> None:
    assert all((s.preconditioned_noise_scale is not None) == (s.family == "adam") for s in SWEEPS)
