"""The page of a comparison: the verdict in a sentence, and what it rests on, seed by seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rightbatch.core.comparison import Comparison, SideName
from rightbatch.core.run import Evaluation, Run
from rightbatch.core.store import read_record, write_text
from rightbatch.report.exhibits import Exhibit, check_plotly
from rightbatch.report.markup import Html, tag
from rightbatch.report.page import render_exhibit, render_page
from rightbatch.report.sections import render_notes, render_sources, render_table
from rightbatch.report.validation_text import (
    Curves,
    curves_table,
    differences_table,
    remedies_table,
    remedy_lines,
    runs_table,
    seed_differences,
)

PAGE = "validate.html"


def write_validation(comparison: Comparison, folder: Path, lines: Sequence[str]) -> Path:
    """Save the page beside the runs of the comparison.

    Args:
        comparison: what came out.
        folder: of its runs.
        lines: what it says beside its verdict.

    Raises:
        InvalidInputError: a run's record is missing, or the page cannot be written.
        MissingPackageError: plotly is not installed.
    """
    path = folder / PAGE
    write_text(path, render_validation(comparison, read_curves(comparison, folder), lines))
    return path


def read_curves(comparison: Comparison, folder: Path) -> Curves:
    """The evaluations of every run of both sides."""
    found: dict[SideName, list[Sequence[Evaluation]]] = {"reference": [], "candidate": []}
    for run in comparison.runs:
        record = read_record(folder / run.run_dir / "outcome.json", Run)
        found[run.side].append(record.evaluations)
    return found


def render_validation(comparison: Comparison, curves: Curves, lines: Sequence[str]) -> str:
    """The page as text; equal records give equal pages.

    Args:
        comparison: what came out.
        curves: of the runs of both sides.
        lines: what it says beside its verdict.

    Raises:
        MissingPackageError: plotly is not installed.
    """
    check_plotly()
    exhibits = _exhibits(comparison, curves)
    reason = comparison.reason
    sides = f"{comparison.candidate.name} against {comparison.reference.name}"
    body = [
        tag("h1", f"rightbatch: {comparison.task}, {sides}"),
        tag("p", f"{reason[0].upper()}{reason[1:]}.", class_="answer"),
        render_notes(lines),
        tag("h2", "The evidence"),
        *(render_exhibit(exhibit) for exhibit in exhibits),
        tag("h2", "Runs"),
        render_table(runs_table(comparison)),
        *_remedies(comparison),
    ]
    return render_page(f"{comparison.task}: rightbatch validate", body, with_figures=bool(exhibits))


def _exhibits(comparison: Comparison, curves: Curves) -> list[Exhibit]:
    from rightbatch.report import validation_plots as plots

    found: list[Exhibit] = []
    if any(value is not None for _, value in seed_differences(comparison)):
        caption = (
            "Candidate less reference at the end of training, one point for each seed. The verdict"
            " follows from the interval of the mean and the shaded margin, which was fixed beforehand."
        )
        found.append(
            Exhibit(
                key="differences",
                title="The batch-size effect, seed by seed",
                caption=caption,
                figure=plots.plot_differences(comparison),
                table=differences_table(comparison),
            )
        )
    if comparison.remedies is not None:
        found.append(
            Exhibit(
                key="remedies",
                title="What the remedies did",
                caption=remedy_lines(comparison)[0],
                figure=plots.plot_remedies(comparison),
                table=remedies_table(comparison),
            )
        )
    if any(run for runs in curves.values() for run in runs):
        caption = (
            "Means over seeds, and shaded the range from the lowest to the highest of them; a run that"
            " diverged ends early. The dashed line is the target."
        )
        found.append(
            Exhibit(
                key="curves",
                title="How both sides learned",
                caption=caption,
                figure=plots.plot_curves(comparison, curves),
                table=curves_table(comparison, curves),
            )
        )
    return found


def _remedies(comparison: Comparison) -> list[Html]:
    if comparison.remedies is None:
        return []
    return [
        tag("h2", "Remedies"),
        render_table(remedies_table(comparison)),
        render_notes(remedy_lines(comparison)),
        render_sources(result.remedy.source for result in comparison.remedies.results),
    ]
