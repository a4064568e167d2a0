"""Which remedies apply to a candidate, what each changes, and what its runs come to."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import tiny
from rightbatch.core.comparison import Comparison, Remedy
from rightbatch.core.plan import BatchSchedule, Plan
from rightbatch.core.recipe import Recipe, Target
from rightbatch.core.store import read_record
from rightbatch.plan.toml import read_plan
from rightbatch.tasks.builtin.classify import accuracy, cross_entropy
from rightbatch.tasks.check import check_task
from rightbatch.tasks.task import Task
from rightbatch.validate import pairs
from rightbatch.validate.remedies import list_remedies
from rightbatch.validate.session import COMPARISON, validate
from rightbatch.validate.sides import at_batch, batch_side, recipe_side, with_updates

RECIPE = Recipe(optimizer="sgd", lr=0.05, momentum=0.9, batch_size=4, epochs=2, weight_decay=0.01)


def data(seed: int, count: int = 96) -> TensorDataset:
    """Three classes, told by which of three features is the largest, with noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator)
    return TensorDataset(x, (x + 0.3 * torch.randn(count, 3, generator=generator)).argmax(1))


def task(**changes: Any) -> Task:
    values: dict[str, Any] = {
        "model": lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)),
        "train_data": data(0),
        "valid_data": data(1),
        "loss": cross_entropy,
        "evaluate": accuracy,
        "recipe": RECIPE,
        "target": Target("accuracy", 0.9),
    }
    return tiny.task(**(values | changes))


def remedies(of: Task, candidate: Plan, matched_by: Any = "examples") -> dict[str, Remedy]:
    facts = check_task(of)
    reference = recipe_side(of.name, of.recipe).plan
    found = list_remedies(of, facts, candidate, reference, matched_by=matched_by, device="cpu")
    return {remedy.name: remedy for remedy in found}


def at_32(of: Task) -> Plan:
    return batch_side(check_task(of), 32).plan


def test_each_remedy_changes_one_thing_of_the_candidate() -> None:
    of = task()
    plan = at_32(of)
    found = remedies(of, plan)
    plans = {name: remedy.plan for name, remedy in found.items()}
    assert plans["weight decay"] == plan.replace(weight_decay=0.02)
    assert plans["label smoothing"] == plan
    assert [remedy.label_smoothing for remedy in found.values()] == [0, 0.1, 0, 0, 0]
    assert plans["ghost batch norm"] == plan.replace(batch_norm="ghost", ghost_batch_size=4)
    smaller = plans["smaller batch"]
    assert smaller is not None
    assert (smaller.global_batch_size, smaller.epochs) == (11, 2)  # sqrt(4 x 32)
    assert smaller.learning_rate == pytest.approx(0.05 * 11 / 4)
    longer = plans["longer training"]
    assert longer is not None
    assert (longer.steps, longer.learning_rate) == (48, plan.learning_rate)
    assert found["longer training"].change.startswith("48 updates in place of 6")


def test_weight_decay_goes_to_the_references_time_constant_where_it_is_off() -> None:
    of = task()
    plan = at_32(of).replace(learning_rate=0.1)  # the rate moved by 2, the batch by 8
    found = remedies(of, plan)["weight decay"].plan
    assert found is not None
    assert found.weight_decay == pytest.approx(0.04)
    ours = found.global_batch_size / (found.learning_rate * 0.04)
    assert ours == pytest.approx(RECIPE.batch_size / (RECIPE.lr * 0.01))


@pytest.mark.parametrize(
    ("changes", "plan", "name", "why"),
    [
        ({"model": lambda: nn.Linear(3, 3)}, {}, "ghost batch norm", "no BatchNorm"),
        ({}, {"batch_norm": "group"}, "ghost batch norm", "has group batch norm already"),
        (
            {},
            {"micro_batch_size": 4, "accumulation_steps": 8},
            "ghost batch norm",
            "sees 4 examples at a time, and 4 in the reference",
        ),
        ({}, {"weight_decay": 0.0}, "weight decay", "no weight decay"),
        ({}, {"optimizer": "adam", "momentum": None}, "weight decay", "recipe's optimizer"),
        ({}, {"optimizer": "adam", "momentum": None}, "smaller batch", "recipe's optimizer"),
        ({}, {"steps": 48, "epochs": None}, "longer training", "48 updates already"),
    ],
)
def test_a_remedy_that_cannot_apply_says_why(
    changes: dict[str, Any], plan: dict[str, Any], name: str, why: str
) -> None:
    of = task(**changes)
    found = remedies(of, at_32(of).replace(**plan))[name]
    assert found.plan is None
    assert why in found.change


def test_a_batch_that_follows_a_schedule_is_neither_halved_nor_matched_by_updates() -> None:
    of = task()
    schedule = BatchSchedule(kind="milestones", milestones=((0, 8), (48, 32)), rate_power=1.0)
    found = remedies(of, at_32(of).replace(batch_schedule=schedule))
    assert "follows a schedule" in found["smaller batch"].change
    assert "follows a schedule" in found["longer training"].change


def test_a_smaller_batch_is_not_tried_where_its_pace_is_unknown_or_none_lies_between() -> None:
    of = task()
    assert "pace" in remedies(of, at_32(of), "time")["smaller batch"].change
    near = batch_side(check_task(of), 8).plan
    assert "no batch half-way" in remedies(of, near)["smaller batch"].change


def test_a_remedy_that_no_run_would_accept_says_why_before_any_run() -> None:
    of = task(train_data=data(0, 100))  # 9 x 11 + 1
    smaller = remedies(of, at_32(of))["smaller batch"]
    assert smaller.plan is None
    assert "a micro-batch of 1 example, which BatchNorm cannot normalise" in smaller.change


def test_a_smaller_batch_keeps_the_split_of_the_candidate() -> None:
    of = task()
    facts = check_task(of)
    plan = at_32(of).replace(micro_batch_size=4, accumulation_steps=4, num_replicas=2)
    found = at_batch(plan, facts, 18)
    assert (found.global_batch_size, found.micro_batch_size, found.accumulation_steps) == (16, 4, 2)
    small = at_batch(plan, facts, 5)
    assert (small.global_batch_size, small.micro_batch_size, small.num_replicas) == (4, 2, 2)


def test_remedies_run_over_the_same_seeds_and_are_kept_for_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = task()
    plain = validate(of, 32, out=tmp_path, seeds=2, margin=0.01)
    assert plain.verdict in {"worse", "undecided"}
    assert plain.remedies is None
    trained: list[Path] = []
    real = pairs.train

    def counting(a: Task, plan: Plan, folder: Path, *rest: Any, **more: Any) -> Any:
        trained.append(folder)
        return real(a, plan, folder, *rest, **more)

    monkeypatch.setattr(pairs, "train", counting)
    found = validate(of, 32, out=tmp_path, seeds=2, margin=0.01, remedy=True)
    assert found.remedies is not None
    assert len(trained) == 5 * 2  # the runs of both sides are there already
    assert found.runs == plain.runs
    assert found.remedies.level == pytest.approx(0.99)
    for result in found.remedies.results:
        assert [run.seed for run in result.runs] == [0, 1]
        references = [run for run in plain.runs if run.side == "reference"]
        mean = sum(
            ours.metrics["accuracy"] - theirs.metrics["accuracy"]
            for ours, theirs in zip(result.runs, references, strict=True)
        )
        assert result.difference is not None
        assert result.difference.value == pytest.approx(mean / 2)
        assert all((tmp_path / run.run_dir / "outcome.json").exists() for run in result.runs)
    smoothed = found.remedies.results[1].runs
    plains = [run for run in plain.runs if run.side == "candidate"]
    for ours, theirs in zip(smoothed, plains, strict=True):  # from the same weights, to others
        assert abs(ours.metrics["loss"] - theirs.metrics["loss"]) > 1e-4
    ratios = [result.examples_ratio for result in found.remedies.results]
    assert ratios[:4] == [1, 1, 1, 1]
    assert ratios[4] == pytest.approx(8, rel=0.1)
    saved = tmp_path / "remedies" / "ghost-batch-norm" / "plan.toml"
    assert read_plan(saved).ghost_batch_size == 4
    assert "kept as in the recipe\nlearning_rate" not in saved.read_text()
    assert "the candidate that was compared; definition]\nlearning_rate = 0.4" in saved.read_text()
    trained.clear()
    assert validate(of, 32, out=tmp_path, seeds=2, margin=0.01, remedy=True) == found
    assert trained == []
    assert read_record(tmp_path / COMPARISON, Comparison) == found


def test_nothing_is_tried_where_nothing_is_wrong(tmp_path: Path) -> None:
    found = validate(task(), Plan.from_recipe(RECIPE), out=tmp_path, seeds=2, margin=0.2, remedy=True)
    assert (found.verdict, found.remedies) == ("equivalent", None)


def test_longer_training_stretches_the_schedule_over_its_updates() -> None:
    facts = check_task(task())
    plan = at_32(task()).replace(warmup_examples=32)
    assert with_updates(plan, facts, 48).warmup_examples == 8 * 32
