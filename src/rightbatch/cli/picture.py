"""Pictures beside an answer, which is given without them too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rightbatch.cli.output import say
from rightbatch.core.errors import MissingPackageError

if TYPE_CHECKING:
    import plotly.graph_objects as go


def if_drawable(what: str, draw: Callable[[], Path]) -> Path | None:
    """The path of what was drawn; where plotly is missing, say so and return None."""
    try:
        return draw()
    except MissingPackageError as error:
        say(f"no {what} was drawn: {error}")
        return None


def draw(plot: Callable[[], go.Figure], path: Path) -> Path | None:
    """Save a figure as one HTML file that needs no network, if there is plotly to draw it.

    Args:
        plot: imports plotly, and draws.
        path: of the file.

    Returns:
        The path, or None where nothing was drawn.
    """
    from rightbatch.report.exhibits import check_plotly

    def save() -> Path:
        check_plotly()
        plot().write_html(path, include_plotlyjs=True)
        return path

    return if_drawable("picture", save)
