"""``rightbatch speed``: step times, the loader, levers beside batch size, and devices not here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rightbatch.cli.accelerator import names_accelerator
from rightbatch.cli.output import Answer, say
from rightbatch.cli.source import (
    AS_USUAL,
    Flag,
    Measuring,
    load,
    measure_task,
    option,
    parse_sizes,
    read_saved,
    require,
    saved_file,
)
from rightbatch.core.devices import find_accelerator, parse_accelerator
from rightbatch.core.errors import InvalidInputError, RightBatchError
from rightbatch.core.samples import Measurements
from rightbatch.core.units import format_number, format_seconds, parse_seconds
from rightbatch.fit.bound import find_bound
from rightbatch.fit.models import Models, fit_models
from rightbatch.fit.roofline import FAST, SLOW, flops_utilization, predict_step_seconds
from rightbatch.report.tables import Table
from rightbatch.report.terminal import render

if TYPE_CHECKING:
    from rightbatch.measure.levers import Lever
    from rightbatch.tasks.task import Task

_STAGES = ("memory", "loader", "speed")
_SIZES = "1,8,64,512"


def speed(
    task: str,
    /,
    *,
    levers: Flag = False,
    batch: str | None = None,
    measuring: Measuring = AS_USUAL,
    json: Flag = False,
) -> Answer:
    """Time a training step against batch size, and the loader beside it.

    Args:
        task: A built-in name, my_task.py[:name] or package.module:name, or a folder of an earlier plan.
        levers: Measure what else changes the step's time: precision, layout, threads, compiler,
            checkpointing, loader workers. Takes as long again as --time-budget, or longer to compile.
        batch: Micro-batch sizes to predict on an accelerator that is not here, with commas between.
        measuring: How to measure; --device cuda:a100-40gb predicts from counted operations instead.
        json: Print one JSON document on stdout.

    Raises:
        InvalidInputError: --levers or --batch where they say nothing.
    """
    if names_accelerator(measuring.device):
        if levers:
            need, hint = "a device that is here", "leave out --levers, or --device"
            raise InvalidInputError(f"--levers with --device {measuring.device}", need=need, hint=hint)
        return _predicted(
            load(task, "cpu"), measuring.device, option("--batch", parse_sizes, batch or _SIZES)
        )
    if batch is not None:
        hint = "rightbatch speed TASK times sizes that double until throughput saturates"
        raise InvalidInputError(f"--batch {batch}", need="--device cuda:NAME beside it", hint=hint)
    if path := saved_file(task):
        return _answer(read_saved(path, measuring, levers=levers), None, [])
    loaded = load(task, measuring.device)
    measurements = measure_task(loaded, measuring, stages=_STAGES)
    return _answer(measurements, loaded, _levers(loaded, measuring) if levers else [])


def _levers(task: Task, measuring: Measuring) -> list[Lever]:
    from rightbatch.measure.budget import Budget
    from rightbatch.measure.levers import measure_levers, measure_workers

    budget = Budget(seconds=parse_seconds(measuring.time_budget))
    size = min(task.recipe.batch_size, task.num_train_examples)
    found: list[Lever] = []
    for lever in measure_levers(task, size, device=measuring.device, budget=budget.part(0.8)):
        say(f"lever {lever.name}: {_ratio(lever)}")
        found.append(lever)
    return [*found, *measure_workers(task, size, budget=budget)]


def _answer(measurements: Measurements, task: Task | None, levers: Sequence[Lever]) -> Answer:
    from rightbatch.report.sentences import loader_verdict
    from rightbatch.report.tables import speed_table

    models = fit_models(measurements)
    model, loader = require(models.speed, "speed"), require(models.loader, "loader")
    knee = model.knee_micro_batch_size
    samples: list[dict[str, Any]] = []
    for timing in measurements.step_timings:
        if (size := timing.micro_batch_size) not in model.micro_batch_sizes:
            continue
        low, high = model.interval(size)
        samples.append({
            "micro_batch_size": size,
            "seconds": model.step_seconds(size),
            "low": low,
            "high": high,
            "examples_per_second": model.examples_per_second(size),
            "repetitions": len(timing.seconds),
        })
    work = _work(task, measurements, models, knee) if task else None
    return Answer(
        document={
            "task": measurements.task.name,
            "samples": samples,
            "optimizer_seconds": model.optimizer_seconds,
            "knee_micro_batch_size": knee,
            "loader_examples_per_second": loader.examples_per_second(knee),
            "bound": find_bound(model, loader, measurements.task.recipe.batch_size),
            "work": work,
            "levers": [asdict(lever) for lever in levers],
            "notes": measurements.notes,
        },
        text=(
            render(speed_table(model, loader)),
            *([render(_lever_table(levers))] if levers else []),
            *([_work_sentence(work, knee)] if work else []),
            loader_verdict(models, plan=None),
            *(f"Note: {note}" for note in measurements.notes),
        ),
    )


def _work(
    task: Task, measurements: Measurements, models: Models, size: int
) -> dict[str, float | None] | None:
    """Operations of a step and their rate; None, with the reason told, where they cannot be counted."""
    from rightbatch.measure.operations import trace_work

    speed = require(models.speed, "speed")
    try:
        work = trace_work(task, size)
    except (RightBatchError, RuntimeError) as error:
        say(f"operations were not counted: {str(error).splitlines()[0]}")
        return None
    seconds = speed.step_seconds(size) + speed.optimizer_seconds
    accelerator = find_accelerator(measurements.environment.device_name)
    precision = measurements.task.recipe.precision
    return {
        "flops_per_example": work.flops / size,
        "flops_per_second": work.flops / seconds,
        "utilization": flops_utilization(work, seconds, accelerator, precision)
        if accelerator
        else None,
    }


def _work_sentence(work: dict[str, float | None], size: int) -> str:
    rate, each = work["flops_per_second"] or 0.0, work["flops_per_example"] or 0.0
    used = work["utilization"]
    share = f", {used:.1%} of the device's peak" if used is not None else ""
    return (
        f"At micro-batch {size} a step computes {format_number(rate / 1e9)} GFLOP/s{share}"
        f" ({format_number(each / 1e6)} MFLOP per example, counted without running)."
    )


def _lever_table(levers: Sequence[Lever]) -> Table:
    columns = ("lever", "time of a step", "low", "high", "beside the time")
    rows = tuple(
        (lever.name, *(f"x {v:.2f}" if v is not None else "–" for v in _interval(lever)), lever.note)
        for lever in levers
    )
    return Table(columns=columns, rows=rows, words=frozenset({"lever", "beside the time"}))


def _interval(lever: Lever) -> tuple[float | None, float | None, float | None]:
    return lever.seconds_ratio, lever.low, lever.high


def _ratio(lever: Lever) -> str:
    return lever.note if lever.seconds_ratio is None else f"x {lever.seconds_ratio:.2f} of the time"


def _predicted(task: Task, device: str, sizes: Sequence[int]) -> Answer:
    """Step times on a catalogued accelerator, from counted operations and bytes."""
    from rightbatch.measure.operations import trace_work

    accelerator = parse_accelerator(device)
    works = [trace_work(task, size, capability=accelerator.capability) for size in sizes]
    seconds = [predict_step_seconds(work, accelerator) for work in works]
    rows = tuple(
        (
            f"{work.micro_batch_size:,}",
            *(format_seconds(v) for v in (s.value, s.low or 0.0, s.high or 0.0)),
            format_number(round(work.micro_batch_size / s.value)),
            format_number(work.flops / 1e9),
        )
        for work, s in zip(works, seconds, strict=True)
    )
    columns = ("micro-batch", "step", "low", "high", "examples/s", "GFLOP")
    return Answer(
        document={
            "task": task.name,
            "device": accelerator.name,
            "evidence": "derived",
            "predictions": [
                {"micro_batch_size": w.micro_batch_size, "flops": w.flops, "moved_bytes": w.moved_bytes}
                | {"seconds": s.value, "low": s.low, "high": s.high}
                for w, s in zip(works, seconds, strict=True)
            ],
        },
        text=(
            render(Table(columns=columns, rows=rows)),
            f"Derived, not measured: a roofline of {accelerator.title} ({accelerator.source}) in eager"
            f" mode, assuming {SLOW.compute:.0%} to {FAST.compute:.0%} of its peak in matrix products,"
            f" {SLOW.bandwidth:.0%} to {FAST.bandwidth:.0%} of its bandwidth, and"
            f" {format_seconds(float(FAST.launch_seconds))} to"
            f" {format_seconds(float(SLOW.launch_seconds))} for the start of each kernel.",
        ),
    )
