"""Limits that nothing meets name what to relax, and by how much."""

from typing import Any

import numpy as np
import pytest

import known
from rightbatch.core.errors import InfeasibleError
from rightbatch.core.plan import Plan
from rightbatch.fit.models import fit_models
from rightbatch.plan.candidates import Candidates, Split
from rightbatch.plan.constraints import Constraint, allowed, num_updates, peak_bytes
from rightbatch.plan.fitted import fit_all
from rightbatch.plan.limits import Limits
from rightbatch.plan.planner import make_plan
from rightbatch.train.sampler import Windows


def constraint(name: str, needs: list[float], limit: float) -> Constraint:
    return Constraint(name=name, needs=np.array(needs), limit=limit, relax=lambda n: f"--{name} {n:g}")


def test_every_constraint_counts() -> None:
    found = allowed([constraint("a", [1, 2, 3], 2), constraint("b", [3, 2, 1], 2)])
    assert found.tolist() == [False, True, False]


def test_each_limit_that_alone_would_do_is_named_with_the_least_that_would() -> None:
    bounds = [
        constraint("a", [1, 2, 3], 1),
        constraint("b", [3, 2, 1], 2),
        constraint("c", [0, 0, 0], 0),
    ]
    with pytest.raises(InfeasibleError, match=r"meets a and b; .*\n  hint: --a 2, or --b 3$") as caught:
        allowed(bounds)
    assert caught.value.exit_code == 3


def test_limits_that_must_be_relaxed_together_are_said() -> None:
    bounds = [constraint("a", [2, 2], 1), constraint("b", [2, 2], 1)]
    with pytest.raises(InfeasibleError, match="relax more than one of them"):
        allowed(bounds)


def plan(**limits: Any) -> Any:
    measured = known.measurements()
    objective = "time" if "training_seconds" in limits else "balanced"
    return make_plan(measured.task, measured, objective, Limits(**limits))


def test_relaxing_as_the_hint_says_makes_the_plan() -> None:
    with pytest.raises(InfeasibleError, match=r"--max-batch 1$|--min-updates 100000$") as caught:
        plan(min_updates=100_001)
    assert "at least 100,001 updates" in caught.value.found
    assert plan(min_updates=100_000).global_batch_size == 1
    with pytest.raises(InfeasibleError, match=r"--time-budget-train 0\.00101s"):
        plan(training_seconds=1e-3)
    assert plan(training_seconds=0.00102).global_batch_size == 1


def test_updates_are_todays_examples_or_what_the_time_holds() -> None:
    pair = Candidates.of([Split(micro_batch_size=b, accumulation_steps=1) for b in (32, 48)])
    seconds = np.array([0.5, 0.7])
    updates = num_updates(pair, known.facts(), Limits(), seconds).tolist()
    assert updates == [3130, 2090]  # of 10,000 examples in each of 10 epochs, the last one short
    for batch, count in zip((32, 48), updates, strict=True):
        by_hand = Plan.from_recipe(known.facts().recipe, global_batch_size=batch)
        assert sum(1 for _ in Windows.of(by_hand, 10_000, seed=0)) == count
    timed = Limits(training_seconds=10.0)
    assert num_updates(pair, known.facts(), timed, seconds).tolist() == [20, 14]


def test_replicas_hold_a_second_copy_of_the_gradients() -> None:
    measured = known.measurements()
    modes = fit_all(measured, fit_models(measured), Limits()).modes
    pair = Candidates.of([
        Split(micro_batch_size=8, accumulation_steps=1, num_replicas=r) for r in (1, 2)
    ])
    alone, beside = peak_bytes(pair, modes, known.facts()).tolist()
    assert alone == 1_008_000
    assert beside - alone == 4 * 1_000
    assert (peak_bytes(pair, modes, known.facts(), upper=True) >= [alone, beside]).all()


def test_memory_is_bounded_by_the_upper_end_of_its_interval() -> None:
    measured = known.measurements()
    memory = fit_all(measured, fit_models(measured), Limits()).modes[0].memory
    peak, high = memory.peak_bytes(64), memory.high_bytes(64)
    assert peak < high
    for limit, largest in ((high, 64), (high - 1, 48)):
        found = plan(memory_limit_bytes=limit, headroom=0.0)
        assert max(c.micro_batch_size for c in found.candidates) == largest
