"""Every outcome of a probe, from a task that misbehaves at chosen sizes; each case starts processes."""

import random
import sys
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from rightbatch.core.errors import InvalidInputError, MeasurementError
from rightbatch.fit.memory_model import MemoryModel
from rightbatch.measure.memory import probe
from rightbatch.measure.memory.malloc import resident_bytes
from rightbatch.measure.memory.probe import ProbeResult, largest_that_fits, probe_micro_batch
from rightbatch.tasks.load import load_task
from rightbatch.tasks.task import Task

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="caps memory as Linux does")

MIB = 2**20
# Each example makes 1 MiB live in forward; some sizes end otherwise. The process warms up on 2.
SOURCE = """
import os, signal, sys, torch
import rightbatch as rb

bytearray(300 << 20)  # a peak before the steps, which is not theirs

def misbehave(size):
    if size == 11: os.kill(os.getpid(), signal.SIGKILL)
    if size == 12: raise ValueError("a bug of the task")
    if size == 13: sys.exit(3)

def loss(model, batch):
    (x,) = batch
    size = len(x)
    misbehave(size)
    held = torch.ones(size, 2**18, device=x.device)
    return (model(x) * held.mean()).square().mean()

def make_task():
    return rb.Task(
        name="hog", model=lambda: torch.nn.Linear(4, 1), valid_data=None, loss=loss,
        train_data=torch.utils.data.TensorDataset(torch.ones(200, 4)),
        recipe=rb.Recipe(optimizer="sgd", lr=0.1, batch_size=8, epochs=1),
    )
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    path = tmp_path_factory.mktemp("task") / "hog_task.py"
    path.write_text(SOURCE, encoding="utf-8")
    return load_task(str(path))


def run(task: Task, size: int, limit_bytes: int = 64 * MIB, **options: Any) -> ProbeResult:
    return probe_micro_batch(task, size, limit_bytes=limit_bytes, **options)


@pytest.mark.slow
def test_what_fits_is_measured_and_leaves_no_trace_in_the_caller(task: Task) -> None:
    before = resident_bytes()
    states = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().tolist()
    result = run(task, 32, repeats=2)
    assert (result.outcome, result.message, result.finished) == ("fits", "", True)
    assert result.peak_bytes is not None
    assert 32 * MIB <= result.peak_bytes < 36 * MIB
    assert result.resident_bytes is not None
    assert result.resident_bytes > result.peak_bytes + 100 * MIB  # torch itself
    assert states == (
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.get_rng_state().tolist(),
    )
    assert resident_bytes() - before < 20 * MIB


@pytest.mark.slow
def test_a_small_excess_is_measured_and_a_large_one_raises_in_the_child(task: Task) -> None:
    little = run(task, 70)
    assert (little.outcome, little.finished, little.is_guess) == ("out_of_memory", True, False)
    assert little.peak_bytes is not None
    assert 70 * MIB <= little.peak_bytes < 74 * MIB
    assert "above the limit" in little.message
    much = run(task, 150)
    assert (much.outcome, much.finished, much.is_guess) == ("out_of_memory", False, False)
    assert "DefaultCPUAllocator: can't allocate memory" in much.message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "outcome", "message", "is_guess"),
    [
        (11, "out_of_memory", "SIGKILL", True),
        (12, "failed", "ValueError: a bug of the task", False),
        (13, "failed", "exit code 3", False),
    ],
)
def test_whatever_becomes_of_the_child_is_an_outcome(
    task: Task, size: int, outcome: str, message: str, is_guess: bool
) -> None:
    result = run(task, size, repeats=3)
    assert (result.outcome, result.finished, result.is_guess) == (outcome, False, is_guess)
    assert message in result.message


@pytest.mark.slow
def test_silence_ends_with_the_time_that_was_given(task: Task) -> None:
    result = run(task, 8, timeout_seconds=1.0)
    assert (result.outcome, result.message) == ("failed", "no end within 1 s")
    assert result.seconds < 10


@pytest.mark.slow
def test_the_recipe_goes_along_and_other_data_is_refused(task: Task) -> None:
    changed = replace(task, recipe=task.recipe.replace(optimizer="no_such_optimizer"))
    assert "no_such_optimizer" in run(changed, 8).message
    shorter = replace(task, train_data=torch.utils.data.TensorDataset(torch.ones(100, 4)))
    assert "200 training examples, the caller has 100" in run(shorter, 8).message


def test_a_task_that_no_other_process_can_load_is_refused(task: Task) -> None:
    with pytest.raises(InvalidInputError, match=r"'hog'.*fresh process can load.*\n  hint: load it"):
        run(replace(task, spec=""), 8)


@pytest.mark.parametrize("change", [{"repeats": 0}, {"timeout_seconds": 0.0}, {"limit_bytes": 0}])
def test_numbers_that_are_not_positive_are_refused(task: Task, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="all positive"):
        run(task, 8, **({"limit_bytes": 1} | change))


def test_other_systems_are_refused(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe.sys, "platform", "win32")
    with pytest.raises(MeasurementError, match="platform win32; need Linux"):
        run(task, 8)


@dataclass
class Law:
    """1 MiB per example, and what was asked of it."""

    asked: list[int]

    def high_bytes(self, size: int) -> int:
        return size * MIB

    def max_micro_batch(self, limit_bytes: int, headroom: float) -> int:
        self.asked.append(int(limit_bytes * (1 - headroom)))
        return self.asked[-1] // MIB


def search(
    monkeypatch: pytest.MonkeyPatch, task: Task, answers: dict[int, tuple[str, int | None]], **more: Any
) -> tuple[int, list[ProbeResult]]:
    """``largest_that_fits`` under 100 MiB, where sizes have these outcomes and peaks."""

    def answer(_: Task, size: int, **options: Any) -> ProbeResult:
        assert 97 * MIB < options["limit_bytes"] < 100 * MIB  # room for the next run
        outcome, peak = answers[size]
        return ProbeResult(
            micro_batch_size=size,
            outcome=cast(Any, outcome),
            message="as told",
            peak_bytes=peak,
            resident_bytes=None,
            seconds=0.0,
            finished=peak is not None,
        )

    monkeypatch.setattr(probe, "probe_micro_batch", answer)
    return largest_that_fits(task, cast(MemoryModel, Law([])), 100 * MIB, **more)


def test_one_run_confirms_the_law(monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    size, results = search(monkeypatch, task, {90: ("fits", 92 * MIB)})
    assert (size, len(results)) == (90, 1)


def test_a_measured_excess_moves_the_second_run_by_just_that(
    monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    answers: dict[int, tuple[str, int | None]] = {100: ("out_of_memory", 104 * MIB)}
    size, results = search(monkeypatch, task, answers | {92: ("fits", 96 * MIB)}, headroom=0.0)
    assert (size, [r.outcome for r in results]) == (92, ["out_of_memory", "fits"])


@pytest.mark.parametrize("outcome", ["out_of_memory", "too_large_for_kernel"])
def test_an_excess_that_nobody_measured_halves_the_size(
    monkeypatch: pytest.MonkeyPatch, task: Task, outcome: str
) -> None:
    size, _ = search(monkeypatch, task, {90: (outcome, None), 45: ("fits", 60 * MIB)})
    assert size == 45


def test_no_size_is_returned_that_was_not_run(monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    answers: dict[int, tuple[str, int | None]] = {90: ("out_of_memory", None)}
    with pytest.raises(MeasurementError, match=r"no fit at sizes 90 .*, 45 .*\n  hint: raise the"):
        search(monkeypatch, task, answers | {45: ("out_of_memory", None)})
    with pytest.raises(MeasurementError, match="micro-batch size 90: as told; need two steps that run"):
        search(monkeypatch, task, {90: ("failed", None)})


def test_an_excess_that_leaves_no_room_for_one_example_ends_the_search(
    monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    with pytest.raises(MeasurementError, match=r"no fit at sizes 90 \(out_of_memory: as told\)"):
        search(monkeypatch, task, {90: ("out_of_memory", 190 * MIB)})


def test_no_micro_batch_is_longer_than_the_data(monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    short = replace(task, train_data=torch.utils.data.TensorDataset(torch.ones(20, 4)))
    assert search(monkeypatch, short, {20: ("fits", MIB)})[0] == 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_raises_its_own_exception_in_the_child(task: Task) -> None:
    fits = run(task, 32, device="cuda:0")
    assert (fits.outcome, fits.finished) == ("fits", True)
    assert fits.peak_bytes is not None
    assert 32 * MIB <= fits.peak_bytes < 50 * MIB  # with the library's workspaces
    much = run(task, 150, device="cuda:0")
    assert (much.outcome, much.finished, much.is_guess) == ("out_of_memory", False, False)
    assert much.message.startswith("OutOfMemoryError")
    assert not torch.cuda.is_initialized()
