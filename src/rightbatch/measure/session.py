"""All measurements of one task: within a time budget, saved as they are made, resumed later."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rightbatch.core.errors import InvalidInputError, did_you_mean
from rightbatch.core.progress import OnProgress, Progress
from rightbatch.core.samples import Measurements
from rightbatch.core.store import read_record, write_record
from rightbatch.fit.memory_model import fit_memory_model
from rightbatch.measure.budget import Budget
from rightbatch.measure.environment import read_environment
from rightbatch.measure.loading import LoaderSamples, measure_loader
from rightbatch.measure.memory import iterate_memory_traces
from rightbatch.measure.modes import measure_modes
from rightbatch.measure.noise import NoiseSamples, measure_noise
from rightbatch.measure.timing import SpeedSamples, StepTimer, measure_steps
from rightbatch.tasks.check import check_task
from rightbatch.tasks.task import Task

STAGES = ("memory", "loader", "speed", "noise")
"""What every plan needs; ``modes`` may be asked for beside them."""
# Share of what is left of the budget when a stage begins; the last one may use all of it.
SHARES = {"memory": 0.25, "loader": 0.1, "speed": 0.35, "modes": 0.4, "noise": 1.0}
SAVE_EVERY_SECONDS = 1.0
LOADER_SIZES = (8, 64, 512)
# Timing never fills memory: it stays below this share of the device by the traced law.
MEMORY_SHARE = 0.5
# Load average per core, before timing starts, above which other work disturbs it.
BUSY_LOAD = 0.8

Changes = dict[str, Any]
"""Fields of ``Measurements``, and ``cut``: whether time ended the stage before it was done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every stage is given."""

    task: Task
    device: str
    seed: int
    memory_bytes: int


def measure(
    task: Task,
    *,
    out: Path | None = None,
    device: str = "cpu",
    time_budget_seconds: float = 120.0,
    stages: Sequence[str] = STAGES,
    seed: int = 0,
    on_progress: OnProgress | None = None,
    refresh: bool = False,
) -> Measurements:
    """Measure memory, loader, speed and gradient noise of a task, as far as the budget reaches.

    Args:
        task: what ``load_task`` gave.
        out: folder for ``measurements.json``; an earlier file there is continued. None saves nothing.
        device: as torch names it.
        time_budget_seconds: for everything; stages end early where they are precise enough.
        stages: which of ``STAGES`` to run; ``modes`` also times other precisions and recomputation.
        seed: of initialisation, data order and draws.
        on_progress: called as work goes on.
        refresh: discard earlier measurements instead of continuing them.

    Raises:
        InvalidInputError: the earlier file was made for another task, environment or seed, a stage is
            unknown, or there is no time to spend.
        InvalidTaskError: the task cannot be measured as it stands.
        InfeasibleError: one example takes more than half of the device's memory.
        MeasurementError: the recipe diverges.
        KeyboardInterrupt: passed on, after what was measured has been saved.
    """
    for stage in stages:
        if stage not in SHARES:
            hint = did_you_mean(stage, SHARES)
            raise InvalidInputError(f"stage {stage!r}", need="a stage of measuring", hint=hint)
    if not time_budget_seconds > 0:
        found = f"time_budget_seconds = {time_budget_seconds}"
        raise InvalidInputError(found, need="time to measure in", hint="give a minute or more")
    budget = Budget(seconds=time_budget_seconds)
    path = out / "measurements.json" if out else None
    facts = check_task(task, device)
    fresh = Measurements(task=facts, environment=read_environment(device), seed=seed)
    state = fresh if refresh or path is None or not path.exists() else _continue(path, fresh)
    context = Context(task=task, device=device, seed=seed, memory_bytes=fresh.environment.memory_bytes)
    if path is not None:
        write_record(path, state)  # an unwritable folder is found before the work, not after
    saved = time.monotonic()
    try:
        for stage in (s for s in SHARES if s in stages and s not in state.complete):
            limit, cut = budget.part(SHARES[stage]), False
            for message, changes in _RUN[stage](context, state, limit):
                cut = changes.pop("cut", cut)
                state = state.replace(**changes)
                if on_progress is not None:
                    on_progress(_progress(stage, message, budget))
                if path is not None and time.monotonic() - saved > SAVE_EVERY_SECONDS:
                    write_record(path, state)
                    saved = time.monotonic()
            state = _close(state, stage, cut=cut or limit.left <= 0)
    finally:
        if path is not None:
            write_record(path, state)
    return state


def _continue(path: Path, fresh: Measurements) -> Measurements:
    """Take up an earlier file.

    Raises:
        InvalidInputError: it is of another task, environment or seed.
    """
    earlier = read_record(path, Measurements)
    for what, before, now in (
        ("the task", earlier.task.fingerprint, fresh.task.fingerprint),
        ("the environment", earlier.environment, fresh.environment),
        ("the seed", earlier.seed, fresh.seed),
    ):
        if before != now:
            found = f"{path} was measured before {what} changed ({_difference(earlier, fresh)})"
            hint = "--refresh measures again and replaces it, --out DIR keeps both"
            need = "measurements of one task in one environment, under one seed"
            raise InvalidInputError(found, need=need, hint=hint)
    return earlier


def _difference(earlier: Measurements, fresh: Measurements) -> str:
    """Name the fields that differ, so that the reader can judge."""
    pairs = [(earlier.environment, fresh.environment), (earlier.task, fresh.task)]
    names = [
        f"{name}: {getattr(a, name)} -> {getattr(b, name)}"
        for a, b in pairs
        for name in type(a).model_fields
        if name not in {"recipe", "loader"} and getattr(a, name) != getattr(b, name)
    ]
    return "; ".join(names or [f"seed: {earlier.seed} -> {fresh.seed}"])


def _close(state: Measurements, stage: str, *, cut: bool) -> Measurements:
    """Mark a stage complete, or say that the time ended it, so that the next call goes on."""
    note = f"{stage}: ended by the time budget; the next call goes on"
    others = tuple(n for n in state.notes if n != note)
    if cut:
        return state.replace(notes=(*others, note))
    return state.replace(complete=(*state.complete, stage), notes=others)


def _progress(stage: str, message: str, budget: Budget) -> Progress:
    fraction = min(budget.elapsed / budget.seconds, 0.99)
    return Progress(stage=stage, fraction=fraction, seconds_left=max(budget.left, 0.0), message=message)


def _run_memory(context: Context, state: Measurements, limit: Budget) -> Iterator[tuple[str, Changes]]:
    traces = list(state.memory)
    known = {(t.source, t.micro_batch_size) for t in traces}
    for trace in iterate_memory_traces(context.task):
        if (trace.source, trace.micro_batch_size) not in known:
            traces.append(trace)
        yield f"memory trace at micro-batch {trace.micro_batch_size}", {"memory": tuple(traces)}
        if limit.left <= 0 and len(traces) >= 2:  # fewer fit no law, and timing needs one
            return


def _run_loader(context: Context, state: Measurements, limit: Budget) -> Iterator[tuple[str, Changes]]:
    samples = LoaderSamples(context.task.loader.num_workers)
    samples.seconds.update({t.micro_batch_size: list(t.seconds) for t in state.loader_timings})
    sizes = sorted({min(size, context.task.num_train_examples) for size in LOADER_SIZES})
    for message in measure_loader(context.task, samples, sizes, budget=limit, seed=context.seed):
        yield message, {"loader_timings": samples.timings()}


def _run_speed(context: Context, state: Measurements, limit: Budget) -> Iterator[tuple[str, Changes]]:
    samples = SpeedSamples(updates=list(state.optimizer_seconds))
    samples.steps.update({t.micro_batch_size: list(t.seconds) for t in state.step_timings})
    timer = StepTimer(context.task, context.device)
    busy = os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0
    if busy > BUSY_LOAD:
        note = (
            f"speed: timed on a busy machine (load average {busy:.1f} per core), so times are too high"
        )
        yield "machine load", {"notes": (*(n for n in state.notes if n[:12] != note[:12]), note)}
    largest = context.task.num_train_examples
    if state.memory:
        largest = min(
            largest,
            fit_memory_model(state.memory).max_micro_batch(round(MEMORY_SHARE * context.memory_bytes)),
        )
    for message in measure_steps(timer, samples, largest=largest, budget=limit, seed=context.seed):
        yield message, {"step_timings": samples.timings(), "optimizer_seconds": tuple(samples.updates)}
    yield "step times", {"cut": samples.cut}


def _run_modes(context: Context, state: Measurements, limit: Budget) -> Iterator[tuple[str, Changes]]:
    elsewhere = tuple(mode for mode in state.modes if mode.device is not None)
    for message, modes, cut in measure_modes(
        context.task,
        state,
        device=context.device,
        memory_bytes=round(MEMORY_SHARE * context.memory_bytes),
        budget=limit,
        seed=context.seed,
    ):
        yield message, {"modes": (*modes, *elsewhere), "cut": cut}


def _run_noise(context: Context, state: Measurements, limit: Budget) -> Iterator[tuple[str, Changes]]:
    samples = NoiseSamples(list(state.gradients), list(state.pilot))
    for message in measure_noise(
        context.task, samples, device=context.device, budget=limit, seed=context.seed
    ):
        yield message, {"gradients": tuple(samples.gradients), "pilot": tuple(samples.points)}
    yield "gradient noise", {"cut": samples.cut}


Stage = Callable[[Context, Measurements, Budget], Iterator[tuple[str, Changes]]]
_RUN: dict[str, Stage] = {
    "memory": _run_memory,
    "loader": _run_loader,
    "speed": _run_speed,
    "modes": _run_modes,
    "noise": _run_noise,
}
