from dataclasses import replace

import numpy as np
import pytest
import torch

from rightbatch.measure import levers
from rightbatch.measure.budget import Budget
from rightbatch.measure.levers import Lever, measure_levers, measure_workers
from rightbatch.tasks.task import Task
from tiny import task as tiny_task


@pytest.fixture
def task() -> Task:
    return tiny_task()


def test_the_ratio_is_that_of_pairs_on_a_machine_that_gets_slower_and_slower() -> None:
    now = [0.01]

    def plain() -> float:
        now[0] *= 1.5
        return now[0]

    ratios, _ = levers._ratios(plain, lambda: 0.5 * now[0], Budget(seconds=5))
    assert levers._lever("x", ratios, "").seconds_ratio == pytest.approx(0.5)


def test_steady_ratios_end_after_the_fewest_pairs_and_noisy_ones_go_on() -> None:
    steady, _ = levers._ratios(lambda: 0.01, lambda: 0.02, Budget(seconds=5))
    assert steady.tolist() == [2.0] * levers.MIN_PAIRS
    draws = np.random.default_rng(0)
    noisy, _ = levers._ratios(lambda: 0.01, lambda: 0.02 * draws.uniform(0.5, 1.5), Budget(seconds=5))
    assert len(noisy) == levers.MAX_PAIRS


def test_no_time_leaves_the_fewest_pairs() -> None:
    draws = np.random.default_rng(0)
    ratios, _ = levers._ratios(lambda: 0.01, lambda: draws.uniform(0.005, 0.015), Budget(seconds=0))
    assert len(ratios) == levers.MIN_PAIRS


def by_name(task: Task, monkeypatch: pytest.MonkeyPatch) -> dict[str, Lever]:
    monkeypatch.setattr(levers, "_compiled", lambda timer, size: None)  # a minute of compiling
    budget = Budget(seconds=0)
    return {lever.name: lever for lever in measure_levers(task, 4, device="cpu", budget=budget)}


def test_levers_that_do_not_apply_say_why(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    found = by_name(task, monkeypatch)
    assert found["bf16 autocast"].seconds_ratio is not None
    assert found["channels last"].seconds_ratio is None
    assert found["channels last"].note == "not measured: a model without Conv2d"
    assert "torch.compile" in found


def test_a_recipe_in_bf16_is_not_compared_with_itself(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = replace(task, recipe=task.recipe.replace(precision="bf16"))
    assert "bf16 autocast" not in by_name(half, monkeypatch)


def test_a_lever_that_breaks_leaves_the_others(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(timer: object, size: int) -> None:
        raise RuntimeError("no compiler\nand a long trace")

    monkeypatch.setattr(levers, "_autocast", fail)
    found = by_name(task, monkeypatch)
    assert found["bf16 autocast"].note == "not measured: RuntimeError: no compiler"
    assert found["torch.compile"].pairs == levers.MIN_PAIRS


def test_threads_are_given_back(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    today = torch.get_num_threads()
    monkeypatch.setattr(levers, "_thread_counts", lambda: [today + 1])
    assert f"{today + 1} threads" in by_name(task, monkeypatch)
    assert torch.get_num_threads() == today


def test_autocast_lowers_the_precision_of_the_step_alone(task: Task) -> None:
    timer = levers.StepTimer(task, "cpu")
    levers._autocast(timer, 4)
    assert timer.task.recipe.precision == "bf16"
    assert task.recipe.precision == "fp32"


def test_images_get_their_channels_innermost() -> None:
    image = levers._innermost_channels(torch.zeros(2, 3, 4, 4))
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert levers._innermost_channels(7) == 7


def test_workers_are_compared_with_the_tasks_own(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "WORKERS", (0, 1))
    (found,) = measure_workers(task, 2, budget=Budget(seconds=2))
    assert found.name == "1 loader worker"
    assert found.seconds_ratio is not None
    assert found.seconds_ratio > 0


def test_no_more_workers_than_cores_are_tried(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "WORKERS", (0, 1, 64))
    monkeypatch.setattr(levers, "_num_cores", lambda: 1)
    assert [lever.name for lever in measure_workers(task, 2, budget=Budget(seconds=2))] == [
        "1 loader worker"
    ]
