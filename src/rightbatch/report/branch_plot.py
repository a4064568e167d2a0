"""Rise of the loss against batch size, after the same examples from each point of training."""

from __future__ import annotations

import plotly.graph_objects as go

from rightbatch.core.sweep import Critical
from rightbatch.report.drawing import COLORS, GREY, add_intervals, add_line, new_figure, size_axis

_APART = 1.03  # between the points of training, so that their bars do not lie on each other


def plot_branches(critical: Critical) -> go.Figure:
    """Draw each point's rises with their bounds, and the tolerance; diverged branches are left out."""
    sizes = list(critical.points[0].batch_sizes)
    figure = new_figure("batch size", f"loss over that of batch {sizes[0]}, %", height=420)
    middle = (len(critical.points) - 1) / 2
    for number, point in enumerate(critical.points):
        kept = [
            (size, *(100 * share for share in rise))
            for size, rise in zip(sizes, point.rises, strict=True)
            if rise is not None
        ]
        add_intervals(
            figure,
            [size * _APART ** (number - middle) for size, *_ in kept],
            [value for _, value, _, _ in kept],
            [(low, high) for _, _, low, high in kept],
            f"after {point.examples_seen:,} examples",
            COLORS[number % len(COLORS)],
            customdata=[size for size, *_ in kept],
            hovertemplate="batch %{customdata}: %{y:+.1f} %",
        )
    ends = [sizes[0] / 1.15, sizes[-1] * 1.15]
    tolerance = 100 * critical.tolerance
    add_line(figure, ends, [tolerance] * 2, f"tolerance, {tolerance:g} %", GREY, dash="dash")
    size_axis(figure, sizes)
    figure.update_layout(hovermode="closest")
    return figure
