"""Steps to the target against batch size: the runs, the curve through them, and its three regimes."""

from __future__ import annotations

import html

import plotly.graph_objects as go

from rightbatch.core.sweep import Sweep
from rightbatch.fit.hyperbola import WITHIN
from rightbatch.report.drawing import (
    BLUE,
    COLORS,
    GREEN,
    GREY,
    ORANGE,
    add_line,
    add_points,
    log_axis,
    new_figure,
    size_axis,
)

_FILLS = {"perfect scaling": GREEN, "diminishing returns": ORANGE, "stagnation": GREY}


def plot_steps(sweep: Sweep) -> go.Figure:
    """Draw steps to the target, and with a bend the curve, its limits, and the regimes as shades."""
    figure = new_figure("batch size", f"updates to {html.escape(str(sweep.target))}", height=460)
    sizes = [point.batch_size for point in sweep.points]
    first, last = min(sizes) / 1.15, max(sizes) * 1.15
    values = [point.updates for point in sweep.points]
    if sweep.critical_batch_size is not None and sweep.min_updates is not None:
        critical, least = sweep.critical_batch_size.value, sweep.min_updates
        values += _add_fit(figure, critical, least, first, last)
        if sweep.predicted is not None and first <= (value := sweep.predicted.value) <= last:
            top = least * (1 + critical / value)
            add_points(figure, [value], [top], f"predicted B_crit {value:.0f}", ORANGE, "diamond")
    seeds = sorted({arm.seed for arm in sweep.arms})
    chosen = {(point.batch_size, point.factor) for point in sweep.points}
    for seed in seeds:
        arms = [a for a in sweep.arms if a.seed == seed and (a.batch_size, a.factor) in chosen]
        color = COLORS[(seed + 3) % len(COLORS)]
        x, y = [float(a.batch_size) for a in arms], [a.updates for a in arms]
        add_points(figure, x, y, f"seed {seed}, at the best rate", color)
    size_axis(figure, sizes)
    log_axis(figure, min(values) / 1.5, max(values) * 1.5)
    return figure


def _add_fit(
    figure: go.Figure, critical: float, least: float, first: float, last: float
) -> list[float]:
    """The curve with its limits and regimes; returns the steps that are to be seen."""
    grid = [first * (last / first) ** (i / 60) for i in range(61)]
    curve = [least * (1 + critical / b) for b in grid]
    edges = [first, WITHIN * critical, critical / WITHIN, last]
    for (name, color), begin, end in zip(_FILLS.items(), edges, edges[1:], strict=False):
        left, right = max(begin, first), min(end, last)
        if left < right:
            look = {"fillcolor": color, "opacity": 0.12, "line": {"width": 0}, "layer": "below"}
            span = {"x0": left, "x1": right, "y0": 0, "y1": 1, "yref": "paper"}
            figure.add_shape(type="rect", name=name, showlegend=True, **span, **look)
    add_line(figure, grid, [least * critical / b for b in grid], "perfect scaling", GREY, dash="dot")
    add_line(figure, [first, last], [least, least], "fewest steps", GREY, dash="dash")
    add_line(figure, grid, curve, f"fit, B_crit {critical:.0f}", BLUE)
    return [*curve, least]
