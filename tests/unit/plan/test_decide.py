"""The constants that follow the batch, and why."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import known
from rightbatch.core.plan import Decision, Plan
from rightbatch.core.recipe import Recipe
from rightbatch.core.schedule import rate_at
from rightbatch.fit.calibration import calibrate
from rightbatch.plan.planner import make_plan

DEAR = known.Laws(noise_scale=1e4, optimizer_seconds=1e-2)  # asks for a large batch
CHEAP = known.Laws(noise_scale=1.0, step_seconds=(1e-5, 1e-4))  # asks for a small one


def recipe(**changes: Any) -> Recipe:
    return known.facts().recipe.replace(**changes)


def plan(laws: known.Laws, num_train_examples: int = 10_000, **changes: Any) -> Plan:
    facts = known.facts(recipe=recipe(**changes), num_train_examples=num_train_examples)
    measured = known.measurements(laws, task=facts)
    return make_plan(facts, measured, "time")


def decision(of: Plan, name: str) -> Decision:
    return next(d for d in of.decisions if d.name == name)


def test_a_rate_that_rises_warms_up_from_todays_rate_over_a_share_of_the_run() -> None:
    found = plan(DEAR)
    batch, critical = found.global_batch_size, 1e4 * calibrate("sgd", preconditioned=False).factor
    assert batch > 4 * 32
    rise = (1 + critical / 32) / (1 + critical / batch)
    assert found.learning_rate == pytest.approx(0.1 * rise)
    assert found.warmup_start == pytest.approx(1 / rise)
    assert found.warmup_examples == round(10 * 10_000 * 5 / 90)
    assert decision(found, "warmup_examples").source == "goyal2017"
    first = rate_at(found, found.learning_rate, 1, 100_000, warmup_start=found.warmup_start)
    assert first == pytest.approx(0.1, rel=0.02)


def test_a_rate_that_falls_gets_no_warmup() -> None:
    found = plan(CHEAP)
    assert found.global_batch_size < 32
    assert found.learning_rate < 0.1
    assert (found.warmup_examples, found.warmup_start) == (0, 1.0)
    assert "does not rise" in decision(found, "warmup_examples").reason


def test_a_warmup_of_today_is_kept_in_examples() -> None:
    found = plan(DEAR, warmup_examples=640)
    assert (found.warmup_examples, found.warmup_start) == (640, 0.0)
    assert decision(found, "warmup_examples").source == "recipe"


def test_a_warmup_lasts_one_update_at_least_and_never_longer_than_the_run() -> None:
    found = plan(DEAR, num_train_examples=1024, epochs=1)
    assert found.global_batch_size > round(1024 * 5 / 90)
    assert found.warmup_examples == found.global_batch_size
    short = plan(DEAR, num_train_examples=1024, epochs=0.25)
    assert short.warmup_examples == 256


def test_weight_decay_is_decided_only_where_the_recipe_has_one() -> None:
    assert "weight_decay" not in {d.name for d in plan(DEAR).decisions}
    assert plan(DEAR).weight_decay is None
    kept = plan(DEAR, weight_decay=0.01)
    rise = kept.learning_rate / 0.1
    assert kept.weight_decay == pytest.approx(0.01 * kept.global_batch_size / 32 / rise)
    assert decision(kept, "weight_decay").source == "wang2024"


def test_epochs_stay_and_steps_keep_the_examples() -> None:
    assert plan(DEAR).epochs == 10
    assert "steps" not in {d.name for d in plan(DEAR).decisions}
    found = plan(DEAR, epochs=None, steps=1000)
    batch = found.global_batch_size
    assert found.steps is not None
    assert 32_000 - 1000 * 32 % 10_000 <= found.total_examples(batch, 10_000) < 32_000 + batch
    assert decision(found, "steps").value == found.steps


@settings(deadline=None, max_examples=60)
@given(
    steps=st.integers(1, 3000),
    num_train_examples=st.integers(32, 3000),
    warmup=st.sampled_from([0, 32, 1000]),
    laws=st.sampled_from([DEAR, CHEAP]),
)
def test_a_run_of_steps_sees_as_many_examples_and_its_warmup_fits(
    steps: int, num_train_examples: int, warmup: int, laws: known.Laws
) -> None:
    today = recipe(epochs=None, steps=steps)
    total = today.total_examples(32, num_train_examples)
    found = plan(laws, num_train_examples, epochs=None, steps=steps, warmup_examples=min(warmup, total))
    batch = found.global_batch_size
    planned = found.total_examples(batch, num_train_examples)
    assert total <= planned < total + batch
    assert found.warmup_examples <= planned
    one_less = found.replace(steps=found.steps - 1) if found.steps and found.steps > 1 else None
    assert one_less is None or one_less.total_examples(batch, num_train_examples) < total
