"""``rightbatch memory --device cuda:a100-40gb``: memory on an accelerator that is not here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rightbatch.cli.largest import Room
from rightbatch.cli.output import Answer
from rightbatch.core.devices import Accelerator, parse_accelerator
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.units import format_bytes
from rightbatch.fit.cuda_memory import CudaMemory, largest_micro_batch, predict_cuda_memory
from rightbatch.report.tables import Table
from rightbatch.report.terminal import render
from rightbatch.tasks.task import Task

if TYPE_CHECKING:
    from rightbatch.measure.memory.options import StepOptions


def names_accelerator(device: str) -> bool:
    """Whether a device is one of the catalogue, and not one of this machine such as ``cuda:1``."""
    return device.startswith("cuda:") and not device.removeprefix("cuda:").isdigit()


def simulated_accelerator(device: str) -> Accelerator:
    """Look up an accelerator whose memory can be predicted.

    Raises:
        InvalidInputError: no such accelerator, or one that is not simulated.
    """
    accelerator = parse_accelerator(device)
    if not accelerator.simulated:
        hint = "choose one whose allocator is simulated, such as cuda:h100-80gb"
        need = "an accelerator whose allocator is simulated"
        raise InvalidInputError(f"device {device}", need=need, hint=hint)
    return accelerator


def accelerator_memory(
    task: Task,
    device: str,
    sizes: Sequence[int],
    *,
    limit_bytes: int | None,
    headroom: float,
    options: StepOptions,
    most_examples: int,
) -> Answer:
    """Predict what a training step takes of a catalogued accelerator, and the largest that fits.

    Raises:
        InvalidInputError: no such accelerator, or one that is not simulated.
        InfeasibleError: one example does not fit.
    """
    from rightbatch.measure.elsewhere import trace_accelerator

    accelerator = simulated_accelerator(device)
    traces = trace_accelerator(task, accelerator, options)
    limit = limit_bytes or accelerator.memory_bytes
    room = Room(limit_bytes=limit, headroom=headroom, most_examples=most_examples)
    usable = int(limit * (1 - headroom))
    capability = accelerator.capability
    predictions = [predict_cuda_memory(traces, size, capability=capability) for size in sizes]
    largest = largest_micro_batch(traces, usable, capability=capability)
    by_memory = largest.micro_batch_size
    size, limited_by = room.cap(by_memory)
    worst_case = traces[0].worst_case
    caveats = (*(worst_case.caveats if worst_case else ()), *largest.caveats)
    return Answer(
        document={
            "task": task.name,
            "device": accelerator.name,
            "predictions": [_document(prediction) for prediction in predictions],
            "limit_bytes": limit,
            "evidence": "derived",
            "max_micro_batch_size": size,
            "limited_by": limited_by,
            "max_micro_batch_size_by_memory": by_memory,
            "verified": False,
            "worst_case": worst_case.model_dump(mode="json") if worst_case else None,
        },
        text=(
            render(_table(predictions)),
            *(f"Note: {caveat}" for caveat in caveats),
            f"{room.sentence(size, by_memory, limited_by)}; predicted for {accelerator.title} and not"
            " run.",
        ),
    )


def _document(prediction: CudaMemory) -> dict[str, object]:
    return {
        "micro_batch_size": prediction.micro_batch_size,
        "peak_bytes": prediction.allocated_bytes,
        "reserved_bytes": prediction.reserved_bytes,
        "low_bytes": prediction.low_bytes,
        "high_bytes": prediction.high_bytes,
        "parts": {
            "tensors": prediction.requested_bytes - prediction.workspace_bytes,
            "workspaces": prediction.workspace_bytes,
        },
    }


def _table(predictions: Sequence[CudaMemory]) -> Table:
    """Allocated and reserved as torch.cuda reports them; of the device, with a CUDA context."""
    columns = ("micro-batch", "allocated", "reserved", "of the device, low", "high")
    rows = tuple(
        (
            f"{p.micro_batch_size:,}",
            *map(format_bytes, (p.allocated_bytes, p.reserved_bytes, p.low_bytes, p.high_bytes)),
        )
        for p in predictions
    )
    return Table(columns=columns, rows=rows)
