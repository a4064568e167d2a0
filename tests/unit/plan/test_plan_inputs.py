"""Measurements that no machine gives, and targets that no training needs, are refused by name."""

from typing import Any

import pytest

import known
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.recipe import Target
from rightbatch.core.samples import (
    LoaderTiming,
    ModeSamples,
    ModeTiming,
    PilotPoint,
    RateTrial,
    RateTuning,
    StepTiming,
)
from rightbatch.plan.inputs import check_measurements, check_target, until_target
from rightbatch.plan.planner import make_plan


def step(size: int, *seconds: float) -> StepTiming:
    return StepTiming(micro_batch_size=size, seconds=seconds)


def load(*seconds: float) -> LoaderTiming:
    return LoaderTiming(micro_batch_size=8, num_workers=0, seconds=seconds)


TRACE = known.trace((1000, 10), 2)


def beside(seconds: tuple[float, ...], recipes: tuple[float, ...]) -> ModeSamples:
    timing = ModeTiming(
        micro_batch_size=8, seconds=seconds, beside_micro_batch_size=8, beside_seconds=recipes
    )
    return ModeSamples(precision="bf16", checkpointing=False, timings=(timing,))


def tuning(**changes: Any) -> RateTuning:
    values: dict[str, Any] = {
        "batch_size": 8,
        "rule_rate": 0.1,
        "examples_seen": 0,
        "window_examples": 8,
        "trials": (RateTrial(learning_rate=0.1, losses=(1.0,)),),
    }
    return RateTuning(**(values | changes))


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"step_timings": (step(8, 0.1, -0.1, 0.1),)}, r"step_timings\[0\] has -0.1 s"),
        ({"step_timings": (step(0, 0.1),)}, r"step_timings\[0\] has micro_batch_size 0"),
        ({"step_timings": (step(8, 1e9),)}, r"has 1e\+09 s"),
        (
            {"step_timings": (step(8, 1.0), step(16, 0.01))},
            "take 1 s or more at micro-batch 8 and 0.01 s at 16",
        ),
        ({"optimizer_seconds": (0.1, -1.0)}, "optimizer_seconds has -1 s"),
        ({"loader_timings": (load(-0.5),)}, r"loader_timings\[0\] has -0.5 s"),
        (
            {"gradients": (known.sample(1.0, 1.0, small=300),)},
            r"gradients\[0\] has batches of 300 and 256",
        ),
        ({"gradients": (known.sample(-9.0, 1.0),)}, r"gradients\[0\] has a squared norm of -"),
        ({"gradients": (known.sample(1e300, 1.0),)}, r"has a squared norm of 1e\+300"),
        ({"gradients": (known.sample(9.0, -200.0),)}, "of the mean of gradients of 2.75"),
        ({"gradients": (known.sample(1.0, 1.0, seen=-1),)}, "has examples_seen -1"),
        ({"gradients": (known.sample(1.0, 1.0).replace(covered=0.0),)}, "covered 0"),
        ({"gradients": (known.sample(1.0, 1.0).replace(population=9),)}, "draws 256 of 9"),
        ({"step_timings": (step(8, 0.1), step(8, 0.1))}, r"step_timings\[1\] is the second of 8"),
        ({"loader_timings": (load(0.0),)}, r"loader_timings\[0\] has 0 s"),
        ({"loader_timings": (load(0.1), load(0.1))}, r"loader_timings\[1\] is the second of"),
        ({"loader_timings": (load(),)}, r"loader_timings\[0\] has 0 times"),
        ({"memory": (TRACE.replace(micro_batch_size=0),)}, r"memory\[0\] has micro_batch_size 0"),
        ({"memory": (TRACE.replace(owner=TRACE.owner[1:]),)}, "columns that do not belong together"),
        ({"memory": (TRACE.replace(owner=(99, *TRACE.owner[1:])),)}, "columns that do not belong"),
        ({"memory": (known.trace((10**17, 10), 2),)}, "holds 100,000,000,000,000,020 bytes"),
        ({"environment": known.environment(memory_bytes=0)}, "environment.memory_bytes is 0"),
        ({"task": known.facts(num_train_examples=3)}, "is 3, with a batch of 32"),
        ({"modes": (beside((1.0, -1.0), (1.0, 1.0)),)}, r"modes\[0\].timings\[0\] has -1 s"),
        ({"modes": (beside((1.0,), (1.0, 1.0)),)}, "has 1 steps beside 2"),
        ({"modes": (beside((1.0,), (1.0,)),) * 2}, r"modes\[1\] is the second of"),
        ({"modes": (beside((1.0,), (1.0,)).replace(device="cuda:t4"),)}, "without traces"),
        ({"rate_tunings": (tuning(rule_rate=0.3),)}, "no trial of its rule_rate 0.3"),
        ({"rate_checks": (tuning(batch_size=0),)}, "has batches of 0"),
    ],
)
def test_an_impossible_sample_is_named_with_its_place(changes: dict[str, Any], found: str) -> None:
    measured = known.measurements()
    changed = measured.replace(**changes)
    with pytest.raises(InvalidInputError, match=found):
        check_measurements(changed)
    with pytest.raises(InvalidInputError, match="or measure again with --refresh"):
        make_plan(changed.task, changed)


def test_steps_that_others_on_the_machine_held_up_are_no_impossible_fall() -> None:
    measured = known.measurements(step_timings=(step(8, 0.03, 0.03, 0.001), step(16, 0.001, 0.002)))
    check_measurements(measured)


def test_a_trace_that_frees_what_it_does_not_hold_is_refused() -> None:
    measured = known.measurements()
    trace = measured.memory[0].replace(delta_bytes=tuple(-n for n in measured.memory[0].delta_bytes))
    with pytest.raises(InvalidInputError, match=r"memory\[0\] frees more bytes"):
        check_measurements(measured.replace(memory=(trace,)))


def test_what_was_really_measured_passes() -> None:
    check_measurements(known.measurements())


def pilot(*values: float) -> tuple[PilotPoint, ...]:
    return tuple(
        PilotPoint(examples_seen=1000 * i, loss=1.0, metrics={"accuracy": value})
        for i, value in enumerate(values)
    )


def test_a_target_met_before_training_is_refused() -> None:
    measured = known.measurements(pilot=pilot(0.5, 0.8))
    check_target(measured.task, measured)
    easy = measured.task.replace(target=Target("accuracy", 0.4))
    with pytest.raises(InvalidInputError, match=r"accuracy = 0.5 before any training.*\n.*--target"):
        make_plan(easy, measured)
    falling = measured.task.replace(target=Target("accuracy", 0.6, higher_is_better=False))
    with pytest.raises(InvalidInputError, match="before any training"):
        check_target(falling, measured)


def test_the_noise_beyond_the_target_does_not_count() -> None:
    measured = known.measurements(pilot=pilot(0.1, 0.8, 0.95, 0.96))  # gradients at 1, 2 and 4 thousand
    lower = measured.task.replace(target=Target("accuracy", 0.8))
    assert {s.examples_seen for s in until_target(lower, measured).gradients} == {1000}
    never = measured.task.replace(target=Target("accuracy", 0.99))
    assert until_target(never, measured) == measured
    assert until_target(measured.task.replace(target=None), measured) == measured


def test_a_target_that_nothing_evaluates_gets_the_nearest_metric() -> None:
    measured = known.measurements(pilot=pilot(0.1, 0.8))
    typo = measured.task.replace(target=Target("acuracy", 0.9))
    with pytest.raises(InvalidInputError, match=r"a metric of the task.*\n.*`accuracy`"):
        make_plan(typo, measured)
