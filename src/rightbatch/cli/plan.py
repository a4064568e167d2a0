"""``rightbatch plan``: measure, fit, plan and report in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cyclopts import Parameter

from rightbatch.cli.elsewhere import add_elsewhere, device_elsewhere
from rightbatch.cli.output import Answer, say
from rightbatch.cli.positives import add_signal
from rightbatch.cli.source import (
    AS_USUAL,
    Flag,
    Measuring,
    load,
    measure_task,
    option,
    parse_target,
    read_saved,
    saved_file,
)
from rightbatch.cli.train import OUTCOME, run_answer, run_folders, train_task
from rightbatch.cli.tuning import check_rate, tune_rate
from rightbatch.core.devices import Accelerator
from rightbatch.core.errors import EXIT_DONE, MissingPackageError
from rightbatch.core.plan import BatchScheduleKind, Objective, Plan
from rightbatch.core.run import Run
from rightbatch.core.samples import Measurements
from rightbatch.core.store import read_record, write_record
from rightbatch.core.units import parse_bytes, parse_seconds
from rightbatch.plan.limits import DEFAULT_SLOWDOWN, Limits

if TYPE_CHECKING:
    from rightbatch.tasks.task import Task

Number = TypeVar("Number", int, float)

_MEASURE_MORE = {"time_budget", "tune_lr", "check_lr"}
_HEADLINE = (
    "global_batch_size",
    "micro_batch_size",
    "accumulation_steps",
    "num_replicas",
    "learning_rate",
    "warmup_examples",
    "precision",
    "checkpointing",
)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What the plan must respect."""

    memory_limit: str | None = None
    """Memory that may be used, such as 20GiB or 512MiB; without it, the device's memory."""
    headroom: float = 0.1
    """Share of the limit to leave free, from 0 to below 1."""
    max_batch: int | None = None
    """Largest global batch, in examples; without it, the size of the training data."""
    min_updates: int | None = None
    """Fewest optimizer steps of the whole run; without it, fewer than 100 are warned of."""
    replicas: int = 1
    """Devices like the measured one that may be used; the plan may take fewer."""
    bandwidth: str | None = None
    """Bytes that a device sends to another in a second, such as 12GiB; else a wide range is assumed."""
    time_budget_train: str | None = None
    """Time for the whole training run, such as 30m: get furthest in it instead of reaching a target."""
    slowdown: float = DEFAULT_SLOWDOWN
    """With --objective accuracy: longest expected time over the quickest batch's."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is wanted of the plan."""

    objective: Objective | None = None
    """What to minimise: time to the target, compute (its examples), or balanced between the two, the
    default; accuracy takes the smallest batch within --slowdown."""
    target: str | None = None
    """Instead of the task's: accuracy=0.98, or accuracy>=0.98 and loss<=0.1 in quotes."""
    batch_schedule: BatchScheduleKind | None = None
    """Let the batch grow to the planned one during the run; without it, it stays."""
    tune_lr: Flag = False
    """Try half, once and twice the planned rate in short branches from the same weights, and keep the
    best; takes as long again as --time-budget at most."""
    check_lr: Flag = False
    """Train a short branch at the planned batch and rate, and say whether the loss rises."""
    modes: Flag = False
    """Measure other precisions and activation checkpointing too, and take what is quickest or fits."""
    fine_tuning: Flag = False
    """The weights are pre-trained: say how far the plan may move them."""


UNBOUNDED = Bounds()
AS_BALANCED = Wanted()


def plan(
    task: str,
    /,
    *,
    bounds: Bounds = UNBOUNDED,
    wanted: Wanted = AS_BALANCED,
    measuring: Measuring = AS_USUAL,
    out: Path | None = None,
    train: Flag = False,
    refresh: Flag = False,
    json: Flag = False,
) -> Answer:
    """Measure a task, plan its batch size and learning rate, and show why.

    Args:
        task: A built-in name, my_task.py[:name] or package.module:name, or a folder of an earlier plan.
        bounds: What the plan must respect.
        wanted: What is wanted of the plan.
        measuring: How to measure; --device cuda:a100-40gb plans for an accelerator that is not here.
        out: Folder for plan, measurements and report; without it, rightbatch-NAME.
        train: Train with the plan too, into runs/plan of that folder.
        refresh: Measure afresh; otherwise what an earlier call saved is taken up.
        json: Print one JSON document on stdout.
    """
    from rightbatch.plan.planner import make_plan
    from rightbatch.plan.toml import write_plan
    from rightbatch.plan.wishes import Wishes, check_wishes

    limits = _limits(bounds)
    objective = wanted.objective or ("time" if limits.training_seconds else "balanced")
    check_wishes(objective, limits, wanted.batch_schedule)  # before anything is measured
    given = {"refresh": refresh, "tune_lr": wanted.tune_lr, "check_lr": wanted.check_lr}
    source = measuring
    if away := device_elsewhere(measuring.device, train=train, **given):
        source = dataclasses.replace(measuring, device=AS_USUAL.device)
    measurements, folder, loaded = _measurements(
        task, source, out, stages=_stages(wanted, away), train=train, **given
    )
    if away and loaded:
        measurements = add_elsewhere(loaded, measurements, away, source, modes=wanted.modes)
        write_record(folder / "measurements.json", measurements)
    if loaded and loaded.positive_loss and measurements.signal is None:
        measurements = add_signal(loaded, measurements, source)
        write_record(folder / "measurements.json", measurements)
    facts = measurements.task
    if wanted.target:
        facts = facts.replace(target=parse_target(wanted.target, facts.target))
    wishes = Wishes(
        batch_schedule=wanted.batch_schedule,
        fine_tuning=wanted.fine_tuning,
        modes=wanted.modes,
        device=away.name if away else None,
    )
    made = make_plan(facts, measurements, objective, limits, wishes=wishes)
    for wish, tried in ((wanted.tune_lr, tune_rate), (wanted.check_lr, check_rate)):
        if wish and loaded:
            measurements = tried(loaded, made, measurements, measuring)
            write_record(folder / "measurements.json", measurements)
            made = make_plan(facts, measurements, objective, limits, wishes=wishes)
    made = made.replace(options=_options(bounds, wanted, measuring))
    write_plan(folder / "plan.toml", made)
    write_record(folder / "plan.json", made)
    run = _train(loaded, made, folder, measuring) if train and loaded else None
    return _answer(made, measurements, folder, run)


def _options(*groups: Any) -> tuple[str, ...]:
    """Those that are not as usual, as they are written; what only measures more is not of the plan."""
    found: list[str] = []
    for group in groups:
        for field in dataclasses.fields(group):
            value = getattr(group, field.name)
            if value != field.default and field.name not in _MEASURE_MORE:
                name = f"--{field.name.replace('_', '-')}"
                found += [name] if value is True else [name, str(value)]
    return tuple(found)


def _stages(wanted: Wanted, away: Accelerator | None) -> tuple[str, ...]:
    """What is measured here: steps of another device are traced, and not run."""
    if away:
        return ("loader", "noise")
    return ("memory", "loader", "speed", *(("modes",) if wanted.modes else ()), "noise")


def _limits(bounds: Bounds) -> Limits:
    def given(name: str, parse: Callable[[str], Number], text: str | None) -> Number | None:
        return option(name, parse, text) if text else None

    return Limits(
        memory_limit_bytes=given("--memory-limit", parse_bytes, bounds.memory_limit),
        headroom=bounds.headroom,
        max_batch_size=bounds.max_batch,
        min_updates=bounds.min_updates,
        num_replicas=bounds.replicas,
        bandwidth_bytes_per_second=given("--bandwidth", parse_bytes, bounds.bandwidth),
        training_seconds=given("--time-budget-train", parse_seconds, bounds.time_budget_train),
        slowdown=bounds.slowdown,
    )


def _measurements(
    spec: str,
    measuring: Measuring,
    out: Path | None,
    *,
    stages: Sequence[str],
    refresh: bool,
    **needs_task: bool,
) -> tuple[Measurements, Path, Task | None]:
    """The measurements, the folder they lie in, and the task where it was loaded."""
    if path := saved_file(spec):
        measurements = read_saved(path, measuring, refresh=refresh, **needs_task)
        folder = out or path.parent
        if folder != path.parent:
            write_record(folder / "measurements.json", measurements)
        return measurements, folder, None
    task = load(spec, measuring.device)
    folder = out or Path(f"rightbatch-{task.name}")
    measured = measure_task(task, measuring, stages=stages, out=folder, refresh=refresh)
    return measured, folder, task


def _train(task: Task, plan: Plan, folder: Path, measuring: Measuring) -> Run:
    """Train by the plan, or take the same run from where an earlier call left it."""
    *earlier, free = run_folders(folder / "runs" / "plan")
    for path in earlier:
        run = read_record(path / OUTCOME, Run)
        same = run.seed == measuring.seed and not run.outcome.can_resume
        as_planned = read_record(path / "plan.json", Plan).replace(options=plan.options)
        if same and as_planned == plan:
            say(f"{path} holds this very run already: plan and seed are the same")
            return run
    return train_task(task, plan, free, device=measuring.device, seed=measuring.seed)


def _answer(plan: Plan, measurements: Measurements, folder: Path, run: Run | None) -> Answer:
    from rightbatch.report.sentences import answer_sentence, next_steps
    from rightbatch.report.signal import signal_sentences
    from rightbatch.report.terminal import decision_table, render

    report = _write_report(folder)
    facts = measurements.task.replace(target=plan.target or measurements.task.target)
    trained = run_answer(run) if run else None
    files = {name: str(folder / file) for name, file in _FILES.items()}
    document: dict[str, Any] = {
        "task": plan.task,
        "plan": plan.model_dump(mode="json", include=set(_HEADLINE)),
        "planned_for": {
            "device": plan.device,
            "evidence": "derived" if plan.is_derived else "measured",
        },
        "plateau": plan.plateau,
        "predicted": plan.predicted.model_dump(mode="json") if plan.predicted else None,
        "decisions": [decision.model_dump(mode="json") for decision in plan.decisions],
        "notes": plan.warnings,
        "guards": [guard.model_dump(mode="json") for guard in plan.guards],
        "doubts": [doubt.model_dump(mode="json") for doubt in plan.doubts],
        "batch_schedule": plan.batch_schedule.model_dump(mode="json") if plan.batch_schedule else None,
        "signal": measurements.signal.model_dump(mode="json") if measurements.signal else None,
        "run": trained.document if trained else None,
        "files": files | {"report": str(report) if report else None},
    }
    steps = next_steps(plan, measurements, folder, trained=run is not None)
    return Answer(
        document=document,
        text=(
            render(decision_table(plan, facts.recipe)),
            *(f"Note: {note}" for note in plan.warnings),
            answer_sentence(plan, facts),
            *(signal_sentences(measurements.signal) if measurements.signal else ()),
            *(trained.text if trained else ()),
            *(f"Next: {step}" for step in steps),
            f"Report: {report}" if report else f"Plan: {files['plan']}",
        ),
        exit_code=trained.exit_code if trained else EXIT_DONE,
    )


_FILES = {"plan": "plan.toml", "measurements": "measurements.json"}


def _write_report(folder: Path) -> Path | None:
    """Write the report, or say why there is none where its drawing library is not installed."""
    from rightbatch.report.html import write_report

    try:
        return write_report(folder)
    except MissingPackageError as error:
        say(f"no report was written: {error}")
        return None
