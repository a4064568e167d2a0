"""Run two training steps for real and read the CPU allocator's own log of them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

from rightbatch.core.samples import MemoryTrace, Owner, Phase
from rightbatch.measure.memory import compat
from rightbatch.measure.memory.options import AS_TODAY, StepOptions
from rightbatch.measure.memory.parallel import process_group
from rightbatch.measure.memory.steps import (
    build_subject,
    caller_untouched,
    finish_subject,
    read_batches,
    run_steps,
)
from rightbatch.measure.memory.stream import Stream, order_deaths, to_trace
from rightbatch.tasks.task import Task

_PREFIX = "rightbatch/"
_END = "end"
_LONGEST_TURN = 32  # events of one turn of a kernel's loop
_Claims = dict[int, Owner]  # address of a living block to what it holds
_PHASES: dict[str, Phase] = {p: p for p in ("forward", "backward", "optimizer")}


def trace_kernels(task: Task, micro_batch_size: int, *, options: StepOptions = AS_TODAY) -> MemoryTrace:
    """Record what the CPU allocator hands out in two real steps, scratch inside kernels included.

    Operators are the profiler's; parameters, gradients, optimizer state, buffers and inputs are
    known by address, activations by being alive when forward ends, and the rest is temporary.
    What libraries take from ``malloc`` behind the allocator stays invisible.

    Args:
        task: built afresh; the caller's random states and default dtype are given back.
        micro_batch_size: examples in each forward.
        options: what the steps do beside today's recipe.
    """
    claims: list[_Claims] = []

    def two_steps(mark: compat.Mark) -> None:
        subject = build_subject(task, options, values=True)
        finish_subject(task, subject, options, mesh)
        batches = read_batches(task, micro_batch_size, options)

        def enter(phase: Phase) -> None:
            held = dict[int, Owner]()
            for owner, tensor in subject.holdings():
                held |= dict.fromkeys(_addresses(tensor), owner)
            if not claims:
                for tensor in tree_iter(batches):
                    if isinstance(tensor, Tensor):
                        held |= dict.fromkeys(_addresses(tensor), "inputs")
            claims.append(held)
            mark(phase)

        run_steps(task, subject, batches, micro_batch_size, enter, options)
        mark(_END)

    with caller_untouched(), process_group(options) as mesh:
        log = compat.record_allocator(two_steps, _PREFIX)
    stream = _read_log(_without_repeats(log), claims)
    return to_trace(
        order_deaths(stream.events),
        stream.owners,
        micro_batch_size=micro_batch_size,
        source="kernels",
    )


def _addresses(tensor: Tensor) -> list[int]:
    """Where the memory behind a tensor begins: one block, or those of a wrapper's parts."""
    if tensor.layout is not torch.strided:
        return []
    return [plain.untyped_storage().data_ptr() for plain in compat.plain_tensors(tensor)]


def _read_log(log: list[compat.AllocatorEvent], claims: list[_Claims]) -> Stream:
    """Follow addresses through the log; of the setup only what outlives it counts."""
    first, last = (
        next(i for i, e in enumerate(log) if e.kind == "mark" and e.name == name)
        for name in ("forward", _END)
    )
    stream, numbers = Stream(), dict[int, int]()
    for event in _survivors(log[:first]):
        numbers[event.address] = stream.born(event.delta_bytes, event.name)
    waiting = iter(claims)
    for event in log[first:last]:  # what follows is the release of model and optimizer
        if event.kind == "mark":
            if event.name == "backward":
                stream.claim_activations()
            for address, owner in next(waiting).items():
                if address in numbers:
                    stream.claim(numbers[address], owner)
            if stream.phase == "setup":
                stream.claim_rest("buffers")  # tensors that a module keeps beside its buffers
            stream.phase = _PHASES[event.name]
        elif event.delta_bytes > 0:
            numbers[event.address] = stream.born(event.delta_bytes, event.name)
        elif event.address in numbers:
            stream.died(numbers.pop(event.address))
    return stream


def _survivors(log: list[compat.AllocatorEvent]) -> list[compat.AllocatorEvent]:
    """Allocations that are not freed again."""
    alive = dict[int, compat.AllocatorEvent]()
    for event in log:
        if event.delta_bytes > 0:
            alive[event.address] = event
        else:
            alive.pop(event.address, None)
    return list(alive.values())


def _without_repeats(log: list[compat.AllocatorEvent]) -> list[compat.AllocatorEvent]:
    """Keep one turn of every loop inside a kernel.

    Some kernels take and give back the same scratch once per example, so that the number of events
    would grow with the batch. A turn that ends where it began adds nothing to any peak.
    """
    kept: list[compat.AllocatorEvent] = []
    keys: list[tuple[int, int]] = []  # of what is kept
    for event in log:
        kept.append(event)
        keys.append((event.call, event.delta_bytes))
        for length in range(2, min(_LONGEST_TURN, len(keys) // 2 if event.call else 0) + 1, 2):
            if (
                keys[-1] == keys[-1 - length]
                and keys[-length:] == keys[-2 * length : -length]
                and keys[-2 * length][0] == event.call
                and _is_closed(kept[-length:])
            ):
                del kept[-length:], keys[-length:]
                break
    return kept


def _is_closed(events: list[compat.AllocatorEvent]) -> bool:
    """Whether exactly what these events allocate is freed by them."""
    alive = set[int]()
    for event in events:
        if event.delta_bytes > 0:
            alive.add(event.address)
        elif event.address not in alive:
            return False
        else:
            alive.remove(event.address)
    return not alive
