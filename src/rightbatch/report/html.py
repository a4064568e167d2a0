"""The report of a plan: one HTML file that answers the question and shows the evidence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rightbatch.core.plan import Plan
from rightbatch.core.samples import Measurements
from rightbatch.core.store import read_record, write_text
from rightbatch.fit.models import Models, fit_models
from rightbatch.report import sections, sentences, signal, tables
from rightbatch.report.exhibits import Exhibit, collect_exhibits, shown_metric
from rightbatch.report.history import RunHistory, read_runs
from rightbatch.report.markup import Html, tag
from rightbatch.report.page import render_exhibit, render_page


def write_report(folder: Path) -> Path:
    """Rebuild ``report.html`` from the records in a folder.

    Args:
        folder: holds measurements.json, and plan.json and runs where they were made.

    Raises:
        InvalidInputError: a record is missing, damaged or of another schema version.
        MissingPackageError: plotly is not installed.
    """
    measurements = read_record(folder / "measurements.json", Measurements)
    saved = folder / "plan.json"
    plan = read_record(saved, Plan) if saved.exists() else None
    path = folder / "report.html"
    write_text(path, render_report(measurements, plan, read_runs(folder), folder=folder))
    return path


def render_report(
    measurements: Measurements,
    plan: Plan | None,
    runs: Sequence[RunHistory] = (),
    *,
    folder: Path = Path(),
) -> str:
    """The whole page as text; equal records give equal pages.

    Args:
        measurements: samples of any of the stages.
        plan: made from them, if one was made.
        runs: trained in this folder.
        folder: named in the commands that the page suggests.

    Raises:
        MissingPackageError: plotly is not installed.
    """
    if plan and plan.target:
        measurements = measurements.replace(task=measurements.task.replace(target=plan.target))
    models = fit_models(measurements)
    exhibits = collect_exhibits(measurements, models, plan, runs)
    choice = [exhibit for exhibit in exhibits if exhibit.key == "candidates"]
    body = [
        *_answer(measurements, models, plan, runs, folder),
        *map(render_exhibit, choice),
        *_decisions(measurements, plan),
        *_signal(measurements),
        *_evidence(measurements, [e for e in exhibits if e not in choice], runs),
        *_method(measurements, models, plan),
    ]
    title = f"{measurements.task.name}: rightbatch report"
    return render_page(title, body, with_figures=bool(exhibits))


def _answer(
    measurements: Measurements,
    models: Models,
    plan: Plan | None,
    runs: Sequence[RunHistory],
    folder: Path,
) -> list[Html]:
    """What to do, and why: enough to act on."""
    task = measurements.task
    batches = {r.global_batch_size for r in runs if r.run is None or r.run.target == task.target}
    steps = sentences.next_steps(
        plan,
        measurements,
        folder,
        trained=plan is not None and plan.global_batch_size in batches,
        compared=task.recipe.batch_size in batches,
    )
    return [
        tag("h1", f"rightbatch: {task.name} on {measurements.environment.device_name}"),
        tag("p", sentences.answer_sentence(plan, task), class_="answer"),
        sections.render_notes([*(plan.warnings if plan else ()), *measurements.notes]),
        tag("h2", "What to do next"),
        sections.render_steps(steps),
        tag("h2", "At a glance"),
        sections.render_facts(measurements, models, plan),
    ]


def _decisions(measurements: Measurements, plan: Plan | None) -> list[Html]:
    """Every planned value."""
    if plan is None or not plan.decisions:
        return []
    table = sections.render_decisions(plan.decisions, measurements.task.recipe)
    return [tag("h2", "The plan"), table]


def _signal(measurements: Measurements) -> list[Html]:
    """What updates see of rare positives, for a task that declares them."""
    if (found := measurements.signal) is None:
        return []
    words = [tag("p", sentence) for sentence in signal.signal_sentences(found)]
    return [tag("h2", "Rare positives"), *words, sections.render_table(signal.update_table(found))]


def _evidence(
    measurements: Measurements, exhibits: Sequence[Exhibit], runs: Sequence[RunHistory]
) -> list[Html]:
    """Figures with their numbers, and what the runs reached."""
    figures = [render_exhibit(exhibit) for exhibit in exhibits]
    parts = [tag("h2", "The evidence"), *figures] if figures else []
    if runs:
        table = tables.runs_table(runs, shown_metric(measurements, runs))
        parts += [tag("h2", "Runs"), sections.render_table(table)]
    return parts


def _method(measurements: Measurements, models: Models, plan: Plan | None) -> list[Html]:
    """How each number came about, and where."""
    return [
        tag("h2", "How each number was obtained"),
        sections.render_table(tables.models_table(models, measurements)),
        tag(
            "p",
            "Intervals hold 90 %. A residual is the median relative error of the fit; of the memory"
            " law, the largest error at a traced size that did not fix it.",
        ),
        sections.render_notes(models.memory.caveats if models.memory else ()),
        tag("h2", "Where it was measured"),
        sections.render_table(tables.environment_table(measurements)),
        tag("h2", "Sources"),
        sections.render_sources(sections.cited_sources(models, plan)),
    ]
