"""Seconds of forward, backward and optimizer step at a geometric grid of micro-batch sizes.

Sizes are interleaved in shuffled rounds, so that a slow moment of the machine falls on all of them
alike, and each is warmed up before it counts.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rightbatch.core.samples import StepTiming
from rightbatch.fit.intervals import NORMAL_QUANTILE, median_standard_error
from rightbatch.fit.speed_model import MIN_REPETITIONS
from rightbatch.measure.budget import Budget
from rightbatch.tasks.build import (
    build_model,
    build_optimizer,
    collate,
    smallest_micro_batch,
    to_device,
)
from rightbatch.tasks.step import forward_backward
from rightbatch.tasks.task import Task

# A size is done at this relative half-width of its 90 % interval; rounds are capped besides.
PRECISION = 0.02
MIN_ROUNDS, MAX_ROUNDS = 5, 60
# Shorter timings are repeated inside one sample: clocks and schedulers are this coarse.
MIN_SAMPLE_SECONDS = 2e-3
# Growth stops when two doublings in a row brought less than this over the best throughput.
SATURATION_GAIN = 1.05
SATURATED_DOUBLINGS = 2


@dataclass(slots=True)
class StepTimer:
    """Owns a fresh model, its optimizer and one batch of each size."""

    task: Task
    device: str
    clock: Any = time.perf_counter
    model: torch.nn.Module = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    batches: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Build model and optimizer afresh."""
        self.model = build_model(self.task, self.device)
        self.optimizer = build_optimizer(self.task.recipe, self.model, self.task.recipe.lr)

    def time_step(self, micro_batch_size: int) -> tuple[float, float]:
        """Run one full step; return the seconds of forward with backward, and of the update."""
        if micro_batch_size not in self.batches:
            self.batches[micro_batch_size] = collate(self.task, range(micro_batch_size))
        start = self._now()
        forward_backward(
            self.task.loss,
            self.model,
            to_device(self.batches[micro_batch_size], self.device),
            num_examples=micro_batch_size,
            divisor=micro_batch_size,
            constants=self.task.recipe,
            device=self.device,
        )
        middle = self._now()
        if self.task.recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.task.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return middle - start, self._now() - middle

    def _now(self) -> float:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return self.clock()


@dataclass(slots=True)
class SpeedSamples:
    """What has been timed so far."""

    steps: dict[int, list[float]] = field(default_factory=dict)
    updates: list[float] = field(default_factory=list)
    cut: bool = False
    """Whether time ended the growth, or the rounds before every size was precise."""

    def timings(self) -> tuple[StepTiming, ...]:
        """As records, by size; sizes not timed in a round yet are left out."""
        return tuple(
            StepTiming(micro_batch_size=b, seconds=tuple(s)) for b, s in sorted(self.steps.items()) if s
        )


def measure_steps(
    timer: StepTimer, samples: SpeedSamples, *, largest: int, budget: Budget, seed: int = 0
) -> Iterator[str]:
    """Fill ``samples`` until every size is precise enough or the time is spent.

    Args:
        timer: runs the steps.
        samples: added to in place; sizes already there are kept.
        largest: micro-batch size not to exceed, by data or memory.
        budget: time to spend.
        seed: of the order within rounds.

    Yields:
        What was just done, after every round, so that the caller can save.
    """
    repeats = {}
    for size, seconds in _grow(timer, samples, largest=largest, budget=budget):
        repeats[size] = max(1, round(MIN_SAMPLE_SECONDS / seconds))
        samples.steps.setdefault(size, [])
        yield f"step time at micro-batch {size}"
    order = random.Random(seed)
    for round_number in range(MAX_ROUNDS):
        sizes = [b for b in repeats if not _precise(samples.steps[b])]
        order.shuffle(sizes)
        for size in sizes:
            if round_number >= MIN_REPETITIONS and budget.left <= 0:
                samples.cut = True
                return
            step, update = np.mean([timer.time_step(size) for _ in range(repeats[size])], axis=0)
            samples.steps[size].append(float(step))
            samples.updates.append(float(update))
        if not sizes:
            return
        yield f"step times, round {round_number + 1}"


def _grow(
    timer: StepTimer, samples: SpeedSamples, *, largest: int, budget: Budget
) -> Iterator[tuple[int, float]]:
    """Today's batch, which all others are compared with; then doublings from the smallest.

    Doubling ends where throughput has saturated, a limit is met or time runs short.
    """
    today = timer.task.recipe.batch_size
    best, stale, seconds, one_round = 0.0, 0, 0.0, 0.0
    probed: dict[int, float] = {}
    if today <= largest:
        probed[today] = _probe(timer, today)
        one_round = max(probed[today], MIN_SAMPLE_SECONDS)
        yield today, probed[today]
    size = smallest_micro_batch(timer.model)
    while size <= largest and stale < SATURATED_DOUBLINGS:
        # A larger size takes up to twice as long: its probing and some rounds of all must fit.
        probing, rounds = 3 * 2 * seconds, MIN_ROUNDS * (one_round + 2 * seconds)
        if size in probed:
            seconds = probed[size]
        elif one_round and not budget.allows(probing + rounds):
            samples.cut = True
            return
        else:
            seconds = _probe(timer, size)
            one_round += max(seconds, MIN_SAMPLE_SECONDS)
            yield size, seconds
        stale = 0 if size / seconds > SATURATION_GAIN * best else stale + 1
        best = max(best, size / seconds)
        size *= 2


def _probe(timer: StepTimer, size: int) -> float:
    """Seconds of a whole step, warmed up."""
    timer.time_step(size)
    return min(sum(timer.time_step(size)) for _ in range(2))


def _precise(seconds: list[float]) -> bool:
    if len(seconds) < MIN_ROUNDS:
        return False
    values = np.array(seconds)
    return NORMAL_QUANTILE * median_standard_error(values) <= PRECISION * float(np.median(values))
