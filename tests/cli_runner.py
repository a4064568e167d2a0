"""Calls the command line inside the test's process: torch is imported once, not once a command."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from rightbatch.cli import main


class Called(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        return json.loads(self.out)


def run_cli(*argv: str | Path) -> Called:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(part) for part in argv])
    return Called(code, out.getvalue(), err.getvalue())


def assert_three_parts(called: Called, *, code: int, found: str, need: str, hint: str) -> None:
    """stderr says what was found, what is needed and what to do, and stdout holds no answer."""
    assert called.out == ""
    assert called.code == code, called.err
    lines = called.err.strip().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("error: "))
    first, _, last = "\n".join(lines[start:]).partition("\n  hint: ")
    was, _, wanted = first.removeprefix("error: ").partition("; need ")
    assert found in was, called.err
    assert need in wanted, called.err
    assert hint in last, called.err
