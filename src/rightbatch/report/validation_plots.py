"""The figures of a comparison: differences by seed, learning curves of both sides, and remedies."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rightbatch.core.comparison import Comparison, Difference, SideName
from rightbatch.report.drawing import (
    BLUE,
    GREY,
    ORANGE,
    PLATEAU,
    add_line,
    add_points,
    log_axis,
    new_figure,
)
from rightbatch.report.sentences import percent
from rightbatch.report.validation_text import Curves, over_seeds, seed_differences

_LOOKS: dict[SideName, tuple[str, str]] = {
    "reference": (GREY, "rgba(138,143,152,0.22)"),
    "candidate": (ORANGE, "rgba(217,119,43,0.20)"),
}


def plot_differences(comparison: Comparison) -> go.Figure:
    """Draw the difference of each seed and their mean with its interval, the margin as a band."""
    figure = _against_the_reference(comparison)
    found = [(f"seed {s}", value) for s, value in seed_differences(comparison) if value is not None]
    add_points(figure, [x for x, _ in found], [y for _, y in found], "one pair of runs", BLUE)
    if comparison.difference is not None:
        name = f"mean, {percent(comparison.level)} interval"
        _add_interval(figure, ["mean"], [comparison.difference], name, ORANGE)
    return figure


def plot_remedies(comparison: Comparison) -> go.Figure:
    """Draw the plain candidate's difference to the reference beside that of every remedy tried."""
    figure = _against_the_reference(comparison)
    remedies = comparison.remedies
    assert remedies is not None
    if comparison.difference is not None:
        name = f"without a remedy, {percent(comparison.level)} interval"
        _add_interval(figure, ["none"], [comparison.difference], name, ORANGE)
    tried = [(r.remedy.name, r.difference) for r in remedies.results if r.difference is not None]
    name = f"intervals that hold together with {percent(remedies.family_level)}"
    _add_interval(figure, [name for name, _ in tried], [d for _, d in tried], name, BLUE)
    return figure


def plot_curves(comparison: Comparison, curves: Curves) -> go.Figure:
    """Draw metric and training loss against examples and updates: means, and ranges over seeds."""
    grid = make_subplots(
        rows=2, cols=2, shared_yaxes=True, vertical_spacing=0.1, horizontal_spacing=0.04
    )
    figure, metric = new_figure(grid=grid, height=620), comparison.metric
    losses: list[float] = []
    for side, (color, fill) in _LOOKS.items():
        plan = getattr(comparison, side).plan
        name = f"{side}: batch {plan.global_batch_size}"
        for row, quantity in ((1, metric), (2, None)):
            points = over_seeds(curves.get(side, ()), quantity)
            for col, at in ((1, "examples"), (2, "updates")):
                look: dict[str, Any] = {"row": row, "col": col, "legendgroup": side}
                x = [getattr(evaluation, at) for evaluation, _ in points]
                low, high = [min(v) for _, v in points], [max(v) for _, v in points]
                figure.add_scatter(
                    x=[*x, *reversed(x)],
                    y=[*high, *reversed(low)],
                    fill="toself",
                    fillcolor=fill,
                    line={"width": 0},
                    mode="lines",
                    hoverinfo="skip",
                    showlegend=False,
                    **look,
                )
                means = [sum(v) / len(v) for _, v in points]
                add_line(figure, x, means, name, color, showlegend=row == col == 1, **look)
            if quantity is None:
                losses += [value for _, values in points for value in values]
    if comparison.target is not None:
        line = {"dash": "dash", "color": BLUE, "width": 1.5}
        level: dict[str, Any] = {"y0": comparison.target.value, "y1": comparison.target.value}
        for col in (1, 2):
            figure.add_shape(
                type="line", xref="x domain", x0=0, x1=1, line=line, row=1, col=col, **level
            )
    if losses and min(losses) > 0:
        for col in (1, 2):
            log_axis(figure, min(losses) / 1.2, max(losses) * 1.2, row=2, col=col)
    figure.update_yaxes(title=html.escape(metric), row=1, col=1)
    figure.update_yaxes(title="training loss", row=2, col=1)
    figure.update_xaxes(title="examples", row=2, col=1)
    figure.update_xaxes(title="updates", row=2, col=2)
    return figure


def _against_the_reference(comparison: Comparison) -> go.Figure:
    """An empty figure of differences, with the margin as a band and a line at 0."""
    better = "higher" if comparison.higher_is_better else "lower"
    title = f"{html.escape(comparison.metric)} less the reference's<br>{better} is better"
    figure = new_figure("", title, height=360)
    look: dict[str, Any] = {"xref": "paper", "x0": 0, "x1": 1, "layer": "below"}
    figure.add_shape(
        type="rect",
        y0=-comparison.margin,
        y1=comparison.margin,
        name=f"within the margin of {comparison.margin:g}",
        showlegend=True,
        fillcolor=PLATEAU,
        line={"width": 0},
        **look,
    )
    line = {"dash": "dot", "color": GREY, "width": 1.5}
    figure.add_shape(type="line", y0=0, y1=0, line=line, **look)
    return figure


def _add_interval(
    figure: go.Figure, x: Sequence[str], found: Sequence[Difference], name: str, color: str
) -> None:
    """Means with bars to both ends; a mean without an interval has none."""
    high = [0.0 if one.high is None else one.high - one.value for one in found]
    low = [0.0 if one.low is None else one.value - one.low for one in found]
    bars = {"array": high, "arrayminus": low, "thickness": 2, "width": 7, "color": color}
    values = [one.value for one in found]
    add_points(figure, x, values, name, color, "diamond", error_y=bars)
