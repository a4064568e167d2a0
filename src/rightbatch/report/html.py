"""One HTML file that answers the question and shows the evidence, offline and without JavaScript.

Everything needed to act is plain HTML; JavaScript adds the plots, whose numbers stand below them as
tables. The page may load nothing: its policy allows its own scripts, by their hash, and no others.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from rightbatch.core.plan import Plan
from rightbatch.core.samples import Measurements
from rightbatch.core.store import read_record, write_text
from rightbatch.fit.models import Models, fit_models
from rightbatch.report import sections, sentences, signal, tables
from rightbatch.report.exhibits import Exhibit, collect_exhibits, shown_metric
from rightbatch.report.history import RunHistory, read_runs
from rightbatch.report.markup import Html, escape, join, tag

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
{scripts}
</body>
</html>
"""
# plotly.js writes style elements of its own; scripts are allowed by hash alone.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {scripts};"
    " base-uri 'none'; form-action 'none'"
)


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
    models = fit_models(measurements)
    exhibits = collect_exhibits(measurements, models, plan, runs)
    scripts = [_read("page.js"), _plotly_js()] if exhibits else []
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts) or "'none'"
    return _PAGE.format(
        policy=_POLICY.format(scripts=hashes),
        title=escape(f"{measurements.task.name}: rightbatch report"),
        style=_read("page.css"),
        body=join([
            *_answer(measurements, models, plan, runs, folder),
            *_signal(measurements),
            *_evidence(measurements, exhibits, runs),
            *_method(measurements, models, plan),
        ]),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _answer(
    measurements: Measurements,
    models: Models,
    plan: Plan | None,
    runs: Sequence[RunHistory],
    folder: Path,
) -> list[Html]:
    """What to do, and why: enough to act on."""
    task = measurements.task
    if plan and plan.target:
        task = task.replace(target=plan.target)
    batches = {run.global_batch_size for run in runs}
    steps = sentences.next_steps(
        plan,
        measurements,
        folder,
        trained=plan is not None and plan.global_batch_size in batches,
        compared=task.recipe.batch_size in batches,
    )
    parts = [
        tag("h1", f"rightbatch: {task.name} on {measurements.environment.device_name}"),
        tag("p", sentences.answer_sentence(plan, task), class_="answer"),
        sections.render_notes([*(plan.warnings if plan else ()), *measurements.notes]),
        tag("h2", "What to do next"),
        sections.render_steps(steps),
        tag("h2", "At a glance"),
        sections.render_facts(measurements, models, plan),
    ]
    if plan and plan.decisions:
        parts += [tag("h2", "The plan"), sections.render_decisions(plan.decisions, task.recipe)]
    return parts


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
    parts = [tag("h2", "The evidence"), *(_figure(exhibit) for exhibit in exhibits)] if exhibits else []
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


def _figure(exhibit: Exhibit) -> Html:
    """A plot, filled in by the page's script, and its numbers, open until the script closes them."""
    name = f"figure-{exhibit.key}"
    # In JSON a less-than sign occurs only inside strings, where an escape means the same.
    data = Html((exhibit.figure.to_json() or "").replace("<", "\\u003c"))
    numbers = [tag("summary", "The numbers"), sections.render_table(exhibit.table)]
    return tag(
        "figure",
        tag("h3", exhibit.title),
        tag("figcaption", exhibit.caption),
        tag("div", class_="plot", data_figure=name, role="img", aria_label=exhibit.title),
        tag("noscript", tag("p", "The plot needs JavaScript; its numbers are below.")),
        tag("script", data, type="application/json", id=name),
        Html(f'<details class="numbers" open>{join(numbers)}</details>'),
    )


def _read(name: str) -> str:
    return (resources.files("rightbatch.report") / name).read_text(encoding="utf-8")


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
