"""``rightbatch memory --device cuda:a100-40gb``: memory on an accelerator that is not here."""

from __future__ import annotations

from collections.abc import Sequence

from rightbatch.cli.output import Answer
from rightbatch.core.devices import Accelerator, parse_accelerator
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.samples import MemoryTrace
from rightbatch.core.units import format_bytes
from rightbatch.fit.cuda_memory import CudaMemory, largest_micro_batch, predict_cuda_memory
from rightbatch.report.tables import Table
from rightbatch.report.terminal import render
from rightbatch.tasks.task import Task

# Two sizes give every allocation's line; the third shows, and then gives, a curve.
_SIZES = (2, 3, 5)


def names_accelerator(device: str) -> bool:
    """Whether a device is one of the catalogue, and not one of this machine such as ``cuda:1``."""
    return device.startswith("cuda:") and not device.removeprefix("cuda:").isdigit()


def accelerator_memory(
    task: Task, device: str, sizes: Sequence[int], *, limit_bytes: int | None, headroom: float
) -> Answer:
    """Predict what a training step takes of a catalogued accelerator, and the largest that fits.

    Raises:
        InvalidInputError: no such accelerator, one that is not simulated, or no share of headroom.
        InfeasibleError: one example does not fit.
    """
    accelerator = parse_accelerator(device)
    if not accelerator.simulated:
        found, hint = (
            f"device {device}",
            "choose one whose allocator is simulated, such as cuda:h100-80gb",
        )
        raise InvalidInputError(found, need="an accelerator whose allocator is simulated", hint=hint)
    if not 0 <= headroom < 1:
        found = f"--headroom {headroom}"
        raise InvalidInputError(found, need="a share of at least 0 and below 1", hint="--headroom 0.1")
    traces = _trace(task, accelerator)
    limit = limit_bytes or accelerator.memory_bytes
    usable = int(limit * (1 - headroom))
    capability = accelerator.capability
    predictions = [predict_cuda_memory(traces, size, capability=capability) for size in sizes]
    largest = largest_micro_batch(traces, usable, capability=capability)
    return Answer(
        document={
            "task": task.name,
            "device": accelerator.name,
            "predictions": [_document(prediction) for prediction in predictions],
            "limit_bytes": limit,
            "max_micro_batch_size": largest.micro_batch_size,
            "verified": False,
        },
        text=(
            render(_table(predictions)),
            *(f"Note: {caveat}" for caveat in largest.caveats),
            f"The largest micro-batch that fits {accelerator.title}'s {format_bytes(limit)} with"
            f" {headroom:.0%} of it left free is {largest.micro_batch_size:,}, predicted and not run.",
        ),
    )


def _trace(task: Task, accelerator: Accelerator) -> list[MemoryTrace]:
    """Trace the step at a few sizes as the accelerator would run it.

    Raises:
        InvalidInputError: the step cannot run on fake tensors.
    """
    from rightbatch.measure.memory import trace_cuda

    try:
        return [trace_cuda(task, size, capability=accelerator.capability) for size in _SIZES]
    except RuntimeError as error:
        found = f"no trace for {accelerator.name}: {str(error).splitlines()[0]}"
        hint = "keep the loss in torch, without .numpy(); or measure here: --device cpu"
        raise InvalidInputError(found, need="a step that runs on fake tensors", hint=hint) from error


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
