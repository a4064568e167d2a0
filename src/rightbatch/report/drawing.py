"""The house look of every figure, and the few marks that figures are made of.

Nothing here knows what it draws. Text from records must be escaped before it comes here, because
plotly reads its text as HTML.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from rightbatch.core.plan import Interval
from rightbatch.core.units import format_number

# Middle tones that read on white and on near-black alike; the page's style colours all text.
BLUE, ORANGE, GREEN, GREY = "#3d7fc4", "#d9772b", "#3f9a6b", "#8a8f98"
COLORS = (ORANGE, BLUE, GREEN, "#9b6bc3", "#c4577a", "#2a9aa8", "#a08a3c", GREY)
BAND, PLATEAU = "rgba(61,127,196,0.18)", "rgba(63,154,107,0.16)"
_GRID = "rgba(138,143,152,0.25)"
_MAX_TICKS = 10


def new_figure(x: str = "", y: str = "", grid: go.Figure | None = None, height: int = 400) -> go.Figure:
    """An empty figure: transparent, legend above, lines across only.

    Args:
        x: title of every x axis.
        y: title of every y axis.
        grid: subplots to draw in; None is one plot.
        height: in pixels; the width is the page's.
    """
    figure = grid or go.Figure()
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 64, "r": 12, "t": 56, "b": 52},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
        hovermode="x unified",
        dragmode=False,
    )
    look: dict[str, Any] = {"linecolor": GREY, "zeroline": False, "automargin": True}
    figure.update_xaxes(**look, title=x, showgrid=False, ticks="outside", tickcolor=GREY)
    figure.update_yaxes(**look, title=y, gridcolor=_GRID)
    return figure


def add_line(
    figure: go.Figure,
    x: Sequence[float],
    y: Sequence[float | None],
    name: str,
    color: str,
    dash: str = "solid",
    **look: Any,
) -> None:
    """A line; ``look`` goes to plotly as it is."""
    line = {"color": color, "width": 2, "dash": dash}
    figure.add_scatter(x=list(x), y=list(y), name=name, line=line, **({"mode": "lines"} | look))


def add_points(
    figure: go.Figure,
    x: Sequence[float] | Sequence[str],
    y: Sequence[float],
    name: str,
    color: str,
    symbol: str = "circle",
    **look: Any,
) -> None:
    """Marks with a white edge, which lift off the line beneath them."""
    marker = {"color": color, "symbol": symbol, "size": 10, "line": {"color": "white", "width": 1.5}}
    figure.add_scatter(x=list(x), y=list(y), name=name, mode="markers", marker=marker, **look)


def add_intervals(
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
    add_line(figure, x, y, name, color, mode="lines+markers", error_y=bars, **look)


def add_carets(
    figure: go.Figure, x: Sequence[float], low: Sequence[float], top: float, name: str, color: str
) -> None:
    """Lower bounds with nothing above them: a caret, and a bar that leaves the plot."""
    figure.add_scatter(
        x=list(x),
        y=list(low),
        name=name,
        mode="markers",
        marker={"symbol": "triangle-up-open", "size": 13, "color": color, "line": {"width": 2}},
        error_y={"array": [2 * top] * len(low), "arrayminus": [0] * len(low), "width": 0},
        hovertemplate="at least %{y:.3g}",
    )


def add_band(
    figure: go.Figure, x: Sequence[int], intervals: Sequence[Interval], bottom: float, top: float
) -> None:
    """Shade from lower to upper bounds; an open end leaves the plot."""
    low = [bottom / 2 if i.low is None else i.low for i in intervals]
    high = [2 * top if i.high is None else i.high for i in intervals]
    figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*low, *reversed(high)],
        name="90 % interval",
        fill="toself",
        fillcolor=BAND,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
    )


def size_axis(figure: go.Figure, sizes: Sequence[int]) -> None:
    """A logarithmic x axis on which batch sizes double from tick to tick."""
    first, last = math.floor(math.log2(min(sizes))), math.ceil(math.log2(max(sizes)))
    ticks = [2**power for power in range(first, last + 1)]
    span = [math.log10(min(sizes) / 1.15), math.log10(max(sizes) * 1.15)]
    figure.update_xaxes(
        type="log", range=span, tickvals=ticks, ticktext=[f"{tick:,}" for tick in ticks]
    )


def log_axis(figure: go.Figure, low: float, high: float, **cell: Any) -> None:
    """A logarithmic y axis from ``low`` to ``high`` with round numbers at its ticks."""
    figure.update_yaxes(**_log_ticks(low, high), **cell)


def ratio_axis(figure: go.Figure, low: float, high: float) -> None:
    """The same along x."""
    figure.update_xaxes(**_log_ticks(low, high))


def _log_ticks(low: float, high: float) -> dict[str, Any]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        ticks = [float(f"{tick:.2g}") for tick in ticks if low <= tick <= high]
        if len(ticks) <= _MAX_TICKS:
            break
    span, labels = [math.log10(low), math.log10(high)], [format_number(tick) for tick in ticks]
    return {"type": "log", "range": span, "tickvals": ticks, "ticktext": labels}
