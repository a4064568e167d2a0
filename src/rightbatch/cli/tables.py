"""``rightbatch tasks`` and ``report``: what needs neither torch nor time."""

from __future__ import annotations

from pathlib import Path

from rightbatch.cli.output import Answer
from rightbatch.cli.source import Flag
from rightbatch.core.errors import InvalidInputError
from rightbatch.report.tables import Table
from rightbatch.report.terminal import render


def tasks(*, json: Flag = False) -> Answer:
    """List the built-in tasks and whether their data is on this machine.

    Args:
        json: Print one JSON document on stdout.
    """
    from rightbatch.tasks.builtin import BUILTIN_TASKS, is_data_present

    present = {name: is_data_present(name) for name in BUILTIN_TASKS}
    columns = ("task", "what it is", "data from", "on this machine")
    rows = tuple(
        (name, task.summary, task.data, "yes" if present[name] else "no")
        for name, task in BUILTIN_TASKS.items()
    )
    return Answer(
        document={
            "task": None,
            "tasks": [
                {"name": name, "summary": task.summary, "data": task.data, "present": present[name]}
                for name, task in BUILTIN_TASKS.items()
            ],
        },
        text=(
            render(Table(columns=columns, rows=rows, words=frozenset(columns))),
            "A task of your own: rightbatch plan my_task.py",
        ),
    )


def report(folder: Path, /, *, json: Flag = False) -> Answer:
    """Rebuild report.html from the records in a folder.

    Args:
        folder: That holds measurements.json, and what else plan and train wrote.
        json: Print one JSON document on stdout.

    Raises:
        InvalidInputError: plan wrote nothing there, or its records cannot be read.
    """
    from rightbatch.core.samples import Measurements
    from rightbatch.core.store import read_record
    from rightbatch.report.html import write_report

    if not (saved := folder / "measurements.json").exists():
        hint = "rightbatch plan TASK --out DIR; its report shows what is trained into DIR/runs, too"
        raise InvalidInputError(f"no {saved}", need="a folder that plan wrote", hint=hint)
    name = read_record(saved, Measurements).task.name
    path = write_report(folder)
    return Answer(document={"task": name, "files": {"report": str(path)}}, text=(f"Report: {path}",))
