"""The figures of the report, each with what it shows in words and its numbers as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import ModuleType
from typing import TYPE_CHECKING

from rightbatch.core.packages import check_installed
from rightbatch.core.plan import Plan
from rightbatch.core.samples import Measurements
from rightbatch.fit.memory_model import MemoryModel
from rightbatch.fit.models import Models
from rightbatch.fit.noise_heading import fit_heading
from rightbatch.fit.speed_model import SpeedModel
from rightbatch.report import sentences, tables
from rightbatch.report.history import RunHistory
from rightbatch.report.noise import heading_sentence

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True, slots=True, kw_only=True)
class Exhibit:
    """One piece of evidence, for eyes and for reading."""

    key: str
    title: str
    caption: str
    figure: go.Figure
    table: tables.Table


def collect_exhibits(
    measurements: Measurements, models: Models, plan: Plan | None, runs: Sequence[RunHistory]
) -> list[Exhibit]:
    """Draw whatever the records allow, from the answer down to what it rests on.

    Raises:
        MissingPackageError: plotly is not installed.
    """
    found: list[Exhibit] = []
    if plan and plan.candidates:
        found.append(_candidates(measurements, plan))
        if any(candidate.on_front for candidate in plan.candidates):
            found.append(_front(measurements, plan))
    if models.noise_points:
        found.append(_noise(measurements, models, plan))
    here = None if plan and plan.is_derived else plan  # what was measured says nothing of elsewhere
    if models.speed:
        found.append(_speed(models.speed, models, here))
    if models.memory:
        found.append(_memory(measurements, models.memory, here))
    if any(run.evaluations for run in runs):
        found.append(_runs(measurements, plan, runs))
    return found


def shown_metric(measurements: Measurements, runs: Sequence[RunHistory]) -> str | None:
    """The target's metric, else the first one that a run evaluated."""
    if measurements.task.target:
        return measurements.task.target.metric
    return next((name for run in runs for e in run.evaluations for name in e.metrics), None)


def _plots() -> ModuleType:
    """Import the drawing code when something is to be drawn.

    Raises:
        MissingPackageError: plotly is not installed.
    """
    check_plotly()
    from rightbatch.report import plots

    return plots


def check_plotly() -> None:
    """Refuse to draw where nothing can be drawn with.

    Raises:
        MissingPackageError: plotly is not installed.
    """
    check_installed("plotly", need="plotly, which draws the report's figures", extra="report")


def _candidates(measurements: Measurements, plan: Plan) -> Exhibit:
    today = measurements.task.recipe.batch_size
    return Exhibit(
        key="candidates",
        title="Which batch size is fastest",
        caption=f"Predicted time to {sentences.goal_text(measurements.task)}, and examples to it, over"
        f" those of today's batch of {today}. Below 1 is better than today.",
        figure=_plots().plot_candidates(plan, today),
        table=tables.candidates_table(plan, today),
    )


def _front(measurements: Measurements, plan: Plan) -> Exhibit:
    from rightbatch.report.front import front_table, plot_front

    today = measurements.task.recipe.batch_size
    return Exhibit(
        key="front",
        title="What less time costs in examples",
        caption="Every batch size by its predicted time and examples; on the line no other batch is"
        " better in both.",
        figure=plot_front(plan, today),
        table=front_table(plan, today),
    )


def _noise(measurements: Measurements, models: Models, plan: Plan | None) -> Exhibit:
    today, heading = measurements.task.recipe.batch_size, fit_heading(models.noise_points)
    return Exhibit(
        key="noise",
        title="How many examples one step can use",
        caption=f"{sentences.noise_sentence(models.noise)} {heading_sentence(heading)}",
        figure=_plots().plot_noise(models.noise_points, plan, today),
        table=tables.noise_table(models.noise_points),
    )


def _speed(speed: SpeedModel, models: Models, plan: Plan | None) -> Exhibit:
    return Exhibit(
        key="speed",
        title="What a micro-batch costs in time",
        caption=sentences.loader_verdict(models, plan),
        figure=_plots().plot_speed(speed, models.loader, plan),
        table=tables.speed_table(speed, models.loader),
    )


def _memory(measurements: Measurements, model: MemoryModel, plan: Plan | None) -> Exhibit:
    source = "kernels" if model.evidence == "measured" else "fake"
    traces = [trace for trace in measurements.memory if trace.source == source]
    traced = {trace.micro_batch_size: max(accumulate(trace.delta_bytes)) for trace in traces}
    planned = plan.micro_batch_size if plan else max(traced)
    largest = max(4 * planned, *traced)
    powers = [2**power for power in range(largest.bit_length()) if 2**power <= largest]
    limit = tables.memory_limit_bytes(measurements, plan)
    return Exhibit(
        key="memory",
        title="What a micro-batch costs in memory",
        caption=sentences.memory_sentence(model, planned, limit),
        figure=_plots().plot_memory(model, traced, plan, limit),
        table=tables.memory_table(model, [*traced, planned, *powers]),
    )


def _runs(measurements: Measurements, plan: Plan | None, runs: Sequence[RunHistory]) -> Exhibit:
    metric = shown_metric(measurements, runs)
    compared = sentences.comparison_sentence(plan, runs, measurements.task) if plan else ""
    return Exhibit(
        key="runs",
        title="What training did",
        caption=compared or "Every run, against the examples it saw and the seconds it trained.",
        figure=_plots().plot_runs(runs, metric, measurements.task.target),
        table=tables.curves_table(runs, metric),
    )
