"""The step in other modes of precision and recomputation: a memory law and step times for each.

In every round the recipe's step and those of all modes take turns at one micro-batch size, so that a
slow moment of the machine falls on all alike; the ratio to the recipe's step is what counts.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from rightbatch.core.errors import InfeasibleError, RightBatchError
from rightbatch.core.recipe import Precision, Recipe, mode_name
from rightbatch.core.samples import Measurements, MemoryTrace, ModeSamples, ModeTiming
from rightbatch.fit.intervals import NORMAL_QUANTILE, median_standard_error
from rightbatch.fit.memory_model import fit_memory_model
from rightbatch.fit.speed_model import MIN_REPETITIONS
from rightbatch.measure.budget import Budget
from rightbatch.measure.memory import iterate_memory_traces
from rightbatch.measure.memory.options import StepOptions
from rightbatch.measure.timing import MIN_SAMPLE_SECONDS, StepTimer
from rightbatch.tasks.checkpointing import apply_checkpointing
from rightbatch.tasks.task import Task

Name = tuple[Precision, bool]
"""Precision, and whether activations are recomputed."""

# Of the stage's time, for the memory of all modes; real steps of one trace take at most so long.
MEMORY_SHARE, TRACE_SECONDS = 0.5, 4.0
# A ratio is done at this relative half-width of its 90 % interval.
PRECISION = 0.02
MIN_ROUNDS, MAX_ROUNDS = 5, 40


def other_modes(recipe: Recipe) -> list[Name]:
    """Modes beside the recipe's, the least change first: recomputation leaves every number as it is.

    >>> other_modes(Recipe(lr=0.1, batch_size=8, epochs=1))
    [('fp32', True), ('bf16', False), ('bf16', True)]
    """
    precisions: list[Precision] = list(dict.fromkeys((recipe.precision, "fp32", "bf16")))
    found: list[Name] = [(precision, again) for precision in precisions for again in (False, True)]
    return found[1:]


def with_precision(task: Task, precision: Precision) -> Task:
    """The same task in another precision."""
    return replace(task, recipe=task.recipe.replace(precision=precision))


@dataclass(slots=True)
class _Mode:
    """One mode while it is measured."""

    name: Name
    traces: list[MemoryTrace] = field(default_factory=list)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    beside: dict[int, list[float]] = field(default_factory=dict)
    refused: str | None = None
    timer: StepTimer | None = None

    def samples(self, beside_sizes: dict[int, int]) -> ModeSamples:
        """As a record; sizes with too few rounds to count are kept, too."""
        return ModeSamples(
            precision=self.name[0],
            checkpointing=self.name[1],
            memory=tuple(self.traces),
            timings=tuple(
                ModeTiming(
                    micro_batch_size=size,
                    seconds=tuple(seconds),
                    beside_micro_batch_size=beside_sizes[size],
                    beside_seconds=tuple(self.beside[size]),
                )
                for size, seconds in sorted(self.seconds.items())
                if seconds and size in beside_sizes
            ),
            refused=self.refused,
        )

    def is_precise(self, size: int) -> bool:
        """Whether more rounds at this size would tell nothing new."""
        found = self.seconds.get(size, [])
        if len(found) < MIN_ROUNDS:
            return False
        ratios = np.log(np.array(found) / np.array(self.beside[size]))
        return NORMAL_QUANTILE * median_standard_error(ratios) <= PRECISION


def measure_modes(
    task: Task,
    measured: Measurements,
    *,
    device: str,
    memory_bytes: int,
    budget: Budget,
    seed: int,
) -> Iterator[tuple[str, tuple[ModeSamples, ...], bool]]:
    """Trace and time every mode beside the recipe's that runs here.

    Args:
        task: its recipe is the mode that the others are timed beside.
        measured: with step times of the recipe's mode; modes in it are continued.
        device: where to run.
        memory_bytes: what a step may take, by the law of its mode.
        budget: time to spend.
        seed: of the order within rounds.

    Yields:
        What was just done, the modes so far, and whether time ended the stage.
    """
    modes = [_take_up(name, measured) for name in other_modes(task.recipe)]
    sizes = [t.micro_batch_size for t in measured.step_timings if len(t.seconds) >= MIN_REPETITIONS]
    beside_sizes = {size: size for size in sizes}

    def so_far() -> tuple[ModeSamples, ...]:
        return tuple(mode.samples(beside_sizes) for mode in modes)

    tracing = budget.part(MEMORY_SHARE)
    for index, mode in enumerate(modes):
        share = tracing.part(1 / (len(modes) - index))
        if not mode.traces and mode.refused is None:
            _trace(task, mode, share)
        yield f"memory of {mode_name(*mode.name)}", so_far(), False
    if not sizes:
        yield "no step of the recipe was timed to compare with", so_far(), True
        return
    fits = {mode.name: _largest(mode, memory_bytes, task.num_train_examples) for mode in modes}
    beside_sizes |= _beyond(measured, max(sizes), max(fits.values(), default=0), memory_bytes)
    plain = StepTimer(task, device)
    for mode in modes:
        _build(task, mode, plain, modes, size=min(sizes))
        yield f"first steps of {mode_name(*mode.name)}", so_far(), False
    order, rounds = random.Random(seed), 0
    pending = [(size, mode) for mode in modes for size in beside_sizes if size <= fits[mode.name]]
    while rounds < MAX_ROUNDS:
        pending = [(b, m) for b, m in pending if m.refused is None and not m.is_precise(b)]
        waiting = sorted({size for size, _ in pending})
        order.shuffle(waiting)
        for size in waiting:
            if rounds >= MIN_REPETITIONS and budget.left <= 0:
                yield "step times of modes", so_far(), True
                return
            _round(plain, [m for b, m in pending if b == size], size, beside_sizes[size])
        if not waiting:
            return
        rounds += 1
        yield f"step times of modes, round {rounds}", so_far(), False


def _take_up(name: Name, measured: Measurements) -> _Mode:
    mode = _Mode(name)
    for known in measured.modes:
        if known.device is None and (known.precision, known.checkpointing) == name:
            mode.traces, mode.refused = list(known.memory), known.refused
            for timing in known.timings:
                mode.seconds[timing.micro_batch_size] = list(timing.seconds)
                mode.beside[timing.micro_batch_size] = list(timing.beside_seconds)
    return mode


def _trace(task: Task, mode: _Mode, budget: Budget) -> None:
    """Trace the mode's memory; what the step raises in this mode is why it is refused."""
    precision, checkpointing = mode.name
    options = StepOptions(checkpointing=checkpointing)
    seconds = min(TRACE_SECONDS, max(budget.left, 0.0))
    try:
        for trace in iterate_memory_traces(
            with_precision(task, precision), options=options, seconds=seconds
        ):
            mode.traces.append(trace)
            if budget.left <= 0 and len(mode.traces) >= 2:  # fewer fit no law
                break
    except Exception as error:  # the user's code may raise anything in another type
        mode.refused = _reason(error)


def _largest(mode: _Mode, memory_bytes: int, most: int) -> int:
    """Largest micro-batch that may be run in a mode; 0 for none."""
    if mode.refused is not None or not mode.traces:
        return 0
    try:
        return min(most, fit_memory_model(mode.traces).max_micro_batch(memory_bytes))
    except InfeasibleError:
        return 0


def _beyond(measured: Measurements, largest: int, most: int, memory_bytes: int) -> dict[int, int]:
    """Sizes that other modes alone can run, beside the recipe's largest, where memory ended that."""
    if not measured.memory:
        return {}
    held = fit_memory_model(measured.memory).max_micro_batch(memory_bytes)
    found: dict[int, int] = {}
    size = 2 * largest
    while held < size <= most:
        found[size] = largest
        size *= 2
    return found


def _build(task: Task, mode: _Mode, plain: StepTimer, modes: list[_Mode], *, size: int) -> None:
    """Share models between modes: precision leaves the weights alone, recomputation changes blocks."""
    if mode.refused is not None or not mode.traces:
        return
    precision, checkpointing = mode.name
    shared = plain
    if checkpointing:
        others = (m.timer for m in modes if m.timer is not None and m.name[1])
        shared = next(others, None) or StepTimer(task, plain.device)
    mode.timer = copy.copy(shared)
    mode.timer.task = with_precision(task, precision)
    try:
        if checkpointing:
            apply_checkpointing(mode.timer.model)
        mode.timer.time_step(size)
    except Exception as error:  # as in _trace: kernels of this device may lack the type
        mode.refused, mode.timer = _reason(error), None


def _round(plain: StepTimer, modes: list[_Mode], size: int, beside_size: int) -> None:
    """Time the recipe's step and that of each mode, in turn."""
    timers = [(plain, beside_size), *((mode.timer, size) for mode in modes)]
    if any(not mode.seconds.get(size) for mode in modes):  # each warms up before it counts
        for timer, at in timers:
            assert timer is not None
            timer.time_step(at)
    before = _seconds(plain, beside_size)
    for mode in modes:
        assert mode.timer is not None
        mode.seconds.setdefault(size, []).append(_seconds(mode.timer, size))
        mode.beside.setdefault(size, []).append(before)


def _seconds(timer: StepTimer, size: int) -> float:
    """Forward and backward, as a mean over as many steps as a clock can tell apart."""
    first = timer.time_step(size)[0]
    repeats = max(1, round(MIN_SAMPLE_SECONDS / max(first, 1e-9)))
    return float(np.mean([first, *(timer.time_step(size)[0] for _ in range(repeats - 1))]))


def _reason(error: Exception) -> str:
    text = error.found if isinstance(error, RightBatchError) else f"{type(error).__name__}: {error}"
    return text.partition("\n")[0]
