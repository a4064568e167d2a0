"""``rightbatch tasks``, ``scale`` and ``report``: what needs neither torch nor time."""

from __future__ import annotations

from pathlib import Path

from rightbatch.cli.output import Answer
from rightbatch.cli.source import Flag, option
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.recipe import Recipe
from rightbatch.core.sources import SOURCES
from rightbatch.report.tables import Table, value_text
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
    """
    from rightbatch.core.samples import Measurements
    from rightbatch.core.store import read_record
    from rightbatch.report.html import write_report

    name = read_record(folder / "measurements.json", Measurements).task.name
    path = write_report(folder)
    return Answer(document={"task": name, "files": {"report": str(path)}}, text=(f"Report: {path}",))


def scale(
    *,
    lr: float,
    batch: int,
    to: int,
    optimizer: str = "adamw",
    examples: int | None = None,
    weight_decay: float | None = None,
    betas: str | None = None,
    ema_decay: float | None = None,
    warmup_steps: int = 0,
    json: Flag = False,
) -> Answer:
    """Move a learning rate and its companions to other batch sizes by cited rules.

    Args:
        lr: Learning rate that was tuned at --batch.
        batch: Global batch it was tuned at, in examples.
        to: Global batch to move to, in examples; the powers of two between are shown too.
        optimizer: A torch.optim class, in any case.
        examples: Training examples, for the updates per epoch.
        weight_decay: Today's, to be moved too.
        betas: Today's two, with a comma between: 0.9,0.999.
        ema_decay: Of the averaged weights, per update.
        warmup_steps: Updates of warmup.
        json: Print one JSON document on stdout.
    """
    from rightbatch.plan.scaling import scaling_table

    recipe = Recipe(
        optimizer=optimizer,
        lr=lr,
        batch_size=batch,
        epochs=1,
        weight_decay=weight_decay,
        betas=option("--betas", _parse_pair, betas) if betas else None,
        ema_decay=ema_decay,
        warmup_examples=warmup_steps * batch,
    )
    if min(to, examples or 1) < 1:
        found = f"--to {to}" if to < 1 else f"--examples {examples}"
        raise InvalidInputError(found, need="1 or more", hint="count examples")
    rows = scaling_table(recipe, _steps_between(batch, to), examples)
    names = [decision.name for decision in rows[0].decisions]
    counts = ("updates per epoch",) if examples else ()
    table = Table(
        columns=("batch", *counts, *names),
        rows=tuple(
            (
                f"{row.batch_size:,}",
                *([f"{row.updates_per_epoch:,}"] if row.updates_per_epoch else []),
                *(value_text(decision.value, decision.name) for decision in row.decisions),
            )
            for row in rows
        ),
    )
    return Answer(
        document={
            "task": None,
            "optimizer": optimizer,
            "rows": [
                {
                    "batch_size": row.batch_size,
                    "updates_per_epoch": row.updates_per_epoch,
                    "decisions": [decision.model_dump(mode="json") for decision in row.decisions],
                }
                for row in rows
            ],
        },
        text=(
            render(table),
            *(
                f"{d.name}: {d.rule} [{d.evidence}; {SOURCES[d.source].title}, {SOURCES[d.source].where}]"
                for d in rows[-1].decisions
            ),
            "Rules hold below the critical batch size only; try 1/2 and 2 times the moved rate as well.",
        ),
    )


def _steps_between(start: int, end: int) -> list[int]:
    """Batch sizes from one to the other by doubling or halving, both ends included.

    >>> _steps_between(32, 200), _steps_between(64, 16)
    ([32, 64, 128, 200], [64, 32, 16])
    """
    sizes = [start]
    while sizes[-1] != end:
        sizes.append(min(2 * sizes[-1], end) if end > start else max(sizes[-1] // 2, end))
    return sizes


def _parse_pair(text: str) -> tuple[float, float]:
    try:
        first, second = (float(part) for part in text.split(","))
    except ValueError as error:
        found, hint = repr(text), "write them with a comma: 0.9,0.999"
        raise InvalidInputError(found, need="two numbers", hint=hint) from error
    return first, second
