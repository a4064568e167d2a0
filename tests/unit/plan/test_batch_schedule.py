"""Batches that grow: where they change, what they promise, and when none is proposed."""

from typing import Any, get_args

import numpy as np
import pytest

import known
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import BatchSchedule, BatchScheduleKind, Decision, Plan
from rightbatch.core.schedule import batch_rate_factor, batch_size_at, rate_at
from rightbatch.core.sources import SOURCES
from rightbatch.fit.calibration import calibrate
from rightbatch.fit.models import fit_models
from rightbatch.plan.limits import Limits
from rightbatch.plan.planner import make_plan
from rightbatch.plan.toml import read_plan, write_plan
from rightbatch.plan.wishes import Wishes
from rightbatch.train.sampler import Windows


def growing(factor: float) -> Any:
    """Gradients whose noise scale grows from 30 to ``30 factor`` along the pilot."""
    return tuple(
        known.sample(1.0 + 0.01 * i, 30.0 * factor ** (k / 4), seen=1000 * (k + 1), small=8)
        for k in range(5)
        for i in range(6)
    )


def plan(kind: BatchScheduleKind | None, factor: float = 100.0, **recipe: Any) -> Plan:
    facts = known.facts(recipe=known.facts().recipe.replace(**recipe))
    measured = known.measurements(
        known.Laws(step_seconds=(1e-4, 1e-5), optimizer_seconds=1e-3),
        task=facts,
        gradients=growing(factor),
    )
    return make_plan(facts, measured, "time", wishes=Wishes(batch_schedule=kind))


def decision(of: Plan) -> Decision:
    return next(d for d in of.decisions if d.name == "batch_schedule")


@pytest.mark.parametrize("kind", get_args(BatchScheduleKind))
def test_a_schedule_grows_to_the_plans_batch_and_reads_back(kind: Any, tmp_path: Any) -> None:
    found = plan(kind, schedule="cosine")
    schedule = found.batch_schedule
    assert schedule is not None
    assert (schedule.kind, decision(found).value) == (kind, kind)
    assert decision(found).source in SOURCES
    sizes = [size for _, size in schedule.milestones]
    assert sizes == sorted(set(sizes))
    assert sizes[0] < found.global_batch_size
    if kind != "noise":
        assert sizes[-1] == found.global_batch_size
        assert schedule.milestones[-1][0] < found.total_examples(found.global_batch_size, 10_000)
    assert schedule.rate_power == 1.0  # SGD
    write_plan(tmp_path / "plan.toml", found)
    assert read_plan(tmp_path / "plan.toml").batch_schedule == schedule


@pytest.mark.parametrize("kind", get_args(BatchScheduleKind))
def test_a_run_counted_in_steps_keeps_its_examples_while_the_batch_grows(kind: Any) -> None:
    found = plan(kind, schedule="cosine", epochs=None, steps=3125)
    windows = [*Windows.of(found, 10_000, seed=0)]
    today = known.facts().recipe.replace(epochs=None, steps=3125).total_examples(32, 10_000)
    assert sum(window.num_examples for window in windows) == today
    last = windows[-1].batch_size
    assert last == (found.global_batch_size if kind != "noise" else windows[0].batch_size)
    assert "epochs" in {d.name for d in found.decisions}


def test_a_batch_that_grows_and_a_time_for_training_are_refused() -> None:
    measured = known.measurements()
    wishes = Wishes(batch_schedule="exponential")
    with pytest.raises(InvalidInputError, match="time for training and batch_schedule = 'exponential'"):
        make_plan(measured.task, measured, "time", Limits(training_seconds=10.0), wishes=wishes)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_seesaw_doubles_where_the_rate_would_have_halved(shape: str) -> None:
    found = plan("seesaw", schedule=shape)
    assert found.batch_schedule is not None
    assert found.warmup_examples > 0
    (start, first), *later = found.batch_schedule.milestones
    assert (start, first) == (0, found.global_batch_size // 8)
    assert [size for _, size in later] == [2 * first, 4 * first, 8 * first]
    rates = [rate_at(found, 1.0, at, 100_000) for at, _ in later]
    assert rates == pytest.approx([0.5, 0.25, 0.125], rel=1e-3)
    with pytest.raises(InvalidInputError, match="seesaw batch schedule beside a constant"):
        plan("seesaw")


def test_seesaw_grows_by_what_a_step_schedule_drops_and_keeps_the_rate_of_sgd() -> None:
    found = plan("seesaw", schedule="step", decay_at=(40_000, 80_000, 200_000), decay_factor=0.5)
    batch = found.global_batch_size
    schedule = found.batch_schedule
    assert schedule is not None
    assert schedule.milestones == ((0, batch // 4), (40_000, batch // 2), (80_000, batch))
    assert decision(found).source == "smith2018"
    plain = found.replace(warmup_examples=0)
    rates = [
        rate_at(plain, 1.0, at, 100_000) * batch_rate_factor(schedule, batch, size)
        for at, size in schedule.milestones
    ]
    assert rates == pytest.approx([0.25] * 3)
    tenths = plan("seesaw", schedule="step", decay_at=(10, 20, 30, 40), decay_factor=0.1).batch_schedule
    assert tenths is not None
    assert tenths.milestones[0] == (0, 1)
    assert [size for _, size in tenths.milestones] == sorted({size for _, size in tenths.milestones})
    with pytest.raises(InvalidInputError, match="does not drop within 100,000 examples"):
        plan("seesaw", schedule="step", decay_at=(100_000,), decay_factor=0.5)


def test_milestones_follow_the_noise_and_are_promised_less_time() -> None:
    found = decision(plan("milestones"))
    assert found.evidence == "derived"
    assert found.high is not None
    assert found.high < 1.0
    assert "of the time of the one batch" in found.reason


def test_without_a_wish_one_batch_stays_and_the_reason_is_said() -> None:
    steep, flat = plan(None, factor=1e4), plan(None, factor=1.0)
    assert steep.batch_schedule is None
    assert "--batch-schedule milestones" in decision(steep).reason
    assert "does not clearly grow" in decision(flat).reason


def test_milestones_need_a_noise_scale_and_room_to_grow() -> None:
    lost = tuple(known.sample(s, 300.0) for s in (-1.0, 1.2, -0.4, 0.9, 0.1, -0.2))
    measured = known.measurements(gradients=lost)
    with pytest.raises(InvalidInputError, match="milestones without a noise scale"):
        make_plan(measured.task, measured, wishes=Wishes(batch_schedule="milestones"))
    exponential = make_plan(measured.task, measured, wishes=Wishes(batch_schedule="exponential"))
    assert "is not predicted" in decision(exponential).reason


@pytest.mark.parametrize(
    "milestones",
    [(), ((5, 8),), ((0, 8), (0, 16)), ((0, 16), (100, 8)), ((0, 8), (200, 16), (100, 32))],
)
def test_milestones_that_do_not_rise_from_the_start_are_refused(milestones: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"pairs \[examples, batch\] that both rise"):
        BatchSchedule(kind="milestones", milestones=milestones, rate_power=0.5)


def test_a_schedule_that_ends_at_another_batch_is_refused() -> None:
    recipe = known.facts().recipe
    schedule = BatchSchedule(kind="linear", milestones=((0, 8), (100, 16)), rate_power=1.0)
    with pytest.raises(InvalidInputError, match="ends at 16; need global_batch_size, 32"):
        Plan.from_recipe(recipe, batch_schedule=schedule)


def test_batch_and_rate_are_read_off_the_milestones() -> None:
    schedule = BatchSchedule(kind="linear", milestones=((0, 8), (100, 32)), rate_power=0.5)
    assert [batch_size_at(schedule, 32, n) for n in (0, 99, 100, 1000)] == [8, 8, 32, 32]
    assert batch_rate_factor(schedule, 32, 8) == pytest.approx(0.5)
    assert (batch_size_at(None, 32, 5), batch_rate_factor(None, 32, 8)) == (32, 1.0)


@pytest.mark.parametrize("kind", ["linear", "milestones"])
def test_the_promised_time_is_that_of_a_run_made_bit_by_bit(kind: Any) -> None:
    found = plan(kind)
    schedule, batch = found.batch_schedule, found.global_batch_size
    assert schedule is not None
    assert batch > 2 * known.facts().recipe.batch_size  # else the pilot's batch hardly matters
    factor = calibrate("sgd", preconditioned=False).factor
    points = fit_models(known.measurements(gradients=growing(100.0))).noise_points
    critical = [float(point.noise_scale or 0) * factor for point in points]
    # 1,000 examples at the recipe's batch between all points, and after the last.
    ends = np.cumsum([1000 / (scale + 32) for scale in critical])
    update = {c.global_batch_size: c.update_seconds for c in found.candidates}

    def seconds(grows: BatchSchedule | None) -> float:
        done, examples, spent = 0.0, float(points[0].examples_seen), 0.0
        while done < ends[-1]:
            scale = critical[int(np.searchsorted(ends, done, side="right"))]
            size = batch_size_at(grows, batch, int(examples))
            done += 0.05 / (1 + scale / size)  # a twentieth of an update
            examples += 0.05 * size
            spent += 0.05 * float(np.interp(size, [*update], [*update.values()]))
        return spent

    promised = float(decision(found).reason.split("it takes ")[1].split(" ")[0])
    assert promised == pytest.approx(seconds(schedule) / seconds(None), rel=0.05)
