"""The report's figures, drawn from fitted models and records; nothing is measured, shown or saved.

What the data left open is drawn open: a caret and a line without an end, never a closed interval.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rightbatch.core.errors import InfeasibleError
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Target
from rightbatch.core.samples import Owner
from rightbatch.core.units import format_bytes
from rightbatch.fit.loader_model import LoaderModel
from rightbatch.fit.memory_model import MemoryModel
from rightbatch.fit.noise_scale import NoiseScale
from rightbatch.fit.speed_model import SpeedModel
from rightbatch.plan.limits import Limits
from rightbatch.report.drawing import (
    BLUE,
    COLORS,
    GREEN,
    GREY,
    ORANGE,
    PLATEAU,
    add_band,
    add_carets,
    add_intervals,
    add_line,
    add_points,
    log_axis,
    new_figure,
    size_axis,
)
from rightbatch.report.history import RunHistory
from rightbatch.report.sentences import percent

_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))
_OFF_PLOT = 3.0  # a limit this many times above the curve would flatten it


def plot_candidates(plan: Plan, today: int) -> go.Figure:
    """Draw predicted time to the target over today's against global batch, the plateau shaded."""
    scored, batch = plan.candidates, plan.global_batch_size
    sizes = [c.global_batch_size for c in scored]
    seconds, examples = [c.seconds_ratio for c in scored], [c.examples_ratio.value for c in scored]
    known = [x for r in seconds for x in (r.low, r.value, r.high) if x] + examples + [1.0]
    bottom, top = min(known) / 1.15, max(known) * 1.15
    figure = new_figure("global batch size", "ratio to today's recipe")
    if plan.plateau:  # a hair wider than its ends, so that a plateau of one batch is seen
        span = {"x0": plan.plateau[0] / 1.02, "x1": plan.plateau[1] * 1.02, "y0": 0, "y1": 1}
        look = {"yref": "paper", "layer": "below", "fillcolor": PLATEAU, "line": {"width": 0}}
        figure.add_shape(type="rect", name="within 5 % of the best", showlegend=True, **span, **look)
    add_band(figure, sizes, seconds, bottom, top)
    add_line(figure, sizes, [r.value for r in seconds], "time to target", BLUE)
    add_line(figure, sizes, examples, "examples to target", GREEN, dash="dash")
    add_line(figure, [sizes[0], sizes[-1]], [1, 1], "", GREY, dash="dot", showlegend=False)
    add_points(figure, [today], [1], f"today: {today}", GREY)
    chosen = [r.value for size, r in zip(sizes, seconds, strict=True) if size == batch]
    add_points(figure, [batch] * len(chosen), chosen, f"plan: {batch}", ORANGE, "diamond")
    size_axis(figure, sizes)
    log_axis(figure, bottom, top)
    return figure


def plot_noise(points: Sequence[NoiseScale], plan: Plan | None, today: int) -> go.Figure:
    """Draw the noise scale over the pilot; a point without an upper bound is a caret with no lid."""
    figure = new_figure("examples seen by the pilot", "examples")
    decided = [(p, p.noise_scale, p.high) for p in points if p.noise_scale and p.high]
    undecided = [p for p in points if not p.decided]
    batches = [today, *([plan.global_batch_size] if plan else [])]
    lows = [max(p.low, 1.0) for p in points]  # a logarithmic axis has no 0
    top = 2 * max(*lows, *(high for _, _, high in decided), *batches)
    if decided:
        add_intervals(
            figure,
            [p.examples_seen for p, _, _ in decided],
            [value for _, value, _ in decided],
            [(max(p.low, 1.0), high) for p, _, high in decided],
            "noise scale",
            BLUE,
        )
    if undecided:
        floor = [max(p.low, 1.0) for p in undecided]
        seen = [p.examples_seen for p in undecided]
        add_carets(figure, seen, floor, top, "at least this, no upper bound", BLUE)
    ends = [points[0].examples_seen, points[-1].examples_seen]
    add_line(figure, ends, [today, today], f"today's batch: {today}", GREY, dash="dot")
    if plan:
        batch = plan.global_batch_size
        add_line(figure, ends, [batch, batch], f"plan's batch: {batch}", ORANGE, dash="dash")
    log_axis(figure, min(*lows, *batches) / 2, top)
    return figure


def plot_speed(speed: SpeedModel, loader: LoaderModel | None, plan: Plan | None) -> go.Figure:
    """Draw step seconds above and examples per second below, with intervals, knee and loader."""
    grid = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07)
    figure = new_figure(grid=grid, height=560)
    above: dict[str, Any] = {"row": 1, "col": 1}
    below: dict[str, Any] = {"row": 2, "col": 1}
    sizes, name = speed.micro_batch_sizes, "forward and backward"
    millis = [1e3 * speed.step_seconds(size) for size in sizes]
    bounds = [(1e3 * low, 1e3 * high) for low, high in map(speed.interval, sizes)]
    add_intervals(figure, sizes, millis, bounds, name, BLUE, **above)
    rates = [speed.examples_per_second(size) for size in sizes]
    swapped = [(1e3 * b / high, 1e3 * b / low) for b, (low, high) in zip(sizes, bounds, strict=True)]
    add_intervals(figure, sizes, rates, swapped, name, BLUE, showlegend=False, **below)
    ceiling = [loader.examples_per_second(size) for size in sizes] if loader else []
    if loader:
        add_line(figure, sizes, ceiling, "loader alone", GREEN, dash="dash", **below)
    knee = speed.knee_micro_batch_size
    best = [speed.examples_per_second(knee)]
    add_points(figure, [knee], best, f"knee: {knee}", GREY, "square", **below)
    if plan and sizes[0] <= plan.micro_batch_size <= sizes[-1]:
        b, look = plan.micro_batch_size, {"color": ORANGE, "symbol": "diamond"}
        add_points(figure, [b], [1e3 * speed.step_seconds(b)], f"plan: {b}", **look, **above)
        rate = [speed.examples_per_second(b)]
        add_points(figure, [b], rate, f"plan: {b}", **look, **below, showlegend=False)
    size_axis(figure, sizes)
    ends = [end for pair in bounds for end in pair if end > 0]  # a logarithmic axis has no 0
    log_axis(figure, min(ends) / 1.2, max(ends) * 1.2, title="step, ms", **above)
    figure.update_xaxes(title="micro-batch size", **below)
    flows = [*rates, *(end for pair in swapped for end in pair), *ceiling]
    log_axis(figure, min(flows) / 1.2, max(flows) * 1.2, title="examples/s", **below)
    return figure


def plot_memory(
    model: MemoryModel, traced: Mapping[int, int], plan: Plan | None, limit_bytes: int
) -> go.Figure:
    """Draw predicted peak bytes by owner against micro-batch size, with the device's memory.

    The axis ends at four times the plan, or at the largest micro-batch that fits where that is not
    much further. A limit far above the curve is written at the top of the plot, where a line would
    flatten everything below it.

    Args:
        model: peak bytes and their owners.
        traced: peak bytes of the traces, by micro-batch size.
        plan: whose micro-batch is marked.
        limit_bytes: what the plan may use.
    """
    planned = plan.micro_batch_size if plan else max(traced)
    end, largest = max(4 * planned, *traced), _largest_that_fits(model, limit_bytes)
    end = max(end, largest) if largest <= _OFF_PLOT * end else end
    grid = {max(1, round(end * i / 32)) for i in range(33)}
    corners = {b for first, *_ in model.pieces() for b in (first - 1, first) if 1 <= b <= end}
    shown: set[int] = {planned, *traced, *grid, *corners, *range(largest, min(largest, end) + 1)}
    sizes = sorted(shown - {0})
    unit, scale = next(u for u in _UNITS if model.peak_bytes(end) >= u[1])
    figure = new_figure("micro-batch size", f"peak memory, {unit}")
    parts = [model.breakdown(size) for size in sizes]
    owners: list[Owner] = [owner for owner in parts[-1] if any(part[owner] for part in parts)]
    for owner, color in zip(owners, COLORS, strict=False):
        values, look = [part[owner] / scale for part in parts], {"width": 0, "color": color}
        name, hover = owner.replace("_", " "), f"%{{y:.3g}} {unit}"
        figure.add_scatter(
            x=sizes, y=values, name=name, stackgroup="owners", line=look, hovertemplate=hover
        )
    peaks = [model.peak_bytes(size) / scale for size in sizes]
    add_line(figure, sizes, peaks, "predicted peak", BLUE)
    if model.high_share:
        highs = [model.high_bytes(size) / scale for size in sizes]
        add_line(figure, sizes, highs, "upper end of its interval", BLUE, dash="dot")
    add_points(figure, list(traced), [peak / scale for peak in traced.values()], "traced", BLUE)
    if plan:
        peak = model.peak_bytes(planned) / scale
        add_points(figure, [planned], [peak], f"plan: {planned}", ORANGE, "diamond")
    if largest in sizes:
        name = f"largest with {percent(Limits().headroom)} of the limit free: {largest:,}"
        add_points(figure, [largest], [model.peak_bytes(largest) / scale], name, GREEN, "square")
    limit, text = limit_bytes / scale, f"memory limit: {format_bytes(limit_bytes)}"
    if limit <= _OFF_PLOT * peaks[-1]:
        add_line(figure, [sizes[0], sizes[-1]], [limit, limit], text, GREY, dash="dash")
    else:
        text = f"↑ {text}, {limit / peaks[-1]:,.0f} times the top of this plot"
        where = {"x": 0.01, "y": 1, "xref": "paper", "yref": "paper"}
        figure.add_annotation(text=text, **where, xanchor="left", yanchor="top", showarrow=False)
    figure.update_yaxes(rangemode="tozero")
    return figure


def _largest_that_fits(model: MemoryModel, limit_bytes: int) -> int:
    """Largest micro-batch within the limit less the usual headroom; 0 where none is."""
    try:
        return model.max_micro_batch(limit_bytes, Limits().headroom)
    except InfeasibleError:
        return 0


def plot_runs(runs: Sequence[RunHistory], metric: str | None, target: Target | None) -> go.Figure:
    """Draw the metric and the training loss against examples and seconds, one line a run."""
    rows = 2 if metric else 1
    grid = make_subplots(
        rows=rows, cols=2, shared_yaxes=True, vertical_spacing=0.1, horizontal_spacing=0.04
    )
    figure = new_figure(grid=grid, height=290 * rows + 40)
    for number, run in enumerate(runs):
        label = f"{html.escape(run.name)} (batch {run.global_batch_size})"
        curves: list[list[float | None]] = [[e.train_loss for e in run.evaluations]]
        if metric:
            curves.insert(0, [e.metrics.get(metric) for e in run.evaluations])
        for row, y in enumerate(curves, start=1):
            for col, at in ((1, "examples"), (2, "seconds")):
                look: dict[str, Any] = {"mode": "lines+markers", "row": row, "col": col}
                look |= {"legendgroup": str(number), "showlegend": row == col == 1}
                x = [getattr(e, at) for e in run.evaluations]
                add_line(figure, x, y, label, COLORS[number % len(COLORS)], **look)
    if metric:
        figure.update_yaxes(title=html.escape(metric), row=1, col=1)
    if target and target.metric == metric:
        level: dict[str, Any] = {"y0": target.value, "y1": target.value, "x0": 0, "x1": 1}
        line = {"dash": "dash", "color": GREY, "width": 1.5}
        for col in (1, 2):
            figure.add_shape(type="line", xref="x domain", line=line, row=1, col=col, **level)
    losses = [e.train_loss for run in runs for e in run.evaluations if e.train_loss > 0]
    for col in (1, 2) if losses else ():
        log_axis(figure, min(losses) / 1.3, max(losses) * 1.3, row=rows, col=col)
    figure.update_yaxes(title="training loss", row=rows, col=1)
    figure.update_xaxes(title="examples", row=rows, col=1)
    figure.update_xaxes(title="seconds of training", row=rows, col=2)
    return figure
