"""``rightbatch plan``: measure, fit, plan and report in one call."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from rightbatch.cli.output import Answer, say
from rightbatch.cli.source import (
    AS_USUAL,
    Flag,
    Measuring,
    load,
    measure_task,
    option,
    read_saved,
    saved_file,
)
from rightbatch.cli.train import OUTCOME, run_answer, run_folders, train_task
from rightbatch.core.errors import EXIT_DONE, MissingPackageError
from rightbatch.core.plan import Objective, Plan
from rightbatch.core.run import Outcome, Run
from rightbatch.core.samples import Measurements
from rightbatch.core.store import read_record, write_record
from rightbatch.core.units import parse_bytes

if TYPE_CHECKING:
    from rightbatch.tasks.task import Task

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


UNBOUNDED = Bounds()


def plan(
    task: str,
    /,
    *,
    objective: Objective = "balanced",
    bounds: Bounds = UNBOUNDED,
    measuring: Measuring = AS_USUAL,
    out: Path | None = None,
    train: Flag = False,
    refresh: Flag = False,
    json: Flag = False,
) -> Answer:
    """Measure a task, plan its batch size and learning rate, and show why.

    Args:
        task: A built-in name, my_task.py[:name] or package.module:name, or a folder of an earlier plan.
        objective: What to minimise: time to the target, or balanced between time and examples.
        bounds: What the plan must respect.
        measuring: How to measure.
        out: Folder for plan, measurements and report; without it, rightbatch-NAME.
        train: Train with the plan too, into runs/plan of that folder.
        refresh: Measure afresh; otherwise what an earlier call saved is taken up.
        json: Print one JSON document on stdout.
    """
    from rightbatch.plan.limits import Limits
    from rightbatch.plan.planner import make_plan
    from rightbatch.plan.toml import write_plan

    limit = option("--memory-limit", parse_bytes, bounds.memory_limit) if bounds.memory_limit else None
    limits = Limits(memory_limit_bytes=limit, headroom=bounds.headroom, max_batch_size=bounds.max_batch)
    measurements, folder, loaded = _measurements(task, measuring, out, train=train, refresh=refresh)
    made = make_plan(measurements.task, measurements, objective, limits)
    write_plan(folder / "plan.toml", made)
    write_record(folder / "plan.json", made)
    run = _train(loaded, made, folder, measuring) if train and loaded else None
    return _answer(made, measurements, folder, run)


def _measurements(
    spec: str, measuring: Measuring, out: Path | None, *, train: bool, refresh: bool
) -> tuple[Measurements, Path, Task | None]:
    """The measurements, the folder they lie in, and the task where it was loaded."""
    if path := saved_file(spec):
        measurements = read_saved(path, measuring, train=train, refresh=refresh)
        folder = out or path.parent
        if folder != path.parent:
            write_record(folder / "measurements.json", measurements)
        return measurements, folder, None
    task = load(spec, measuring.device)
    folder = out or Path(f"rightbatch-{task.name}")
    return measure_task(task, measuring, out=folder, refresh=refresh), folder, task


def _train(task: Task, plan: Plan, folder: Path, measuring: Measuring) -> Run:
    """Train by the plan, or take the same run from where an earlier call left it."""
    *earlier, free = run_folders(folder / "runs" / "plan")
    for path in earlier:
        run = read_record(path / OUTCOME, Run)
        same = run.seed == measuring.seed and run.outcome is not Outcome.INTERRUPTED
        if same and read_record(path / "plan.json", Plan) == plan:
            say(f"{path} holds this very run already: plan and seed are the same")
            return run
    return train_task(task, plan, free, device=measuring.device, seed=measuring.seed)


def _answer(plan: Plan, measurements: Measurements, folder: Path, run: Run | None) -> Answer:
    from rightbatch.report.sentences import answer_sentence, next_steps
    from rightbatch.report.terminal import decision_table, render

    report = _write_report(folder)
    facts = measurements.task
    trained = run_answer(run) if run else None
    files = {name: str(folder / file) for name, file in _FILES.items()}
    document: dict[str, Any] = {
        "task": plan.task,
        "plan": plan.model_dump(mode="json", include=set(_HEADLINE)),
        "plateau": plan.plateau,
        "predicted": plan.predicted.model_dump(mode="json") if plan.predicted else None,
        "decisions": [decision.model_dump(mode="json") for decision in plan.decisions],
        "notes": plan.notes,
        "run": trained.document if trained else None,
        "files": files | {"report": str(report) if report else None},
    }
    steps = next_steps(plan, measurements, folder, trained=run is not None)
    return Answer(
        document=document,
        text=(
            render(decision_table(plan, facts.recipe)),
            *(f"Note: {note}" for note in plan.notes),
            answer_sentence(plan, facts),
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
