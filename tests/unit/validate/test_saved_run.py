"""Branches from the checkpoints of a run: the same weights, optimizer state, rate and batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Recipe
from rightbatch.measure.branches import fork, trained_trunk
from rightbatch.report.steps_text import critical_lines
from rightbatch.tasks.task import Task
from rightbatch.train.loop import Saving, train
from rightbatch.validate import critical as critical_module
from rightbatch.validate.critical import measure_critical
from rightbatch.validate.saved_run import read_run, restored_trunk

RECIPE = Recipe(optimizer="sgd", lr=0.05, momentum=0.9, batch_size=8, epochs=5)


def task(**changes: Any) -> Task:
    return tiny.task(**({"recipe": RECIPE} | changes))


def saved(folder: Path, updates: int = 12, **changes: Any) -> Path:
    plan = Plan.from_recipe(RECIPE, "tiny", **changes)
    train(task(), plan, folder, max_updates=updates, saving=Saving(seconds=0, keep=3))
    return folder


def noted_branches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Plan, float]]:
    """Plans of the branches that will be made, each with the multiple of its rate."""
    made: list[tuple[Plan, float]] = []
    real = critical_module.branch

    def noted(trunk: Any, plan: Plan, factor: float) -> Any:
        made.append((plan, factor))
        return real(trunk, plan, factor)

    monkeypatch.setattr(critical_module, "branch", noted)
    return made


def test_a_trunk_goes_on_as_the_run_that_was_saved(tmp_path: Path) -> None:
    run = read_run(saved(tmp_path), task())
    assert [*run.manifests] == [80, 88, 96]  # three checkpoints are kept, one after every update
    restored = restored_trunk(run.task, run.manifests[96], device="cpu", seed=0)
    straight = trained_trunk(task(), 96, device="cpu", seed=0)
    assert (restored.examples_seen, restored.seed) == (straight.examples_seen, straight.seed)
    ends = []
    for trunk in (restored, straight):
        branch = fork(trunk, batch_size=16, learning_rate=0.1)
        branch.train(32)  # the momentum of the run moves the weights on
        ends.append(torch.cat([p.detach().flatten() for p in branch.model.parameters()]))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-7)


def test_branches_begin_at_every_checkpoint_with_the_rate_and_batch_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_run(saved(tmp_path / "run", learning_rate=0.02, global_batch_size=4), task())
    branches = noted_branches(monkeypatch)
    found = measure_critical(run.task, [4, 8], out=tmp_path, points=run.manifests, seeds=2)
    assert [point.examples_seen for point in found.points] == [40, 44, 48]
    rates = {plan.global_batch_size: factor * plan.learning_rate for plan, factor in branches}
    assert rates == pytest.approx({4: 0.02, 8: 0.04})
    assert "2 paired orders of examples" in critical_lines(found)[0]
    other = read_run(
        saved(tmp_path / "again", updates=11, learning_rate=0.02, global_batch_size=4), task()
    )
    with pytest.raises(InvalidInputError, match=r"points = .* began with"):
        measure_critical(other.task, [4, 8], out=tmp_path, points=other.manifests, seeds=2)


def test_a_branch_holds_the_rate_that_the_schedule_has_in_its_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling = task(recipe=RECIPE.replace(schedule="linear"))
    branches = noted_branches(monkeypatch)
    found = measure_critical(falling, [4, 8], out=tmp_path / "a", points=(0.0, 0.5), seeds=2)
    middle = found.window_examples / 2
    assert {share for _, share in branches} == {1 - middle / 240, 1 - (120 + middle) / 240}
    with pytest.raises(InvalidInputError, match="learning rate 0 after 240 of 240 examples"):
        measure_critical(falling, [4, 8], out=tmp_path / "b", points=(0.5, 1.0), seeds=2)


def test_one_checkpoint_can_be_named(tmp_path: Path) -> None:
    (path,) = (saved(tmp_path) / "checkpoints").glob("update-*11.json")
    assert read_run(path, task()).manifests == {88: path}


def test_what_cannot_be_branched_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no checkpoint in"):
        read_run(tmp_path / "nowhere", task())
    with pytest.raises(InvalidInputError, match="no checkpoint in"):
        read_run(tmp_path / "checkpoints" / "update-000000001.json", task())
    folder = saved(tmp_path / "run")
    with pytest.raises(InvalidInputError, match="a plan for task 'tiny', and task 'other'"):
        read_run(folder, task(name="other"))
    run = read_run(folder, task(model=lambda: nn.Linear(tiny.NUM_FEATURES, 2)))
    with pytest.raises(InvalidInputError, match=r"weight '(bias|weight)' is float32"):
        restored_trunk(run.task, run.manifests[96], device="cpu", seed=0)
    with (folder / "checkpoints" / "update-000000012.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\xff\xff\xff\xff")
    with pytest.raises(InvalidInputError, match="its SHA-256 is not the one"):
        restored_trunk(task(), read_run(folder, task()).manifests[96], device="cpu", seed=0)


def test_a_run_whose_plan_changed_the_model_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    plan = folder / "plan.json"
    plan.write_text(plan.read_text().replace('"batch_norm": null', '"batch_norm": "group"'))
    with pytest.raises(InvalidInputError, match="trains with batch_norm = 'group'"):
        read_run(folder, task())
