"""``rightbatch memory TASK --what-if``: what would save most bytes, and what it would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rightbatch.cli.accelerator import names_accelerator
from rightbatch.cli.output import Answer, say
from rightbatch.cli.source import load, saved_file
from rightbatch.core.devices import parse_accelerator
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.units import format_bytes
from rightbatch.fit.memory_law import LARGEST_SIZE
from rightbatch.report.tables import Table
from rightbatch.report.terminal import render

if TYPE_CHECKING:
    from rightbatch.measure.memory.options import StepOptions
    from rightbatch.measure.memory.what_if import WhatIf


def what_if_answer(
    spec: str,
    sizes: Sequence[int] | None,
    options: StepOptions,
    *,
    device: str,
    limit_bytes: int | None,
    headroom: float,
) -> Answer:
    """Trace every option of a task's step beside the step as it is.

    Args:
        spec: names the task.
        sizes: micro-batch size, one; None takes the recipe's batch over its accumulation steps.
        options: what the step does beside the recipe.
        device: ``cpu``, or a catalogued accelerator.
        limit_bytes: memory that may be used; None takes the device's.
        headroom: share of it to leave free.

    Raises:
        InvalidInputError: more than one size, saved measurements, or another device.
    """
    from rightbatch.measure.environment import read_environment
    from rightbatch.measure.memory.what_if import what_if
    from rightbatch.tasks.check import check_task

    if sizes is not None and len(sizes) != 1:
        found, hint = f"--batch {','.join(map(str, sizes))} with --what-if", f"--batch {sizes[0]}"
        raise InvalidInputError(found, need="one micro-batch size", hint=hint)
    if path := saved_file(spec):
        found, hint = f"--what-if with saved measurements, {path}", "name the task instead of its files"
        raise InvalidInputError(found, need="a task to trace", hint=hint)
    accelerator = parse_accelerator(device) if names_accelerator(device) else None
    if (accelerator is None and device != "cpu") or (accelerator and not accelerator.simulated):
        found, hint = f"--what-if on {device}", "--device cuda:h100-80gb"
        raise InvalidInputError(found, need="cpu, or an accelerator that is simulated", hint=hint)
    task = load(spec, "cpu")
    check_task(task)
    size = sizes[0] if sizes else max(1, task.recipe.batch_size // options.accumulation_steps)
    limit = limit_bytes or (accelerator or read_environment()).memory_bytes
    usable = int(limit * (1 - headroom))
    say(f"tracing {task.name} and its options at {size:,} examples")
    rows = what_if(task, size, usable_bytes=usable, accelerator=accelerator, base=options)
    return Answer(
        document={
            "task": task.name,
            "device": accelerator.name if accelerator else "cpu",
            "micro_batch_size": size,
            "limit_bytes": limit,
            "what_if": [asdict(row) for row in rows],
        },
        text=(
            render(_table(rows)),
            *(f"{row.option}: {row.note}" for row in rows if row.saved_bytes is None),
            f"Today's micro-batch is {size:,}. The largest is by memory alone:"
            f" {format_bytes(limit)} with {headroom:.0%} of it left free, predicted and not run.",
            _evidence(rows),
        ),
    )


def _evidence(rows: Sequence[WhatIf]) -> str:
    """Where bytes and step times come from."""
    bytes_from = "steps that were run" if rows[0].evidence == "measured" else "steps that were not run"
    kinds = {row.seconds_evidence for row in rows}
    times = {
        "measured": "step times were taken here, in turn with today's",
        "derived": "step times are ratios of floating-point operations, without those of the optimizer",
    }
    said = "; ".join(text for kind, text in times.items() if kind in kinds)
    return f"Bytes are traced from {bytes_from}; {said or 'step times were not taken'}."


def _table(rows: Sequence[WhatIf]) -> Table:
    """Today's step and what could be traced, in order of bytes saved."""
    columns = ("option", "peak", "saved", "largest micro-batch", "step time", "note")
    return Table(
        columns=columns,
        rows=tuple(
            (
                row.option,
                format_bytes(row.peak_bytes or 0),
                format_bytes(row.saved_bytes),
                _size(row.max_micro_batch_size),
                f"x {row.seconds_ratio:.2f}" if row.seconds_ratio else "–",
                row.note,
            )
            for row in rows
            if row.saved_bytes is not None
        ),
        words=frozenset({"option", "note"}),
    )


def _size(size: int | None) -> str:
    if not size:
        return "none fits"
    return f"{size:,}{' or more' * (size >= LARGEST_SIZE)}"
