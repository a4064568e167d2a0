"""Other modes are traced and timed beside the recipe's, and one that fails is named with its reason."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from rightbatch.core.recipe import Recipe
from rightbatch.core.samples import Measurements, ModeSamples, StepTiming
from rightbatch.core.store import read_record
from rightbatch.fit.memory_model import fit_memory_model
from rightbatch.measure import modes, session, timing
from rightbatch.measure.budget import Budget
from rightbatch.measure.environment import read_environment
from rightbatch.measure.modes import measure_modes, other_modes
from rightbatch.measure.session import measure
from rightbatch.tasks.check import check_task


def blocks() -> nn.Module:
    """Two repeated blocks, wide enough that recomputing them shows in memory."""
    return nn.Sequential(
        nn.Linear(3, 32),
        *(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)) for _ in range(2)),
        nn.Linear(32, 1),
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "MAX_ROUNDS", timing.MIN_ROUNDS)
    monkeypatch.setattr(modes, "MAX_ROUNDS", modes.MIN_ROUNDS)
    monkeypatch.setattr(session, "BUSY_LOAD", float("inf"))


@pytest.fixture(scope="module")
def base() -> Measurements:
    """Step times at three sizes, from nowhere; the modes are what is tested."""
    task = tiny.task(model=blocks)
    return Measurements(
        task=check_task(task),
        environment=read_environment(),
        step_timings=tuple(
            StepTiming(micro_batch_size=size, seconds=(1e-3,) * 5) for size in (2, 8, 16)
        ),
    )


def run(task: Any, base: Measurements, seconds: float = 20.0) -> tuple[dict[Any, ModeSamples], bool]:
    *_, (_, found, cut) = measure_modes(
        task, base, device="cpu", memory_bytes=2**30, budget=Budget(seconds=seconds), seed=0
    )
    return {(mode.precision, mode.checkpointing): mode for mode in found}, cut


def test_a_recipe_in_half_precision_is_compared_with_single() -> None:
    recipe = Recipe(lr=0.1, batch_size=8, epochs=1, precision="bf16")
    assert other_modes(recipe) == [("bf16", True), ("fp32", False), ("fp32", True)]


def test_every_mode_gets_a_memory_law_and_times_beside_the_recipes(base: Measurements) -> None:
    found, cut = run(tiny.task(model=blocks), base)
    assert not cut
    assert list(found) == [("fp32", True), ("bf16", False), ("bf16", True)]
    sizes = [t.micro_batch_size for t in base.step_timings]
    for mode in found.values():
        assert mode.refused is None
        assert len(mode.memory) >= 2
        assert [t.micro_batch_size for t in mode.timings] == sizes
        for timed in mode.timings:
            assert timed.beside_micro_batch_size == timed.micro_batch_size
            assert len(timed.seconds) == len(timed.beside_seconds) >= modes.MIN_ROUNDS


def test_a_model_without_blocks_has_no_checkpointing_and_says_so(base: Measurements) -> None:
    found, _ = run(tiny.task(), base)
    assert found["bf16", False].timings
    assert "repeated" in (found["fp32", True].refused or "")
    assert not found["fp32", True].timings


def test_a_step_that_fails_in_a_precision_is_refused_with_what_it_raised(base: Measurements) -> None:
    def picky(model: nn.Module, batch: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("no kernel for BFloat16")
        return tiny.squared_error(model, batch)

    found, _ = run(tiny.task(loss=picky), base)
    assert "no kernel for BFloat16" in (found["bf16", False].refused or "")


def test_time_that_is_up_ends_the_rounds_and_the_next_call_goes_on(
    base: Measurements, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny.task(model=blocks)
    first, cut = run(task, base, seconds=0.0)
    assert cut
    kept = len(first["bf16", False].timings[0].seconds)
    assert kept == timing.MIN_REPETITIONS

    def no_more(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("traced again")

    monkeypatch.setattr(modes, "iterate_memory_traces", no_more)
    second, cut = run(task, base.replace(modes=tuple(first.values())))
    assert not cut
    assert second["bf16", False].memory == first["bf16", False].memory
    assert len(second["bf16", False].timings[0].seconds) > kept
    assert second["bf16", False].timings[0].seconds[:kept] == first["bf16", False].timings[0].seconds


def test_only_another_mode_runs_what_does_not_fit_today(base: Measurements) -> None:
    held = modes._beyond  # pyright: ignore[reportPrivateUsage]
    traced = measure(tiny.task(model=blocks), time_budget_seconds=4, stages=("memory",))
    law = base.replace(memory=traced.memory)
    assert held(law, 16, 128, memory_bytes=2**30) == {}  # today's mode could, and saturated
    small = fit_memory_model(law.memory).peak_bytes(20)
    assert held(law, 16, 128, memory_bytes=small) == {32: 16, 64: 16, 128: 16}
    assert held(law, 16, 100, memory_bytes=small) == {32: 16, 64: 16}


def test_a_session_measures_modes_where_asked_and_saves_them(tmp_path: Path) -> None:
    task = tiny.task()
    found = measure(task, out=tmp_path, time_budget_seconds=20, stages=("memory", "speed", "modes"))
    assert found.complete == ("memory", "speed", "modes")
    assert read_record(tmp_path / "measurements.json", Measurements) == found
    assert found.modes
