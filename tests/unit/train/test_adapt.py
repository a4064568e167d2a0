"""Rate and batch change while training runs: by the plan, by evaluations, by the noise."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tiny
from rightbatch.core.errors import InvalidInputError, MeasurementError
from rightbatch.core.plan import BatchSchedule, Plan
from rightbatch.core.recipe import Recipe
from rightbatch.core.run import Outcome, Run
from rightbatch.measure.meter.noise_meter import NoiseMeter
from rightbatch.tasks.task import Loss
from rightbatch.train import record
from rightbatch.train.adapt import BatchGrowth, Plateau
from rightbatch.train.loop import Saving, train

RECIPE = Recipe(optimizer="sgd", lr=0.01, batch_size=16, epochs=2)  # 48 examples


def plan(**changes: Any) -> Plan:
    return Plan.from_recipe(RECIPE, **changes)


@pytest.fixture(autouse=True)
def every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_LINE_SECONDS", 0.0)


def updates(run: Run) -> Iterator[dict[str, Any]]:
    lines = map(json.loads, (run.run_dir / "metrics.jsonl").read_text().splitlines())
    return (line for line in lines if "loss" in line)


def test_a_batch_schedule_sets_batch_and_rate_in_the_same_update(tmp_path: Path) -> None:
    schedule = BatchSchedule(kind="milestones", milestones=((0, 4), (20, 8), (64, 16)), rate_power=0.5)
    run = train(tiny.task(), plan(micro_batch_size=16, batch_schedule=schedule), tmp_path)
    seen = [(line["examples"], line["batch_size"], line["learning_rate"]) for line in updates(run)]
    assert [examples for examples, _, _ in seen] == [4, 8, 12, 16, 20, 28, 36, 44, 48, 56, 64, 80, 96]
    assert [batch for _, batch, _ in seen] == [4] * 5 + [8] * 6 + [16] * 2
    rates = {batch: rate for _, batch, rate in seen}
    assert rates == pytest.approx({4: 0.005, 8: 0.01 / 2**0.5, 16: 0.01})


def test_the_noise_is_metered_while_the_batch_grows_beyond_a_micro_batch(tmp_path: Path) -> None:
    schedule = BatchSchedule(kind="milestones", milestones=((0, 4), (40, 16)), rate_power=0)
    chosen = plan(micro_batch_size=4, accumulation_steps=4, batch_schedule=schedule)
    meters: list[NoiseMeter] = []

    def meter(model: nn.Module, optimizer: torch.optim.Optimizer) -> NoiseMeter:
        return meters.append(NoiseMeter(model, optimizer, period=1)) or meters[0]

    run = train(tiny.task(), chosen, tmp_path, meter=meter)
    assert [s.big_batch_size for s in meters[0].samples[-4:]] == [8, 16, 16, 16]
    assert len(meters[0].samples) == run.updates


def test_steps_of_a_growing_batch_are_updates(tmp_path: Path) -> None:
    schedule = BatchSchedule(kind="linear", milestones=((0, 8), (16, 16)), rate_power=0)
    chosen = plan(batch_schedule=schedule, epochs=None, steps=5, schedule="linear")
    run = train(tiny.task(), chosen, tmp_path)
    assert (run.updates, run.examples, run.outcome) == (5, 64, Outcome.FINISHED)
    *_, last = updates(run)
    assert last["learning_rate"] == pytest.approx(0.01 * (1 - 56 / 64))


def test_a_run_with_a_growing_batch_goes_on_where_it_stopped(tmp_path: Path) -> None:
    schedule = BatchSchedule(kind="exponential", milestones=((0, 4), (20, 16)), rate_power=1)
    chosen = plan(batch_schedule=schedule)
    whole = train(tiny.task(), chosen, tmp_path / "whole")
    for limit in (3, 6, None):
        run = train(tiny.task(), chosen, tmp_path / "parts", 0, limit, resume=limit != 3)
    torch.testing.assert_close(run.final_state_dict(), whole.final_state_dict(), rtol=0, atol=0)
    assert run.updates == whole.updates


def test_the_rate_steps_down_after_its_examples(tmp_path: Path) -> None:
    chosen = plan(schedule="step", decay_at=(40, 80), decay_factor=0.1, warmup_examples=16)
    rates = [line["learning_rate"] for line in updates(train(tiny.task(), chosen, tmp_path))]
    assert rates == pytest.approx([0.005, 0.01, 0.001, 0.001, 0.001, 1e-4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "step"}, r"schedule = 'step' with decay_at = None; need decay_at and decay_fac"),
        ({"patience": 2}, r"schedule = 'constant' with patience = 2; need none of decay_at"),
        (
            {"schedule": "step", "decay_at": (9, 3), "decay_factor": 0.5},
            r"decay_at = \[9, 3\]; need examples that rise",
        ),
    ],
)
def test_a_schedule_without_its_numbers_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        plan(**changes)


def test_a_plateau_lowers_the_rate_after_patience_evaluations(tmp_path: Path) -> None:
    scores = iter([9.0, 5.0, 6.0, 7.0, 8.0, 4.0, 4.0])  # the first is of the check before the run
    task = tiny.task(evaluate=lambda model, batches: {"mse": next(scores)})
    chosen = plan(schedule="plateau", patience=1, decay_factor=0.5, epochs=6)
    stopped = train(task, chosen, tmp_path, 0, 8)  # an evaluation of its own, 7.0, in mid-epoch
    assert [e.metrics["mse"] for e in stopped.evaluations] == [5.0, 6.0, 7.0]
    rates = [line["learning_rate"] for line in updates(stopped)]
    assert rates == [0.01] * 8
    scores = iter([9.0, 8.0, 4.0, 4.0, 4.0])
    run = train(task, chosen, tmp_path, 0, resume=True)
    rates = [line["learning_rate"] for line in updates(run)]
    assert rates == [0.01] * 8 + [0.005] * 10


def test_a_plateau_counts_from_its_best() -> None:
    plateau = Plateau(decay_factor=0.1, patience=2)
    factors = []
    for score in (1.0, 0.5, 0.5, 0.5, 2.0, 1.0, 1.0, 1.0):
        plateau.see(score)
        factors.append(plateau.factor)
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01])


def test_a_plateau_needs_something_to_follow(tmp_path: Path) -> None:
    chosen = plan(schedule="plateau", patience=1, decay_factor=0.5)
    with pytest.raises(InvalidInputError, match="schedule plateau without valid_data"):
        train(tiny.task(valid_data=None, target=None), chosen, tmp_path)
    with pytest.raises(InvalidInputError, match="schedule plateau and metrics mse; need a target"):
        train(tiny.task(target=None), chosen, tmp_path)


@dataclass
class Reading:
    noise_scale: float | None
    low: float
    high: float | None


class Scripted:
    """A meter whose noise scale is a function of the updates it has seen."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, *, examples: int) -> None:
        self.count += 1

    def estimate(self) -> Reading:
        if self.count < 5:
            raise MeasurementError("too few", need="more", hint="train on")
        value = 10.0 if self.count < 25 else 50.0
        return Reading(value, 0.9 * value, 1.1 * value)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


BY_NOISE = plan(
    batch_schedule=BatchSchedule(kind="noise", milestones=((0, 4),), rate_power=0.5), epochs=10
)


def test_the_batch_doubles_when_three_looks_agree_that_the_noise_has_doubled(tmp_path: Path) -> None:
    run = train(tiny.task(), BY_NOISE, tmp_path / "whole", meter=Scripted)
    seen = list(updates(run))
    assert run.examples == 480
    batches = [line["batch_size"] for line in seen]
    # Looks at updates 10, 20 (10), 30, 40, 50 (50): doubled after the one at 50, and again at 80.
    assert (batches.index(8), batches.index(16), batches[-1]) == (51, 81, 16)
    assert {line["batch_size"]: line["learning_rate"] for line in seen} == pytest.approx({
        4: 0.005,
        8: 0.01 / 2**0.5,
        16: 0.01,
    })
    assert seen[60]["noise_scale"] == [50.0, 45.0, pytest.approx(55.0)]

    for limit in (45, 52, 70, None):
        parts = train(
            tiny.task(), BY_NOISE, tmp_path / "parts", 0, limit, resume=limit != 45, meter=Scripted
        )
    torch.testing.assert_close(parts.final_state_dict(), run.final_state_dict(), rtol=0, atol=0)
    assert parts.updates == run.updates


def test_growth_waits_for_agreement_and_stops_at_the_plan() -> None:
    growth = BatchGrowth(batch=4, largest=6)
    assert [growth.wants_more(r) for r in (None, Reading(None, 1, None), Reading(9, 5, None))] == [
        False
    ] * 3
    assert growth.reference is None
    looks = [Reading(10, 8, 12), Reading(40, 20, 80), Reading(40, 19, 80)] + [Reading(40, 20, 80)] * 3
    assert [growth.wants_more(look) for look in looks] == [False] * 5 + [True]
    growth.grow()
    assert (growth.batch, growth.reference, growth.agreed) == (6, 20, 0)
    assert not any(growth.wants_more(Reading(900, 800, 999)) for _ in range(5))


def test_a_batch_that_follows_the_noise_needs_a_meter(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="a batch that follows the noise, and no meter"):
        train(tiny.task(), BY_NOISE, tmp_path)


def test_the_noise_is_metered_while_training_and_changes_nothing(tmp_path: Path) -> None:
    chosen = plan(micro_batch_size=4, accumulation_steps=4, epochs=12)
    metered = train(tiny.task(), chosen, tmp_path / "metered", meter=NoiseMeter)
    plain = train(tiny.task(), chosen, tmp_path / "plain")
    torch.testing.assert_close(metered.final_state_dict(), plain.final_state_dict(), rtol=0, atol=0)
    assert any("noise_scale" in line for line in updates(metered))


def test_activation_checkpointing_by_the_plan_gives_the_same_weights(tmp_path: Path) -> None:
    def build() -> nn.Module:
        block = [nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.2)) for _ in range(2)]
        return nn.Sequential(*block, nn.Linear(3, 1))

    runs = [
        train(tiny.task(model=build), plan(checkpointing=is_on), tmp_path / str(is_on))
        for is_on in (True, False)
    ]
    first, second = (run.final_state_dict() for run in runs)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def huge(model: nn.Module, batch: Any) -> Loss:
    """A loss whose gradient overflows at the first scales of fp16."""
    loss = tiny.squared_error(model, batch)
    return Loss(loss.total * 100, loss.count)


def test_fp16_leaves_out_updates_that_overflow_and_trains_near_fp32(tmp_path: Path) -> None:
    half = train(
        tiny.task(loss=huge), plan(precision="fp16", learning_rate=1e-4, epochs=8), tmp_path / "half"
    )
    full = train(tiny.task(loss=huge), plan(learning_rate=1e-4, epochs=8), tmp_path / "full")
    assert half.outcome is Outcome.FINISHED
    assert 0 < half.skipped_updates < half.updates == full.updates
    weights = load_file(tmp_path / "half" / "checkpoints" / "final.safetensors")
    assert weights["weight"].dtype == torch.float32
    assert all(value.isfinite().all() for value in weights.values())


def test_fp16_goes_on_with_its_scale(tmp_path: Path) -> None:
    chosen = plan(precision="fp16", learning_rate=1e-4, epochs=4)
    task = tiny.task(loss=huge)
    whole = train(task, chosen, tmp_path / "whole")
    train(task, chosen, tmp_path / "parts", 0, 3, saving=Saving(seconds=0.0))
    parts = train(task, chosen, tmp_path / "parts", resume=True)
    torch.testing.assert_close(parts.final_state_dict(), whole.final_state_dict(), rtol=0, atol=0)
    assert parts.skipped_updates == whole.skipped_updates


def test_a_loss_that_runs_away_ends_the_run_by_the_stated_rule(tmp_path: Path) -> None:
    task = tiny.task(recipe=RECIPE, target=None, valid_data=None, evaluate=None)
    run = train(task, plan(learning_rate=0.8, epochs=100), tmp_path)
    assert run.outcome is Outcome.DIVERGED
    assert "the loss was above 10 times its first level" in run.message
    assert 60 < run.updates < 100
    losses = [line["loss"] for line in updates(run)]
    assert min(losses[-50:]) > 10 * sum(losses[:10]) / 10 > losses[-51]
