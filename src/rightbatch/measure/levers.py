"""Levers beside batch size, each measured against the step as it is: precision, layout, compiler.

The step runs in turns with and without the lever, so that a slow moment of the machine falls on
both alike. The ratio of each pair counts, not the times.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from rightbatch.core.errors import MeasurementError, RightBatchError
from rightbatch.fit.intervals import NORMAL_QUANTILE, median_standard_error
from rightbatch.measure.budget import Budget
from rightbatch.measure.loading import LoaderSamples, measure_loader
from rightbatch.measure.timing import MIN_SAMPLE_SECONDS, StepTimer
from rightbatch.tasks.build import collate
from rightbatch.tasks.checkpointing import apply_checkpointing
from rightbatch.tasks.task import LoaderOptions, Task

MIN_PAIRS, MAX_PAIRS = 7, 40
# Where the interval of the ratio is this narrow, more pairs would tell nothing new.
PRECISION = 0.02
# Compilers and autotuners work in the first steps.
WARMUP_STEPS = 3
WORKERS = (0, 1, 2)

Step = Callable[[], float]
"""Runs one training step and returns its seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lever:
    """What one change does to the time of a step."""

    name: str
    seconds_ratio: float | None
    """Seconds with it over seconds without; None where it could not be measured."""
    low: float | None
    """90 % interval of the median ratio."""
    high: float | None
    pairs: int
    note: str
    """What it changes beside the time, or why there is no ratio."""


def measure_levers(
    task: Task, micro_batch_size: int, *, device: str, budget: Budget
) -> Iterator[Lever]:
    """Measure every lever that this device has, one after another, within the budget.

    A lever that fails is yielded with the reason. The number of threads is given back.

    Args:
        task: its recipe is the step without any lever.
        micro_batch_size: examples per step.
        device: where to run.
        budget: time to spend; compiling may exceed it.
    """
    plain = _stepper(StepTimer(task, device), micro_batch_size)
    _warm_up(plain)
    changes = _changes(task, device)
    for index, (name, build, note) in enumerate(changes):
        share = budget.part(1 / (len(changes) - index))
        try:
            ratios, first_seconds = _ratios(plain, build(micro_batch_size), share)
        except Exception as error:  # a lever may fail in any library: its reason is part of the answer
            yield _failed(name, error)
            continue
        spent = f": {first_seconds:.0f} s here" if name == "torch.compile" else ""
        yield _lever(name, ratios, note + spent)


def measure_workers(task: Task, micro_batch_size: int, *, budget: Budget) -> Iterator[Lever]:
    """Measure the loader with other numbers of workers than the task's own, at most one a core."""
    today = task.loader.num_workers
    others = [count for count in WORKERS if count != today and count <= _num_cores()]
    kept = _load_seconds(task, task.loader, micro_batch_size, budget.part(1 / (len(others) + 1)))
    for index, count in enumerate(others):
        options = LoaderOptions(num_workers=count, pin_memory=task.loader.pin_memory)
        share = budget.part(1 / (len(others) - index))
        found = _load_seconds(task, options, micro_batch_size, share)
        pairs = min(len(kept), len(found))
        note = f"the loader alone, beside {today} today; workers also load while a step runs"
        yield _lever(
            f"{count} loader worker{'s' * (count != 1)}",
            np.array(found[:pairs]) / np.array(kept[:pairs]),
            note,
        )


def _changes(task: Task, device: str) -> list[tuple[str, Callable[[int], Step], str]]:
    """Name, what builds the step with the lever, and what it changes beside the time."""

    def on_model(change: Callable[[StepTimer, int], None]) -> Callable[[int], Step]:
        def build(size: int) -> Step:
            timer = StepTimer(task, device)
            change(timer, size)
            return _stepper(timer, size)

        return build

    changes = [
        ("channels last", on_model(_channels_last), "the same numbers up to rounding"),
        ("activation checkpointing", on_model(_checkpointed), "saves memory, runs forward twice"),
    ]
    if task.recipe.precision == "fp32":
        note = "saves memory; matrix products keep 8 bits of precision"
        changes.insert(0, ("bf16 autocast", on_model(_autocast), note))
    if device == "cpu":
        for count in _thread_counts():
            name = f"{count} thread{'s' if count > 1 else ''}"
            changes.append((name, _with_threads(task, count), "the same numbers up to rounding"))
    # The longest comes last: what is left of the budget is its own.
    return [*changes, ("torch.compile", on_model(_compiled), "compiles in the first steps of a run")]


def _stepper(timer: StepTimer, size: int) -> Step:
    return lambda: sum(timer.time_step(size))


def _autocast(timer: StepTimer, size: int) -> None:
    timer.task = replace(timer.task, recipe=timer.task.recipe.replace(precision="bf16"))


def _checkpointed(timer: StepTimer, size: int) -> None:
    apply_checkpointing(timer.model)


def _compiled(timer: StepTimer, size: int) -> None:
    timer.model.compile(dynamic=False)


def _channels_last(timer: StepTimer, size: int) -> None:
    """Lay images out with channels innermost.

    Raises:
        MeasurementError: the model has no convolution over images.
    """
    if not any(isinstance(module, nn.Conv2d) for module in timer.model.modules()):
        hint = "nothing to do: the layout of images does not matter here"
        raise MeasurementError("a model without Conv2d", need="images", hint=hint)
    model: Any = timer.model  # torch annotates this form of ``to`` for tensors alone
    model.to(memory_format=torch.channels_last)
    timer.batches[size] = tree_map(_innermost_channels, collate(timer.task, range(size)))


def _innermost_channels(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() == 4:
        return value.contiguous(memory_format=torch.channels_last)
    return value


def _with_threads(task: Task, count: int) -> Callable[[int], Step]:
    def build(size: int) -> Step:
        timer = StepTimer(task, "cpu")

        def step() -> float:
            today = torch.get_num_threads()
            torch.set_num_threads(count)
            try:
                return sum(timer.time_step(size))
            finally:
                torch.set_num_threads(today)

        return step

    return build


def _thread_counts() -> list[int]:
    """Half and twice as many as today, as far as the machine has them."""
    today = torch.get_num_threads()
    return sorted({max(1, today // 2), min(2 * today, _num_cores())} - {today})


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _warm_up(step: Step) -> float:
    """Run a few steps; return the seconds of the first."""
    first = step()
    for _ in range(WARMUP_STEPS - 1):
        step()
    return first


def _ratios(plain: Step, changed: Step, budget: Budget) -> tuple[np.ndarray[Any, Any], float]:
    """Ratio of each pair, and the seconds of the first changed step."""
    start = time.perf_counter()
    first_seconds = _warm_up(changed)
    repeats = max(1, round(MIN_SAMPLE_SECONDS / max(plain(), 1e-9)))
    ratios: list[float] = []
    compiling = time.perf_counter() - start
    patience = Budget(seconds=max(budget.seconds - compiling, 0.0), clock=budget.clock)
    while len(ratios) < MAX_PAIRS:
        pair = [sum(step() for _ in range(repeats)) for step in (plain, changed)]
        ratios.append(pair[1] / pair[0])
        if len(ratios) >= MIN_PAIRS and (patience.left <= 0 or _half_width(ratios) <= PRECISION):
            break
    return np.array(ratios), first_seconds


def _half_width(ratios: list[float]) -> float:
    return NORMAL_QUANTILE * median_standard_error(np.log(ratios))


def _lever(name: str, ratios: np.ndarray[Any, Any], note: str) -> Lever:
    middle, width = float(np.median(ratios)), float(np.exp(_half_width(list(ratios))))
    return Lever(
        name=name,
        seconds_ratio=middle,
        low=middle / width,
        high=middle * width,
        pairs=len(ratios),
        note=note,
    )


def _failed(name: str, error: Exception) -> Lever:
    reason = error.found if isinstance(error, RightBatchError) else f"{type(error).__name__}: {error}"
    note = f"not measured: {reason.splitlines()[0]}"
    return Lever(name=name, seconds_ratio=None, low=None, high=None, pairs=0, note=note)


def _load_seconds(task: Task, options: LoaderOptions, size: int, budget: Budget) -> list[float]:
    samples = LoaderSamples(num_workers=options.num_workers)
    for _ in measure_loader(replace(task, loader=options), samples, [size], budget=budget):
        pass
    return samples.seconds[size]
