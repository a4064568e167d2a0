"""The trade between time and examples: what each batch size costs in both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.plan import Plan
from rightbatch.report.drawing import (
    BLUE,
    GREY,
    ORANGE,
    add_line,
    add_points,
    log_axis,
    new_figure,
    ratio_axis,
)
from rightbatch.report.sentences import interval_text
from rightbatch.report.tables import Table

if TYPE_CHECKING:
    import plotly.graph_objects as go


def plot_front(plan: Plan, today: int) -> go.Figure:
    """Draw time over examples to the target for every candidate, the Pareto front as a line."""
    scored = plan.candidates
    figure = new_figure("examples to target, of today's", "time to target, of today's")
    front = sorted(
        (c.examples_ratio.value, c.seconds_ratio.value, c.global_batch_size)
        for c in scored
        if c.on_front
    )
    beaten = [c for c in scored if not c.on_front]
    if beaten:
        add_points(
            figure,
            [c.examples_ratio.value for c in beaten],
            [c.seconds_ratio.value for c in beaten],
            "slower for more examples",
            GREY,
            text=[f"{c.global_batch_size:,}" for c in beaten],
            hovertemplate="batch %{text}: %{x:.3g}, %{y:.3g}",
        )
    add_line(
        figure,
        [x for x, _, _ in front],
        [y for _, y, _ in front],
        "no other is better in both",
        BLUE,
        mode="lines+markers+text",
        text=[f"{size:,}" for _, _, size in front],
        textposition="top right",
        hovertemplate="batch %{text}: %{x:.3g}, %{y:.3g}",
    )
    add_points(figure, [1], [1], f"today: {today}", GREY, "square")
    for c in scored:
        if c.global_batch_size == plan.global_batch_size:
            x, y = c.examples_ratio.value, c.seconds_ratio.value
            add_points(figure, [x], [y], f"plan: {c.global_batch_size}", ORANGE, "diamond")
    seconds = [1.0, *(c.seconds_ratio.value for c in scored)]
    examples = [1.0, *(c.examples_ratio.value for c in scored)]
    log_axis(figure, min(seconds) / 1.15, max(seconds) * 1.15)
    ratio_axis(figure, min(examples) / 1.05, max(examples) * 1.15)
    return figure


def front_table(plan: Plan, today: int) -> Table:
    """The batches that no other beats in both time and examples, the quickest first."""
    front = sorted((c for c in plan.candidates if c.on_front), key=lambda c: c.seconds_ratio.value)
    names = {"plan": plan.global_batch_size, "today": today}
    rows = tuple(
        (
            f"{c.global_batch_size:,}",
            interval_text(c.seconds_ratio),
            interval_text(c.examples_ratio),
            ", ".join(name for name, size in names.items() if size == c.global_batch_size),
        )
        for c in front
    )
    columns = ("global batch", "time, of today's", "examples, of today's", "")
    return Table(columns=columns, rows=rows, words=frozenset({""}))
