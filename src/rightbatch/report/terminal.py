"""Tables of text, drawn by rich for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Recipe
from rightbatch.report.tables import Table, today_text, value_text

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_COLOURS = {"measured": "green", "derived": "cyan", "assumed": "yellow"}
_WORDS = frozenset({"decision", "evidence", "why"})


def decision_table(plan: Plan, recipe: Recipe) -> Table:
    """Every decision: today's value, the planned one, how it is known and why."""
    rows = tuple(
        (d.name, today_text(d.name, recipe), value_text(d.value, d.name), d.evidence, d.reason)
        for d in plan.decisions
    )
    return Table(columns=("decision", "today", "planned", "evidence", "why"), rows=rows, words=_WORDS)


def render(table: Table) -> RichTable:
    """Draw a table: words to the left, numbers to the right, lines only under the head."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in table.columns:
        justify = "left" if column in table.words else "right"
        drawn.add_column(column, justify=justify, overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    return drawn
