"""Pictures beside an answer, which is given without them too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rightbatch.cli.output import say
from rightbatch.core.errors import MissingPackageError

if TYPE_CHECKING:
    import plotly.graph_objects as go


def draw(plot: Callable[[], go.Figure], path: Path) -> Path | None:
    """Save a figure as one HTML file that needs no network; where plotly is missing, say so.

    Args:
        plot: imports plotly, and draws.
        path: of the file.

    Returns:
        The path, or None where nothing was drawn.
    """
    from rightbatch.report.exhibits import check_plotly

    try:
        check_plotly()
    except MissingPackageError as error:
        say(f"no picture was drawn: {error}")
        return None
    plot().write_html(path, include_plotlyjs=True)
    return path
