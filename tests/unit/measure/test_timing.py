"""Step times with a fake timer: where growth stops, how rounds are ordered, when sizes are done."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn

import tiny
from rightbatch.fit.speed_model import MIN_REPETITIONS
from rightbatch.measure.budget import Budget
from rightbatch.measure.timing import (
    MAX_ROUNDS,
    MIN_ROUNDS,
    SpeedSamples,
    StepTimer,
    measure_steps,
)


class FakeTimer:
    """Steps that take what a law says, on a clock of their own."""

    def __init__(
        self,
        law: Callable[[int], float],
        model: nn.Module | None = None,
        spread: float = 0.0,
        today: int = 1,
    ) -> None:
        self.task = tiny.task(recipe=tiny.task().recipe.replace(batch_size=today))
        self.law, self.spread = law, spread
        self.model = model or tiny.linear()
        self.now = 0.0
        self.calls: list[int] = []
        self._random = random.Random(0)

    def time_step(self, size: int) -> tuple[float, float]:
        self.calls.append(size)
        seconds = self.law(size) * (1 + self.spread * self._random.random())
        self.now += seconds
        return 0.9 * seconds, 0.1 * seconds

    def budget(self, seconds: float) -> Budget:
        return Budget(seconds=seconds, clock=lambda: self.now)


def run(
    timer: FakeTimer, samples: SpeedSamples | None = None, *, seconds: float = 1e6, largest: int = 4096
) -> tuple[SpeedSamples, list[str]]:
    samples = samples or SpeedSamples()
    steps = measure_steps(
        cast(Any, timer), samples, largest=largest, budget=timer.budget(seconds), seed=1
    )
    return samples, list(steps)


def saturating(size: int) -> float:
    """100 examples per second from size 32 on."""
    return max(0.32, 0.01 * size)


def test_growth_stops_two_doublings_after_throughput_stops_growing() -> None:
    samples, _ = run(FakeTimer(saturating))
    assert sorted(samples.steps) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert not samples.cut


def test_growth_goes_on_after_one_bad_size() -> None:
    samples, _ = run(FakeTimer(lambda b: 5.0 if b == 4 else 1.0), largest=32)
    assert sorted(samples.steps) == [1, 2, 4, 8, 16, 32]


def test_growth_stops_at_the_limit_of_memory_or_data() -> None:
    samples, _ = run(FakeTimer(lambda _: 1.0), largest=100)
    assert sorted(samples.steps) == [1, 2, 4, 8, 16, 32, 64]


def test_growth_stops_where_the_rounds_of_a_larger_size_would_not_fit_the_budget() -> None:
    timer = FakeTimer(lambda b: 0.1 * b**0.5)
    samples, _ = run(timer, seconds=20.0)
    assert max(samples.steps) < 4096
    assert all(len(s) >= MIN_ROUNDS for s in samples.steps.values())
    assert samples.cut
    more, _ = run(FakeTimer(lambda b: 0.1 * b**0.5), seconds=200.0)
    assert max(more.steps) > max(samples.steps)


def test_todays_batch_is_timed_whatever_the_budget() -> None:
    samples, _ = run(FakeTimer(lambda _: 1.0, today=24), seconds=1e-9)
    assert list(samples.steps) == [24]
    assert len(samples.steps[24]) == MIN_REPETITIONS
    assert samples.cut


def test_todays_batch_is_one_of_the_sizes_and_is_probed_once() -> None:
    timer = FakeTimer(saturating, today=8)
    samples, _ = run(timer, largest=16)
    assert sorted(samples.steps) == [1, 2, 4, 8, 16]
    assert timer.calls[:15] == [8] * 3 + [1] * 3 + [2] * 3 + [4] * 3 + [16] * 3
    beyond, _ = run(FakeTimer(saturating, today=200))
    assert sorted(beyond.steps) == [1, 2, 4, 8, 16, 32, 64, 128, 200]


def test_todays_batch_is_left_out_where_memory_does_not_hold_it() -> None:
    samples, _ = run(FakeTimer(saturating, today=64), largest=16)
    assert sorted(samples.steps) == [1, 2, 4, 8, 16]


def test_batch_norm_starts_at_two() -> None:
    samples, _ = run(FakeTimer(saturating, tiny.batch_norm(), today=8), largest=16)
    assert sorted(samples.steps) == [2, 4, 8, 16]


def test_a_limit_below_the_smallest_size_times_nothing() -> None:
    samples, messages = run(FakeTimer(saturating, tiny.batch_norm(), today=2), largest=1)
    assert (samples.steps, messages) == ({}, [])


def test_rounds_hold_every_size_once_in_an_order_that_changes() -> None:
    timer = FakeTimer(saturating, spread=1.0)
    samples, messages = run(timer, largest=32)
    sizes = sorted(samples.steps)
    grown = 3 * len(sizes)  # a warm-up and two timings each
    rounds = [
        tuple(timer.calls[i : i + len(sizes)])
        for i in range(grown, grown + MIN_ROUNDS * len(sizes), len(sizes))
    ]
    assert all(sorted(order) == sizes for order in rounds)
    assert len(set(rounds)) > 1
    assert messages[-1].startswith("step times, round")


def test_steady_sizes_are_done_after_the_fewest_rounds_and_noisy_ones_go_on() -> None:
    steady, _ = run(FakeTimer(saturating), largest=8)
    assert {len(s) for s in steady.steps.values()} == {MIN_ROUNDS}
    noisy, _ = run(FakeTimer(saturating, spread=3.0), largest=8)
    assert max(len(s) for s in noisy.steps.values()) > 2 * MIN_ROUNDS
    assert max(len(s) for s in noisy.steps.values()) <= MAX_ROUNDS


def test_the_budget_ends_the_rounds_after_the_fewest() -> None:
    timer = FakeTimer(saturating, spread=3.0)
    samples, _ = run(timer, seconds=60.0, largest=8)
    assert min(len(s) for s in samples.steps.values()) >= MIN_ROUNDS
    assert timer.now < 70
    assert samples.cut


def test_short_steps_are_repeated_inside_one_sample() -> None:
    timer = FakeTimer(lambda _: 1e-4)
    samples, _ = run(timer, largest=1)
    assert len(timer.calls) == 3 + MIN_ROUNDS * 20  # 2 ms each
    assert samples.steps[1] == pytest.approx([0.9e-4] * MIN_ROUNDS)
    assert samples.updates == pytest.approx([0.1e-4] * MIN_ROUNDS)


def test_a_second_call_keeps_what_is_there_and_times_only_what_is_not_precise() -> None:
    samples, _ = run(FakeTimer(saturating), largest=4)
    before = {size: list(seconds) for size, seconds in samples.steps.items()}
    run(FakeTimer(saturating), samples, largest=8)
    assert {size: samples.steps[size] for size in before} == before
    assert len(samples.steps[8]) == MIN_ROUNDS


def test_records_come_by_size_without_those_not_yet_timed() -> None:
    samples = SpeedSamples(steps={4: [1.0], 2: [0.5], 8: []})
    assert [(t.micro_batch_size, t.seconds) for t in samples.timings()] == [(2, (0.5,)), (4, (1.0,))]


def test_a_real_step_trains_and_splits_its_time_at_the_update() -> None:
    ticks = iter(range(100))
    timer = StepTimer(
        tiny.task(recipe=tiny.task().recipe.replace(clip_norm=1.0)), "cpu", clock=lambda: next(ticks)
    )
    before = [p.detach().clone() for p in timer.model.parameters()]
    assert timer.time_step(4) == (1, 1)
    assert any(not torch.equal(a, b) for a, b in zip(before, timer.model.parameters(), strict=True))
    assert all(p.grad is None for p in timer.model.parameters())
    assert set(timer.batches) == {4}
