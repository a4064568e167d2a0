"""How long each side trains, and what is stretched with it."""

from pathlib import Path

import pytest

import tiny
from rightbatch.core.plan import BatchSchedule, Plan
from rightbatch.core.recipe import Recipe
from rightbatch.tasks.check import check_task
from rightbatch.validate.session import validate
from rightbatch.validate.sides import with_examples, with_updates

NUM = tiny.NUM_EXAMPLES
GROWS = BatchSchedule(
    kind="milestones", milestones=((0, 4), (2 * NUM, 8), (3 * NUM, 16)), rate_power=0.5
)
FOUR_EPOCHS = Recipe(optimizer="sgd", lr=0.01, batch_size=16, epochs=4)
PLAN = Plan.from_recipe(FOUR_EPOCHS, "tiny", batch_schedule=GROWS)


@pytest.mark.parametrize(("epochs", "starts"), [(1, (0, 24, 36)), (8, (0, 4 * NUM, 6 * NUM))])
def test_a_batch_schedule_is_stretched_with_the_run(epochs: int, starts: tuple[int, ...]) -> None:
    facts = check_task(tiny.task())
    like = Plan.from_recipe(FOUR_EPOCHS.replace(epochs=epochs, batch_size=8), "tiny")
    found = with_examples(PLAN, facts, like)
    assert found.batch_schedule is not None
    assert found.batch_schedule.milestones == tuple(zip(starts, (4, 8, 16), strict=True))


def test_milestones_that_fall_together_leave_the_larger_batch() -> None:
    facts = check_task(tiny.task())
    near = BatchSchedule(kind="milestones", milestones=((0, 4), (3, 8), (5, 16)), rate_power=0.5)
    like = Plan.from_recipe(FOUR_EPOCHS.replace(epochs=1), "tiny")
    found = with_examples(PLAN.replace(batch_schedule=near), facts, like)
    assert found.batch_schedule is not None
    assert found.batch_schedule.milestones == ((0, 4), (1, 16))


def test_examples_of_a_growing_batch_are_those_of_its_updates() -> None:
    facts = check_task(tiny.task())
    like = PLAN.replace(epochs=None, steps=24)  # 2 epochs of 12 updates, at batch 4
    found = with_examples(Plan.from_recipe(FOUR_EPOCHS, "tiny"), facts, like)
    assert found.epochs == 2


def test_updates_of_a_growing_batch_are_stretched_by_their_own_number() -> None:
    facts = check_task(tiny.task())
    found = with_updates(PLAN, facts, 2 * (12 + 12 + 6 + 3))
    assert found.batch_schedule is not None
    assert found.batch_schedule.milestones == ((0, 4), (4 * NUM, 8), (6 * NUM, 16))


def test_a_candidate_whose_batch_grows_comes_to_its_whole_batch_in_a_shorter_run(
    tmp_path: Path,
) -> None:
    short = Plan.from_recipe(FOUR_EPOCHS.replace(epochs=1), "tiny")
    found = validate(tiny.task(), PLAN, against=short, out=tmp_path, seeds=2, margin=0.5)
    # 24 examples at batch 4, 16 at batch 8 (its last update begins before 36), and the 8 that are left.
    assert {run.updates for run in found.runs if run.side == "candidate"} == {6 + 2 + 1}
