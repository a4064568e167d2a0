"""Wishes that cannot both be meant are refused; the others shape the plan."""

from typing import Any

import pytest

import known
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.plan.limits import Limits
from rightbatch.plan.planner import make_plan
from rightbatch.plan.wishes import Wishes


def plan(objective: Any = "time", laws: known.Laws | None = None, **limits: Any) -> Plan:
    measured = known.measurements(laws)
    return make_plan(measured.task, measured, objective, Limits(**limits))


@pytest.mark.parametrize("objective", ["compute", "balanced", "accuracy"])
def test_a_time_for_training_wants_the_time_objective(objective: str) -> None:
    with pytest.raises(InvalidInputError, match=f"time for training with objective '{objective}'"):
        plan(objective, training_seconds=60.0)


def test_a_slowdown_wants_the_accuracy_objective() -> None:
    with pytest.raises(InvalidInputError, match=r"slowdown = 1\.5 with objective 'time'"):
        plan("time", slowdown=1.5)


def test_a_bandwidth_wants_devices_to_send_between() -> None:
    with pytest.raises(InvalidInputError, match="bandwidth between devices with one device"):
        plan(bandwidth_bytes_per_second=1e9)


def test_a_time_for_training_sets_the_length_and_keeps_the_quickest_batch() -> None:
    found, free = plan(training_seconds=10.0), plan()
    assert found.global_batch_size == free.global_batch_size
    assert found.epochs is None
    seconds = known.Laws().update_seconds(found.global_batch_size)
    assert found.steps == int(10.0 / seconds)
    assert found.warmup_examples <= found.total_examples(found.global_batch_size, 10_000)
    assert "few_updates" in {guard.name for guard in plan(training_seconds=0.05).guards}


def test_rate_drops_keep_their_share_of_a_run_whose_length_is_time() -> None:
    recipe = known.facts().recipe.replace(
        schedule="step", decay_at=(20_000, 30_000), decay_factor=0.1, epochs=4.0
    )
    measured = known.measurements(task=known.facts(recipe=recipe))
    found = make_plan(measured.task, measured, "time", Limits(training_seconds=10.0))
    total = found.total_examples(found.global_batch_size, 10_000)
    assert found.decay_at == (round(total / 2), round(total * 3 / 4))
    assert "decay_at" in {decision.name for decision in found.decisions}


def test_compute_needs_hardly_more_examples_than_the_fewest() -> None:
    found = plan("compute")
    chosen = next(c for c in found.candidates if c.global_batch_size == found.global_batch_size)
    fewest = min(c.examples_ratio.value for c in found.candidates)
    assert chosen.examples_ratio.value <= 1.06 * fewest
    assert found.global_batch_size < plan("balanced").global_batch_size
    assert found.doubts == ()


@pytest.mark.parametrize("slowdown", [1.1, 1.5, 3.0])
def test_accuracy_takes_a_smaller_batch_the_more_time_is_allowed(slowdown: float) -> None:
    found = plan("accuracy", slowdown=slowdown)
    by_size = {c.global_batch_size: c for c in found.candidates}
    quickest = min(c.seconds_ratio.value for c in found.candidates)
    ratio = by_size[found.global_batch_size].seconds_ratio.value
    assert ratio <= slowdown * quickest * 1.02  # medians beside means of logarithms
    below = [c for size, c in by_size.items() if size < found.global_batch_size]
    assert all(c.seconds_ratio.value > slowdown * quickest * 0.98 for c in below)
    assert found.tolerance == pytest.approx(slowdown - 1)
    assert "unvalidated" in {guard.name for guard in found.guards}


def test_devices_are_used_where_they_make_an_update_quicker() -> None:
    laws = known.Laws(noise_scale=1e5, step_seconds=(1e-3, 1e-3))
    fast = plan(laws=laws, num_replicas=8, bandwidth_bytes_per_second=1e12)
    assert fast.num_replicas == 8
    assert fast.split.endswith("replicas 8")
    passes = next(d for d in fast.decisions if d.name == "accumulation_steps")
    assert passes.value == 1
    assert passes.reason.startswith("a replica's share of the batch fits one pass")
    slow = plan(laws=laws, num_replicas=8, bandwidth_bytes_per_second=1.0)
    assert slow.num_replicas == 1
    assert fast.predicted is not None
    assert slow.predicted is not None
    ratio = fast.predicted.seconds_to_target_ratio.value
    assert ratio < 0.5 * slow.predicted.seconds_to_target_ratio.value
    decision = next(d for d in fast.decisions if d.name == "num_replicas")
    assert decision.evidence == "derived"
    assumed = plan(laws=laws, num_replicas=8)
    assert next(d for d in assumed.decisions if d.name == "num_replicas").evidence == "assumed"


def test_fine_tuning_is_said_only_where_it_is_wished() -> None:
    measured = known.measurements()
    tuned = make_plan(measured.task, measured, wishes=Wishes(fine_tuning=True))
    assert "fine_tuning" in {guard.name for guard in tuned.guards}
    assert "fine_tuning" not in {guard.name for guard in plan().guards}


def test_one_timed_size_plans_by_accumulation_and_says_so() -> None:
    found = plan(laws=known.Laws(sizes=(16,)))
    assert {c.micro_batch_size for c in found.candidates} == {16}
    assert "one_size_timed" in {guard.name for guard in found.guards}
