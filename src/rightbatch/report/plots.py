"""The report's figures, drawn from fitted models and records; nothing is measured, shown or saved.

Text from records is escaped before it enters a figure, because plotly reads its text as HTML.
What the data left open is drawn open: a caret and a line without an end, never a closed interval.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rightbatch.core.plan import Interval, Plan
from rightbatch.core.recipe import Target
from rightbatch.core.samples import Owner
from rightbatch.core.units import format_bytes
from rightbatch.fit.loader_model import LoaderModel
from rightbatch.fit.memory_model import MemoryModel
from rightbatch.fit.noise_scale import NoiseScale
from rightbatch.fit.speed_model import SpeedModel
from rightbatch.report.history import RunHistory

# Middle tones that read on white and on near-black alike.
BLUE, ORANGE, GREEN, GREY = "#3d7fc4", "#d9772b", "#3f9a6b", "#8a8f98"
_COLORS = (ORANGE, BLUE, GREEN, "#9b6bc3", "#c4577a", "#2a9aa8", "#a08a3c", GREY)
_GRID = "rgba(138,143,152,0.25)"
_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))
_OFF_PLOT = 3.0  # a limit this many times above the curve would flatten it
_RATIO_TICKS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 50)


def plot_memory(
    model: MemoryModel, traced: Mapping[int, int], plan: Plan | None, limit_bytes: int
) -> go.Figure:
    """Draw predicted peak bytes by owner against micro-batch size, with the device's memory.

    The axis ends at four times the plan. A limit far above the curve is written at the top of the
    plot, where a line would flatten everything below it.

    Args:
        model: peak bytes and their owners.
        traced: peak bytes of the traces, by micro-batch size.
        plan: whose micro-batch is marked.
        limit_bytes: memory of the device.
    """
    planned = plan.micro_batch_size if plan else max(traced)
    end = max(4 * planned, *traced)
    corners = [b for first, *_ in model.pieces() for b in (first - 1, first) if 1 <= b <= end]
    sizes = sorted({1, end, planned, *traced, *corners})
    unit, scale = next(u for u in _UNITS if model.peak_bytes(end) >= u[1])
    figure = _figure("micro-batch size", f"peak memory, {unit}")
    parts = [model.breakdown(size) for size in sizes]
    owners: list[Owner] = [owner for owner in parts[-1] if any(part[owner] for part in parts)]
    for owner, color in zip(owners, _COLORS, strict=False):
        figure.add_scatter(
            x=sizes,
            y=[part[owner] / scale for part in parts],
            name=owner.replace("_", " "),
            stackgroup="owners",
            line={"width": 0, "color": color},
            hovertemplate=f"%{{y:.3g}} {unit}",
        )
    peaks = [model.peak_bytes(size) / scale for size in sizes]
    _add_line(figure, sizes, peaks, "predicted peak", BLUE)
    if model.high_share:
        highs = [model.high_bytes(size) / scale for size in sizes]
        _add_line(figure, sizes, highs, "upper end of its interval", BLUE, dash="dot")
    at_traced = [peak / scale for peak in traced.values()]
    _add_points(figure, list(traced), at_traced, "traced", BLUE)
    if plan:
        peak = model.peak_bytes(planned) / scale
        _add_points(figure, [planned], [peak], f"plan: {planned}", ORANGE, "diamond")
    limit, text = limit_bytes / scale, f"device memory: {format_bytes(limit_bytes)}"
    if limit <= _OFF_PLOT * peaks[-1]:
        _add_line(figure, [sizes[0], sizes[-1]], [limit, limit], text, GREY, dash="dash")
    else:
        text = f"↑ {text}, {limit / peaks[-1]:,.0f} times the top of this plot"
        _annotate_top(figure, text)
    figure.update_yaxes(rangemode="tozero")
    return figure


def plot_speed(speed: SpeedModel, loader: LoaderModel | None, plan: Plan | None) -> go.Figure:
    """Draw step seconds above and examples per second below, with intervals, knee and loader."""
    sizes = speed.micro_batch_sizes
    figure = _figure("", "", make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.07))
    figure.update_layout(height=560)
    seconds = [speed.step_seconds(size) for size in sizes]
    bounds = [speed.interval(size) for size in sizes]
    name = "forward and backward"
    millis = [1e3 * s for s in seconds]
    milli_bounds = [(1e3 * low, 1e3 * high) for low, high in bounds]
    _add_intervals(figure, sizes, millis, milli_bounds, name, BLUE, row=1, col=1)
    rates = [speed.examples_per_second(size) for size in sizes]
    swapped = [(b / high, b / low) for b, (low, high) in zip(sizes, bounds, strict=True)]
    _add_intervals(figure, sizes, rates, swapped, name, BLUE, row=2, col=1, showlegend=False)
    if loader:
        ceiling = [loader.examples_per_second(size) for size in sizes]
        _add_line(figure, sizes, ceiling, "loader alone", GREEN, dash="dash", row=2, col=1)
    knee = speed.knee_micro_batch_size
    at_knee = [speed.examples_per_second(knee)]
    _add_points(figure, [knee], at_knee, f"knee: {knee}", GREY, "square", row=2, col=1)
    if plan and sizes[0] <= plan.micro_batch_size <= sizes[-1]:
        b = plan.micro_batch_size
        for row, value in ((1, 1e3 * speed.step_seconds(b)), (2, speed.examples_per_second(b))):
            label = f"plan: {b}"
            _add_points(
                figure, [b], [value], label, ORANGE, "diamond", row=row, col=1, showlegend=row == 1
            )
    _log_axis(figure, sizes)
    figure.update_xaxes(title="micro-batch size", row=2)
    figure.update_yaxes(title="step, ms", type="log", dtick=1, row=1)
    figure.update_yaxes(title="examples/s", rangemode="tozero", row=2)
    return figure


def plot_noise(points: Sequence[NoiseScale], plan: Plan | None, today: int) -> go.Figure:
    """Draw the noise scale over the pilot; a point without an upper bound is a caret with no lid."""
    figure = _figure("examples seen by the pilot", "examples per step")
    decided = [(p, p.noise_scale, p.high) for p in points if p.noise_scale is not None and p.high]
    undecided = [p for p in points if not p.decided]
    batches = [today, *([plan.global_batch_size] if plan else [])]
    lows = [max(p.low, 1.0) for p in points]  # a logarithmic axis has no 0
    bottom = min([*lows, *batches]) / 2
    top = 2 * max([*lows, *(high for _, _, high in decided), *batches])
    _add_intervals(
        figure,
        [p.examples_seen for p, _, _ in decided],
        [value for _, value, _ in decided],
        [(max(p.low, 1.0), high) for p, _, high in decided],
        "noise scale",
        BLUE,
    )
    if undecided:
        floor = [max(p.low, 1.0) for p in undecided]
        figure.add_scatter(
            x=[p.examples_seen for p in undecided],
            y=floor,
            name="lower bound, not bounded above",
            mode="markers",
            marker={"symbol": "triangle-up-open", "size": 12, "color": BLUE, "line": {"width": 2}},
            error_y={"array": [2 * top] * len(floor), "arrayminus": [0] * len(floor), "width": 0},
            hovertemplate="at least %{y:.3g}",
        )
    ends = [min(p.examples_seen for p in points), max(p.examples_seen for p in points)]
    _add_line(figure, ends, [today, today], f"today's batch: {today}", GREY, dash="dot")
    if plan:
        batch = plan.global_batch_size
        _add_line(figure, ends, [batch, batch], f"plan's batch: {batch}", ORANGE, dash="dash")
    figure.update_yaxes(type="log", range=[math.log10(bottom), math.log10(top)], dtick=1)
    return figure


def plot_candidates(plan: Plan, today: int) -> go.Figure:
    """Draw predicted time to the target over today's against global batch, the plateau shaded."""
    scored = plan.candidates
    sizes = [c.global_batch_size for c in scored]
    figure = _figure("global batch size", "ratio to today's recipe")
    ratios = [c.seconds_ratio for c in scored]
    closed = [x for r in ratios for x in (r.low, r.value, r.high) if x]
    closed += [c.examples_ratio.value for c in scored]
    bottom, top = min(closed) / 1.15, max(closed) * 1.15
    if plan.plateau:  # a hair wider than its ends, so that a plateau of one batch is seen
        low, high = plan.plateau[0] / 1.02, plan.plateau[1] * 1.02
        box = {"x0": low, "x1": high, "y0": 0, "y1": 1, "yref": "paper", "layer": "below"}
        fill = {"fillcolor": "rgba(63,154,107,0.16)", "line": {"width": 0}}
        figure.add_shape(type="rect", name="within 5 % of the best", showlegend=True, **box, **fill)
    _add_band(figure, sizes, ratios, bottom, top)
    _add_line(figure, sizes, [r.value for r in ratios], "time to target", BLUE)
    examples = [c.examples_ratio.value for c in scored]
    _add_line(figure, sizes, examples, "examples to target", GREEN, dash="dash")
    _add_line(figure, [sizes[0], sizes[-1]], [1, 1], "", GREY, dash="dot", showlegend=False)
    _add_points(figure, [today], [1], f"today: {today}", GREY, "circle")
    batch = plan.global_batch_size
    chosen = [c.seconds_ratio.value for c in scored if c.global_batch_size == batch]
    _add_points(figure, [batch] * len(chosen), chosen, f"plan: {batch}", ORANGE, "diamond")
    _log_axis(figure, sizes)
    ticks = [t for t in _RATIO_TICKS if bottom <= t <= top]
    span = [math.log10(bottom), math.log10(top)]
    labels = [f"{t:g}" for t in ticks]
    figure.update_yaxes(type="log", range=span, tickvals=ticks, ticktext=labels)
    return figure


def plot_runs(runs: Sequence[RunHistory], metric: str | None, target: Target | None) -> go.Figure:
    """Draw the metric and the training loss against examples and seconds, one line a run."""
    rows = 2 if metric else 1
    grid = make_subplots(
        rows=rows, cols=2, shared_yaxes=True, vertical_spacing=0.1, horizontal_spacing=0.04
    )
    figure = _figure("", "", grid)
    figure.update_layout(height=290 * rows + 40)
    for run, color in zip(runs, _COLORS * len(runs), strict=False):
        label = f"{html.escape(run.name)} (batch {run.global_batch_size})"
        for col, at in ((1, "examples"), (2, "seconds")):
            x = [getattr(e, at) for e in run.evaluations]
            curves: list[list[Any]] = [[e.train_loss for e in run.evaluations]]
            if metric:
                curves.insert(0, [e.metrics.get(metric) for e in run.evaluations])
            for row, y in enumerate(curves, start=1):
                first = (row, col) == (1, 1)
                look: dict[str, Any] = {
                    "legendgroup": run.name,
                    "showlegend": first,
                    "row": row,
                    "col": col,
                }
                _add_line(figure, x, y, label, color, mode="lines+markers", **look)
    if metric:
        figure.update_yaxes(title=html.escape(metric), row=1, col=1)
    if metric and target and target.metric == metric:
        line = {"dash": "dash", "color": GREY, "width": 1.5}
        for col in (1, 2):
            figure.add_shape(
                type="line",
                y0=target.value,
                y1=target.value,
                x0=0,
                x1=1,
                xref="x domain",
                line=line,
                row=1,
                col=col,
            )
    figure.update_yaxes(title="training loss", type="log", row=rows, col=1)
    figure.update_yaxes(type="log", row=rows, col=2)
    figure.update_xaxes(title="examples", row=rows, col=1)
    figure.update_xaxes(title="seconds of training", row=rows, col=2)
    return figure


def _figure(x: str, y: str, figure: go.Figure | None = None) -> go.Figure:
    """An empty figure in the house look: transparent, legend above, one grid."""
    figure = figure or go.Figure()
    figure.update_layout(
        template="none",
        height=400,
        margin={"l": 64, "r": 12, "t": 56, "b": 52},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
        hovermode="x unified",
        dragmode=False,
    )
    line: dict[str, Any] = {
        "gridcolor": _GRID,
        "linecolor": GREY,
        "zeroline": False,
        "automargin": True,
    }
    figure.update_xaxes(**line, title=x, showgrid=False, ticks="outside", tickcolor=GREY)
    figure.update_yaxes(**line, title=y)
    return figure


def _add_line(
    figure: go.Figure,
    x: Sequence[float],
    y: Sequence[float | None],
    name: str,
    color: str,
    dash: str = "solid",
    **look: Any,
) -> None:
    line = {"color": color, "width": 2, "dash": dash}
    figure.add_scatter(x=list(x), y=list(y), name=name, line=line, **({"mode": "lines"} | look))


def _add_points(
    figure: go.Figure,
    x: Sequence[float],
    y: Sequence[float],
    name: str,
    color: str,
    symbol: str = "circle",
    **look: Any,
) -> None:
    marker = {"color": color, "symbol": symbol, "size": 10, "line": {"color": "white", "width": 1.5}}
    figure.add_scatter(x=list(x), y=list(y), name=name, mode="markers", marker=marker, **look)


def _add_intervals(
    figure: go.Figure,
    x: Sequence[float],
    y: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    name: str,
    color: str,
    **look: Any,
) -> None:
    """A line through points with bars from the lower to the upper bound."""
    up = [high - value for value, (_, high) in zip(y, bounds, strict=True)]
    down = [value - low for value, (low, _) in zip(y, bounds, strict=True)]
    bars = {"array": up, "arrayminus": down, "thickness": 1.5, "width": 4, "color": color}
    _add_line(figure, x, y, name, color, mode="lines+markers", error_y=bars, **look)


def _add_band(
    figure: go.Figure, x: list[int], ratios: Sequence[Interval], bottom: float, top: float
) -> None:
    """Shade from lower to upper bounds; an open end runs off the plot."""
    low = [bottom / 2 if r.low is None else r.low for r in ratios]
    high = [top * 2 if r.high is None else r.high for r in ratios]
    figure.add_scatter(
        x=x + x[::-1],
        y=low + high[::-1],
        name="90 % interval",
        fill="toself",
        fillcolor="rgba(61,127,196,0.18)",
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
    )


def _annotate_top(figure: go.Figure, text: str) -> None:
    figure.add_annotation(
        text=text, x=1, y=1, xref="paper", yref="paper", xanchor="right", yanchor="top", showarrow=False
    )


def _log_axis(figure: go.Figure, sizes: Sequence[int]) -> None:
    """Batch sizes double from tick to tick."""
    first, last = math.floor(math.log2(sizes[0])), math.ceil(math.log2(sizes[-1]))
    ticks = [2**power for power in range(first, last + 1)]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{t:,}" for t in ticks])
