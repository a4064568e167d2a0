"""``rightbatch tasks``, ``scale`` and ``report``: what needs neither torch nor time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter

from rightbatch.cli.output import Answer
from rightbatch.cli.source import Flag, option
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Decision
from rightbatch.core.recipe import Recipe
from rightbatch.core.sources import SOURCES
from rightbatch.report.tables import Table, value_text
from rightbatch.report.terminal import render

if TYPE_CHECKING:
    from rightbatch.plan.scaling import ScaledRow


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


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Companions:
    """Constants that move beside the learning rate; one that is not given is not shown."""

    weight_decay: float | None = None
    """Today's weight decay."""
    betas: str | None = None
    """Today's two betas with a comma between: 0.9,0.999."""
    ema_decay: float | None = None
    """Today's decay of averaged weights, per update."""
    warmup_steps: int = 0
    """Today's updates of warmup."""


NONE_GIVEN = Companions()


def scale(
    *,
    lr: float,
    batch: int,
    to: int,
    optimizer: str = "adamw",
    examples: int | None = None,
    companions: Companions = NONE_GIVEN,
    json: Flag = False,
) -> Answer:
    """Move a learning rate and its companions to other batch sizes by cited rules.

    Args:
        lr: Learning rate that was tuned at --batch.
        batch: Global batch it was tuned at, in examples.
        to: Global batch to move to, in examples; the doublings between are shown too.
        optimizer: A torch.optim class, in any case.
        examples: Training examples, for the updates per epoch.
        companions: Constants that move beside the learning rate.
        json: Print one JSON document on stdout.

    Raises:
        InvalidInputError: a number is out of its range, or the optimizer is unknown.
    """
    from rightbatch.plan.scaling import scaling_table

    for name, count in (("--to", to), ("--examples", examples)):
        if count is not None and count < 1:
            raise InvalidInputError(f"{name} {count}", need="1 or more", hint="count examples")
    betas = companions.betas
    recipe = Recipe(
        optimizer=optimizer,
        lr=lr,
        batch_size=batch,
        epochs=1,
        weight_decay=companions.weight_decay,
        betas=option("--betas", _parse_pair, betas) if betas else None,
        ema_decay=companions.ema_decay,
        warmup_examples=companions.warmup_steps * batch,
    )
    rows = scaling_table(recipe, _doublings(batch, to), examples)
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
            render(_scaling_table(rows)),
            *(_rule_text(decision) for decision in rows[-1].decisions),
            "The rules hold below the critical batch size; try half and twice the moved rate as well.",
        ),
    )


def _scaling_table(rows: list[ScaledRow]) -> Table:
    counts = ("updates per epoch",) if rows[0].updates_per_epoch else ()
    return Table(
        columns=("batch", *counts, *(decision.name for decision in rows[0].decisions)),
        rows=tuple(
            (
                f"{row.batch_size:,}",
                *([f"{row.updates_per_epoch:,}"] if counts else []),
                *(value_text(decision.value, decision.name) for decision in row.decisions),
            )
            for row in rows
        ),
    )


def _rule_text(decision: Decision) -> str:
    source = SOURCES[decision.source]
    return f"{decision.name}: {decision.rule}, {decision.evidence} ({source.title}; {source.where})"


def _doublings(start: int, end: int) -> list[int]:
    """Batch sizes from one to the other by doubling or halving, both ends included.

    >>> _doublings(32, 200), _doublings(64, 16)
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
