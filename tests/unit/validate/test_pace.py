"""Paces of two plans on a machine that is not always as fast, and a stop while they are taken."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import BatchSchedule, Plan
from rightbatch.core.run import Outcome
from rightbatch.tasks.task import Loss
from rightbatch.validate import pace
from rightbatch.validate.ledger import StudyStoppedError
from rightbatch.validate.pace import pace_ratio
from rightbatch.validate.session import SIDES, validate
from rightbatch.validate.workers import HowMany

SMALL = Plan.from_recipe(tiny.task().recipe, "tiny")
LARGE = SMALL.replace(global_batch_size=16, micro_batch_size=16)


def machine(slowness: Callable[[float], float]) -> Callable[..., Any]:
    """A stand-in for training: an update takes 1 ms for 8 examples, times how slow it is by then."""
    clock = 0.0

    def train(task: object, plan: Plan, folder: str, seed: int, updates: int, **_: Any) -> object:
        nonlocal clock
        seconds = updates * plan.global_batch_size / 8 * 1e-3 * slowness(clock)
        clock += seconds
        return SimpleNamespace(seconds=seconds, updates=updates, outcome=Outcome.STOPPED)

    return train


def ratio(workers: HowMany = 1) -> float:
    where = Path("study")
    return pace_ratio(tiny.task(), LARGE, SMALL, device="cpu", workers=workers, folder=where)


@pytest.mark.parametrize(
    "slowness",
    [
        lambda clock: 1.0,
        lambda clock: 1.0 if clock < 2 else 3.0,
        lambda clock: 1.0 if clock < 1 else 0.4,
        lambda clock: 1 + clock / 2,
    ],
)
def test_the_ratio_of_two_paces_outlives_a_change_of_the_machines(
    slowness: Callable[[float], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "train", machine(slowness))
    assert ratio() == pytest.approx(2.0, rel=0.15)


@pytest.mark.parametrize(("workers", "threads"), [(1, 2), (2, 1), ("ray", 1)])
def test_paces_are_taken_with_as_many_threads_as_runs_have(
    workers: HowMany, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    train = machine(lambda clock: 1.0)

    def watched(*args: Any, **more: Any) -> object:
        seen.add(torch.get_num_threads())
        return train(*args, **more)

    monkeypatch.setattr(pace, "train", watched)
    torch.set_num_threads(2)
    try:
        ratio(workers)
        assert (seen, torch.get_num_threads()) == ({threads}, 2)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_while_paces_are_taken_stops_the_study_and_fixes_no_length(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    is_sent = False

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
        nonlocal is_sent
        if len(batch[1]) > 2 and not is_sent:  # checks before a run take two examples
            is_sent = True
            os.kill(os.getpid(), number)
        return tiny.squared_error(model, batch)

    with pytest.raises(StudyStoppedError, match="while both sides were timed") as stopped:
        validate(tiny.task(loss=loss), 16, out=tmp_path, seeds=2, matched_by="time")
    assert stopped.value.exit_code == code
    assert not (tmp_path / SIDES).exists()
    assert not (tmp_path / "runs").exists()


def test_a_batch_that_changes_has_no_pace() -> None:
    grows = BatchSchedule(kind="milestones", milestones=((0, 8), (48, 16)), rate_power=0.5)
    with pytest.raises(InvalidInputError, match="a batch schedule matched by time"):
        pace_ratio(
            tiny.task(),
            LARGE.replace(batch_schedule=grows),
            SMALL,
            device="cpu",
            workers=1,
            folder=Path("study"),
        )


def test_real_stretches_have_a_ratio() -> None:
    assert 0.2 < ratio() < 10
