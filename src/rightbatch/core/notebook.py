"""Results as a notebook shows them: a table of what they hold, every text escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, cast

_MOST_ROWS = 50  # of a list, which may hold thousands


class Shown:
    """Gives a result with annotated fields its table; what is not set is left out."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        name = escape(type(self).__name__)
        return f"<table><caption>{name}</caption>{_rows(_fields(self).items())}</table>"


def _fields(value: Shown) -> dict[str, Any]:
    """What is set, in the order of the class."""
    kind = type(value)
    names = getattr(kind, "model_fields", None) or getattr(kind, "__dataclass_fields__", {})
    held = {str(name): getattr(value, name) for name in names}
    return {name: one for name, one in held.items() if one is not None and one != ()}


def _rows(items: Iterable[tuple[object, Any]]) -> str:
    cells = (f"<th>{escape(str(name))}</th><td>{_cell(value)}</td>" for name, value in items)
    return "".join(f"<tr>{row}</tr>" for row in cells)


def _cell(value: object) -> str:
    if isinstance(value, Shown):
        return f"<table>{_rows(_fields(value).items())}</table>"
    if isinstance(value, Mapping):
        return f"<table>{_rows(cast(Any, value).items())}</table>"
    if isinstance(value, (list, tuple)):
        return _list(cast("list[Any]", value))
    return escape(f"{value:.6g}" if isinstance(value, float) else str(value))


def _list(values: list[Any]) -> str:
    """Plain values in a line; a table, folded up, of anything more."""
    shown = values[:_MOST_ROWS]
    more = "" if len(values) <= _MOST_ROWS else f", the first {_MOST_ROWS} shown"
    if any(isinstance(value, (Shown, Mapping, list, tuple)) for value in shown):
        rows = _rows(enumerate(shown))
        return f"<details><summary>{len(values)}{more}</summary><table>{rows}</table></details>"
    return ", ".join(map(_cell, shown)) + (f" ({len(values)}{more})" if more else "")
