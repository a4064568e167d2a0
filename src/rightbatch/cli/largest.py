"""The largest micro-batch: what ends it, memory or data, and what became of running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rightbatch.cli.output import Answer
from rightbatch.core.samples import Measurements, MemoryTrace
from rightbatch.core.units import format_bytes, format_seconds
from rightbatch.fit.memory_law import LARGEST_SIZE
from rightbatch.fit.memory_model import MemoryModel
from rightbatch.report.terminal import render

if TYPE_CHECKING:
    from rightbatch.measure.memory.options import StepOptions
    from rightbatch.measure.memory.probe import ProbeResult
    from rightbatch.tasks.task import Task

PROCESS_BYTES = (300 * 2**20, 450 * 2**20)
"""What a process that has imported torch holds on the CPU beside tensors, least and most seen."""
LimitedBy = Literal["memory", "data", "law"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a micro-batch has to fit into."""

    limit_bytes: int
    headroom: float
    most_examples: int
    """What the training data fills."""
    last_size: int = LARGEST_SIZE
    """Largest that is predicted."""

    def __str__(self) -> str:
        """As a sentence names it."""
        return f"{format_bytes(self.limit_bytes)} with {self.headroom:.0%} of it left free"

    def cap(self, by_memory: int) -> tuple[int, LimitedBy]:
        """The largest micro-batch, and what ends it.

        Args:
            by_memory: largest that memory holds, or the last that is predicted.
        """
        if by_memory >= self.most_examples:
            return self.most_examples, "data"
        return by_memory, "law" if by_memory >= self.last_size else "memory"

    def sentence(self, size: int, by_memory: int, limited_by: LimitedBy) -> str:
        """Say how large, and why no larger."""
        if limited_by == "memory":
            return f"The largest micro-batch that fits {self} is {size:,}"
        if limited_by == "law":
            return f"{self} holds a micro-batch of {size:,}, and no larger one is predicted"
        return (
            f"The largest micro-batch is {size:,}, where the training data ends; memory alone, {self},"
            f" would hold {by_memory:,}{' or more' * (by_memory >= self.last_size)}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A size that was run and fits."""

    micro_batch_size: int
    runs: tuple[ProbeResult, ...]
    pinned: bool

    @property
    def process_bytes(self) -> int | None:
        """What the process held before the steps; None where it could not tell."""
        last = self.runs[-1]
        if last.resident_bytes is None or last.peak_bytes is None:
            return None
        return last.resident_bytes - last.peak_bytes


def verify_largest(
    task: Task,
    model: MemoryModel,
    room: Room,
    traces: Sequence[MemoryTrace],
    *,
    device: str,
    options: StepOptions,
    pin_malloc: bool,
) -> Verified:
    """Run the largest size by the law for real, and a smaller one where it does not fit.

    Args:
        task: as the traces were made of it.
        model: fitted to them.
        room: what it has to fit into.
        traces: say which examples cost most.
        device: where it is run.
        options: what the steps do beside the recipe.
        pin_malloc: as in training.

    Raises:
        InfeasibleError: one example does not fit.
        MeasurementError: two sizes did not fit, or the step fails.
    """
    from rightbatch.measure.memory.probe import largest_that_fits

    worst_case = traces[0].worst_case
    size, runs = largest_that_fits(
        task,
        model,
        room.limit_bytes,
        room.headroom,
        device=device,
        options=options,
        pin_malloc=pin_malloc,
        indices=worst_case.indices if worst_case and worst_case.indices else None,
    )
    return Verified(micro_batch_size=size, runs=tuple(runs), pinned=pin_malloc)


def largest_answer(
    measurements: Measurements,
    model: MemoryModel,
    sizes: Sequence[int],
    room: Room,
    verified: Verified | None,
) -> Answer:
    """Predictions for the sizes that were asked for, and the largest that fits.

    Raises:
        InfeasibleError: one example does not fit.
    """
    from rightbatch.report.tables import memory_table

    by_memory = model.max_micro_batch(room.limit_bytes, room.headroom)
    size, limited_by = room.cap(by_memory)
    sentence = room.sentence(size, by_memory, limited_by)
    if verified and (size := verified.micro_batch_size) < min(by_memory, room.most_examples):
        limited_by = "memory"
        sentence = f"The largest micro-batch that was run and fits {room} is {size:,}"
    on_cpu = measurements.environment.device == "cpu"
    worst_case = measurements.memory[0].worst_case
    beyond = [s for s in sizes if s > room.most_examples]
    return Answer(
        document={
            "task": measurements.task.name,
            "predictions": [_prediction(model, s) for s in sizes],
            "evidence": model.evidence,
            "limit_bytes": room.limit_bytes,
            "max_micro_batch_size": size,
            "limited_by": limited_by,
            "max_micro_batch_size_by_memory": by_memory,
            "verified": verified is not None,
            "verification": _verification(verified, model) if verified else None,
            "process_bytes": _process_bytes(verified) if on_cpu else None,
            "worst_case": worst_case.model_dump(mode="json") if worst_case else None,
        },
        text=(
            render(memory_table(model, sizes)),
            *(f"Note: {caveat}" for caveat in model.caveats),
            *([_beyond(beyond, room)] if beyond else []),
            *([_beside(verified)] if on_cpu else []),
            f"{sentence}; {_how(verified, model)}.",
        ),
    )


def _prediction(model: MemoryModel, size: int) -> dict[str, Any]:
    return {
        "micro_batch_size": size,
        "peak_bytes": model.peak_bytes(size),
        "low_bytes": model.low_bytes(size),
        "high_bytes": model.high_bytes(size),
        "parts": model.breakdown(size),
    }


def _verification(verified: Verified, model: MemoryModel) -> dict[str, Any]:
    last = verified.runs[-1]
    return {
        "runs": len(verified.runs),
        "seconds": sum(run.seconds for run in verified.runs),
        "outcome": last.outcome,
        "predicted_tensor_bytes": model.peak_bytes(verified.micro_batch_size),
        "resident_growth_bytes": last.peak_bytes,
        "resident_bytes": last.resident_bytes,
        "pin_malloc": verified.pinned,
        "tried": [
            {"micro_batch_size": r.micro_batch_size, "outcome": r.outcome, "message": r.message}
            for r in verified.runs
        ],
    }


def _process_bytes(verified: Verified | None) -> dict[str, Any]:
    if verified and (held := verified.process_bytes) is not None:
        return {"low": held, "high": held, "evidence": "measured"}
    return {"low": PROCESS_BYTES[0], "high": PROCESS_BYTES[1], "evidence": "assumed"}


def _beyond(sizes: Sequence[int], room: Room) -> str:
    return (
        f"Note: {', '.join(f'{s:,}' for s in sizes)} is more than the {room.most_examples:,} examples"
        " that the training data gives"
    )


def _beside(verified: Verified | None) -> str:
    """The process around the tensors."""
    if verified and (held := verified.process_bytes) is not None:
        return f"Note: beside its steps the process itself held {format_bytes(held)}, measured"
    low, high = map(format_bytes, PROCESS_BYTES)
    return (
        f"Note: these are tensors; the process itself takes {low} to {high} more, and its malloc may"
        " keep as much again as the tensors: --verify measures both"
    )


def _how(verified: Verified | None, model: MemoryModel) -> str:
    """In which unit the size was found to fit: tensors by the law, the process by a run."""
    if verified is None:
        return "predicted and not run"
    last, seconds = verified.runs[-1], sum(run.seconds for run in verified.runs)
    tensors = format_bytes(model.peak_bytes(verified.micro_batch_size))
    runs = f"{len(verified.runs)} real run{'s' * (len(verified.runs) > 1)}"
    return (
        f"verified: over two steps resident memory grew by {format_bytes(last.peak_bytes or 0)}, for"
        f" {tensors} of tensors by the law ({runs}, {format_seconds(seconds)})"
    )
