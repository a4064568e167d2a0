"""Metrics go to TensorBoard when it is asked for, and a run without the package is refused at once."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tiny
from rightbatch.core.errors import MissingPackageError
from rightbatch.core.plan import Plan
from rightbatch.train.loop import train

PLAN = Plan.from_recipe(tiny.task().recipe, "tiny")


class Writer:
    """Stands for torch's SummaryWriter."""

    made: list["Writer"]

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.points: list[tuple[str, float, int]] = []
        self.made.append(self)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.points.append((tag, value, step))

    def close(self) -> None:
        self.closed = True


def found(monkeypatch: pytest.MonkeyPatch, spec: Any) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: spec if name == "tensorboard" else find(name, *a)
    )


def test_every_line_of_metrics_is_logged_by_update_and_a_resumed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(monkeypatch, "here")
    Writer.made = []
    fake = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    train(tiny.task(), PLAN, tmp_path / "run", 0, 6, tensorboard=True)
    run = train(tiny.task(), PLAN, tmp_path / "run", resume=True, tensorboard=True)
    first, second = Writer.made
    assert (first.purge_step, second.purge_step) == (None, 7)
    assert first.closed
    assert second.closed
    assert first.folder == tmp_path / "run" / "tensorboard"
    evaluated = {(step, value) for tag, value, step in first.points + second.points if "mse" in tag}
    assert evaluated == {(e.updates, e.metrics["mse"]) for e in run.evaluations}
    assert ("batch_size", 8, 1) in first.points


def test_without_the_package_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, None)
    with pytest.raises(
        MissingPackageError, match="tensorboard is not installed; need tensorboard"
    ) as e:
        train(tiny.task(), PLAN, tmp_path / "run", tensorboard=True)
    assert "pip install 'rightbatch[logs]'" in str(e.value)
    assert not (tmp_path / "run").exists()
