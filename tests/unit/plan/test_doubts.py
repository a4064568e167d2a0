"""What to measure next is what carries the regret."""

from typing import Any

import numpy as np
import pytest

import known
from rightbatch.core.plan import Plan
from rightbatch.plan.doubts import find_doubts
from rightbatch.plan.draws import Draws
from rightbatch.plan.limits import Limits
from rightbatch.plan.planner import make_plan


def draws(**sources: float) -> Draws:
    """Independent normal factors with the given spreads of their logarithms."""
    rng = np.random.default_rng(0)

    def factor(name: str) -> Any:
        return np.exp(sources.get(name, 0.0) * rng.standard_normal(4000))

    return Draws(
        critical_centre=1.0,
        noise=factor("noise"),
        calibration=factor("calibration"),
        step_factors=(factor("steps")[None, :],),
        optimizer=np.ones(4000),
        loader=factor("loader"),
        bandwidth=np.ones(4000),
    )


def regret(of: Draws) -> float:
    """A quadratic bowl: expected regret is the variance of the best place."""
    place = np.log(of.noise * of.calibration * of.step_factors[0][0] * of.loader)
    return float(np.mean(place**2))


def test_shares_are_those_of_the_variance_where_sources_add() -> None:
    found = find_doubts(regret, draws(noise=0.4, calibration=0.2, steps=0.1), known.facts())
    shares = {doubt.name: doubt.share for doubt in found}
    whole = 0.4**2 + 0.2**2 + 0.1**2
    assert list(shares) == ["noise scale", "calibration"]  # step times carry less than 5 %
    assert shares["noise scale"] == pytest.approx(0.4**2 / whole, abs=0.03)
    assert shares["calibration"] == pytest.approx(0.2**2 / whole, abs=0.03)
    assert "rightbatch plan known.py --time-budget 10m --refresh" in found[0].measure


def test_a_choice_that_nothing_would_change_leaves_no_doubts() -> None:
    assert find_doubts(regret, draws(noise=0.05), known.facts()) == ()


def plan(**changes: Any) -> Plan:
    measured = known.measurements(**changes)
    return make_plan(measured.task, measured, "time")


def test_exact_gradients_leave_the_calibration_and_lost_ones_the_noise() -> None:
    assert [doubt.name for doubt in plan().doubts] == ["calibration"]
    lost = tuple(known.sample(s, 300.0) for s in (-1.0, 1.2, -0.4, 0.9, 0.1, -0.2))
    assert plan(gradients=lost).doubts[0].name == "noise scale"


def test_an_assumed_bandwidth_is_a_doubt_and_a_given_one_is_none() -> None:
    facts = known.facts(num_trainable_parameters=10**8)
    laws = known.Laws(noise_scale=1e3, step_seconds=(1e-3, 1e-3))
    measured = known.measurements(laws, task=facts)

    def names(**limits: Any) -> set[str]:
        return {
            d.name for d in make_plan(facts, measured, "time", Limits(num_replicas=8, **limits)).doubts
        }

    assert "bandwidth" in names()
    assert "bandwidth" not in names(bandwidth_bytes_per_second=1e10)


def test_the_calibration_is_resolved_by_measuring_the_critical_batch_size() -> None:
    doubt = next(doubt for doubt in plan().doubts if doubt.name == "calibration")
    assert "`rightbatch critical known.py`" in doubt.measure
