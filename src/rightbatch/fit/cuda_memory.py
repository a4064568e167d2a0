"""Memory of a CUDA device that a traced training step would take, without the device.

The trace gives what tensors ask for. Here it passes through the caching allocator, together with the
workspaces that cuBLAS takes from it, and the CUDA context is added as a range. A trace at the size
in question is best; from aligned traces at two sizes (four where examples meet each other) the
stream at any other size follows event by event, as in ``memory_law``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, lcm, prod
from typing import NamedTuple

from rightbatch.core.errors import InfeasibleError, InvalidInputError, MeasurementError
from rightbatch.core.samples import MemoryTrace
from rightbatch.core.units import format_bytes
from rightbatch.fit.allocator_blocks import Block
from rightbatch.fit.caching_allocator import AllocatorOptions, CachingAllocator
from rightbatch.fit.memory_law import LARGEST_SIZE, MAX_DEGREE, signature

CONTEXT_BYTES = (300_000_000, 600_000_000)
"""What the driver takes for the CUDA context and the kernels loaded so far, least and most seen."""

# What runs on cuBLAS, whose workspace is allocated at the first call of a thread on a stream.
_PRODUCTS = ("mm", "addmm", "_addmm_activation", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot")
_CUBLAS = frozenset(f"aten.{name}" for name in _PRODUCTS)


class Change(NamedTuple):
    """A storage is born, grows, shrinks or dies."""

    storage: int
    delta_bytes: int
    stream: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a stream of changes made the allocator do."""

    requested_bytes: int
    """Highest sum of bytes asked for."""
    allocated_bytes: int
    """Highest sum of block bytes: ``torch.cuda.max_memory_allocated``."""
    reserved_bytes: int
    """Highest sum of segments: ``torch.cuda.max_memory_reserved``."""
    addresses: tuple[int, ...]
    """Of each allocation, in order."""
    num_retries: int
    """Times that the cache was emptied to make room."""
    failed_at: int | None
    """Index of the change that did not fit into the capacity; None where all did."""


def replay(changes: Iterable[Change], options: AllocatorOptions | None = None) -> Replay:
    """Run changes through an allocator that starts empty.

    >>> result = replay([Change(0, 3 * 2**20), Change(1, 100), Change(0, -3 * 2**20)])
    >>> result.requested_bytes, result.allocated_bytes, result.reserved_bytes // 2**20
    (3145828, 3146240, 22)
    """
    allocator = CachingAllocator(options)
    live: dict[int, Block] = {}
    addresses: list[int] = []
    failed_at = None
    for index, change in enumerate(changes):
        old = live.pop(change.storage, None)
        num_bytes = change.delta_bytes + (old.requested_bytes if old else 0)
        assert num_bytes >= 0, f"change {index} takes more from storage {change.storage} than it has"
        if num_bytes:  # one that grows is copied: both exist for a moment
            block = allocator.allocate(num_bytes, change.stream)
            if block is None:
                failed_at = index
                break
            live[change.storage] = block
            addresses.append(block.address)
        if old is not None:
            allocator.free(old)
    return Replay(
        requested_bytes=allocator.peak_requested_bytes,
        allocated_bytes=allocator.peak_allocated_bytes,
        reserved_bytes=allocator.peak_reserved_bytes,
        addresses=tuple(addresses),
        num_retries=allocator.num_retries,
        failed_at=failed_at,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaMemory:
    """What two training steps take of one CUDA device."""

    micro_batch_size: int
    requested_bytes: int
    """Highest sum of tensor bytes, workspaces included."""
    allocated_bytes: int
    """The same in blocks: what ``torch.cuda.max_memory_allocated`` would say."""
    reserved_bytes: int
    """What ``torch.cuda.max_memory_reserved`` would say."""
    workspace_bytes: int
    """Part of all three: workspaces of cuBLAS, one for forward and one for backward."""
    fits: bool
    """Whether the allocator's capacity sufficed; the peaks are those until it did not."""
    num_retries: int
    """Times that it sufficed only because the cache was emptied, which stops the device."""
    caveats: tuple[str, ...]
    """What is missing or was assumed, in words."""

    @property
    def low_bytes(self) -> int:
        """What the driver will have given away, with a small context."""
        return self.reserved_bytes + CONTEXT_BYTES[0]

    @property
    def high_bytes(self) -> int:
        """The same with a large context; what the caveats name comes on top."""
        return self.reserved_bytes + CONTEXT_BYTES[1]


def cublas_workspace_bytes(capability: tuple[int, int]) -> int:
    """Bytes of one cuBLAS workspace (``parseChosenWorkspaceSize`` in ATen/cuda/CublasHandlePool.cpp).

    Args:
        capability: compute capability; Hopper and Blackwell have the larger one.

    >>> cublas_workspace_bytes((8, 0)), cublas_workspace_bytes((9, 0))
    (8519680, 33554432)
    """
    return 32 << 20 if capability[0] in {9, 10, 12} else 2 * (4096 << 10) + 8 * (16 << 10)


def predict_cuda_memory(
    traces: Sequence[MemoryTrace],
    micro_batch_size: int,
    *,
    capability: tuple[int, int] = (8, 0),
    options: AllocatorOptions | None = None,
) -> CudaMemory:
    """Replay a step at one micro-batch size through the caching allocator.

    Args:
        traces: one at that size, or aligned ones at two or three others, from ``trace_cuda``.
        micro_batch_size: examples in each forward.
        capability: compute capability, as the traces were made for.
        options: of the allocator; None takes torch's defaults.

    Raises:
        InvalidInputError: the size is below 1.
        MeasurementError: the traces cannot give the stream at this size.
    """
    changes, workspace_bytes = changes_at(traces, micro_batch_size, capability)
    result = replay(changes, options)
    return CudaMemory(
        micro_batch_size=micro_batch_size,
        requested_bytes=result.requested_bytes,
        allocated_bytes=result.allocated_bytes,
        reserved_bytes=result.reserved_bytes,
        workspace_bytes=workspace_bytes,
        fits=result.failed_at is None,
        num_retries=result.num_retries,
        caveats=tuple(dict.fromkeys(text for trace in traces for text in trace.caveats)),
    )


def largest_micro_batch(
    traces: Sequence[MemoryTrace],
    memory_bytes: int,
    *,
    capability: tuple[int, int] = (8, 0),
    options: AllocatorOptions | None = None,
) -> CudaMemory:
    """Find the largest micro-batch size that fits a device, by bisection over replays.

    Segments make the memory a step takes not quite monotone in its batch: a few sizes above the
    answer may fit as well.

    Args:
        traces: aligned ones at two to four sizes.
        memory_bytes: of the device; the upper end of the context's range is taken off.
        capability: compute capability.
        options: of the allocator, its capacity aside.

    Raises:
        InfeasibleError: one example does not fit.
        MeasurementError: the traces do not align.
    """
    capacity = memory_bytes - CONTEXT_BYTES[1]
    limited = replace(options or AllocatorOptions(), capacity_bytes=capacity)

    def predict(size: int) -> CudaMemory:
        return predict_cuda_memory(traces, size, capability=capability, options=limited)

    best = predict(1)
    if not best.fits:
        least = predict_cuda_memory(traces, 1, capability=capability, options=options).high_bytes
        found = f"one example needs {least:,} bytes ({format_bytes(least)}) with the CUDA context"
        found += f" and does not fit into {memory_bytes:,}"
        need = f"{max(1, least - memory_bytes):,} bytes more"
        hint = (
            "raise the limit; bf16, checkpointing or an optimizer with less state, like sgd, need less"
        )
        if 2 * CONTEXT_BYTES[1] > least:
            hint = f"raise the limit: {format_bytes(CONTEXT_BYTES[1])} of it are the CUDA context's"
        raise InfeasibleError(found, need=need, hint=hint)
    fails = 2
    while fails <= LARGEST_SIZE and (grown := predict(fails)).fits:
        best, fails = grown, 2 * fails
    while fails - best.micro_batch_size > 1:
        middle = predict((best.micro_batch_size + fails) // 2)
        if middle.fits:
            best = middle
        else:
            fails = middle.micro_batch_size
    return best


def changes_at(
    traces: Sequence[MemoryTrace], micro_batch_size: int, capability: tuple[int, int]
) -> tuple[list[Change], int]:
    """What the allocator would see at one micro-batch size.

    Returns:
        The changes, workspaces of cuBLAS among them, and the bytes of all workspaces.

    Raises:
        InvalidInputError: the size is below 1.
        MeasurementError: the traces cannot give the stream at this size.
    """
    if micro_batch_size < 1:
        found = f"micro_batch_size {micro_batch_size}"
        raise InvalidInputError(found, need="at least 1", hint="ask for one example or more")
    trace, deltas = _stream_at(traces, micro_batch_size)
    workspace, waiting = cublas_workspace_bytes(capability), {"forward", "backward"}
    changes: list[Change] = []
    columns = zip(trace.storage, deltas, trace.operator, trace.phase, strict=True)
    for storage, delta, operator, phase in columns:
        changes.append(Change(storage, delta))
        if trace.phases[phase] in waiting and trace.operators[operator] in _CUBLAS and delta > 0:
            waiting.remove(trace.phases[phase])  # each has its thread, and so its handle
            changes.append(Change(-1 - len(waiting), workspace))
    return changes, workspace * (2 - len(waiting))


def _stream_at(traces: Sequence[MemoryTrace], size: int) -> tuple[MemoryTrace, Sequence[int]]:
    """The trace of a size, or the polynomial through each event of two to four other sizes.

    Raises:
        MeasurementError: as ``changes_at`` says.
    """
    if any(not trace.storage for trace in traces):
        hint = "trace with trace_cuda"
        raise MeasurementError("a trace that names no storages", need="one that does", hint=hint)
    by_size = dict(sorted((trace.micro_batch_size, trace) for trace in traces))
    if size in by_size:
        return by_size[size], by_size[size].delta_bytes
    sizes = [b for b in by_size if b > 1] or list(by_size)  # a lone example skips copies
    last = len(sizes) - 1
    places = dict.fromkeys(last * k // MAX_DEGREE for k in range(MAX_DEGREE + 1))
    anchors = [by_size[sizes[place]] for place in places]
    if len(anchors) < 2 or len({(signature(t), t.storage) for t in anchors}) > 1:
        found = f"traces at sizes {', '.join(map(str, by_size))} that do not align"
        hint = f"trace size {size} itself"
        raise MeasurementError(found, need="two that do, or one at the size", hint=hint)
    points = [trace.micro_batch_size for trace in anchors]
    weights = [
        prod((Fraction(size - c, b - c) for c in points if c != b), start=Fraction(1)) for b in points
    ]
    shared = lcm(*(weight.denominator for weight in weights))
    factors = [int(weight * shared) for weight in weights]
    rows = zip(*(trace.delta_bytes for trace in anchors), strict=True)
    sums = (sum(f * d for f, d in zip(factors, row, strict=True)) for row in rows)
    # Rounded away from zero, so that what dies is what was born.
    return anchors[0], [(1 if s > 0 else -1) * ceil(Fraction(abs(s), shared)) for s in sums]
