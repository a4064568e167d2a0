"""Where words go: an answer to stdout, talk and errors to stderr, or one JSON document to stdout."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rightbatch.core.errors import EXIT_DONE, EXIT_INTERRUPTED, RightBatchError

if TYPE_CHECKING:
    from rich.console import RenderableType

_PIPED_WIDTH = 120  # columns of a table that no terminal limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a verb found out: the same facts for people and for programs."""

    document: dict[str, Any]
    """Plain JSON values; the schema version is added when it is printed."""
    text: tuple[RenderableType, ...]
    exit_code: int = EXIT_DONE


class StoppedByUserError(RightBatchError):
    """Ctrl-C ended a verb; says what was kept and which command goes on."""

    exit_code = EXIT_INTERRUPTED


def show(answer: Answer, *, as_json: bool) -> None:
    """Print an answer to stdout."""
    if as_json:
        _print_json(answer.document)
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    for part in answer.text:
        console.print(part, soft_wrap=isinstance(part, str))  # a command must not be cut in two


def show_error(error: RightBatchError, *, as_json: bool) -> None:
    """Print the three parts of an error: to stderr, or as JSON to stdout."""
    if as_json:
        parts = {"found": error.found, "need": error.need, "hint": error.hint, "kind": error.kind}
        _print_json({"error": parts})
    else:
        sys.stderr.write(f"error: {error}\n")


def say(text: str) -> None:
    """Tell the user how work goes, on stderr."""
    sys.stderr.write(text + "\n")


def _print_json(document: dict[str, Any]) -> None:
    from rightbatch.core.record import SCHEMA_VERSION

    text = json.dumps({"schema_version": SCHEMA_VERSION} | document, indent=1, allow_nan=False)
    sys.stdout.write(text + "\n")
