"""Which micro-batch sizes to trace: few, small, and more only where they disagree.

The law begins at 2: on a lone example operators skip copies and kernels take other ways. So 1 is
traced for its own sake, for real, where the step runs at 1.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.errors import InvalidTaskError, MeasurementError, RightBatchError
from rightbatch.core.samples import MemoryTrace
from rightbatch.fit.memory_law import MAX_DEGREE
from rightbatch.measure.memory.fake import trace_subject
from rightbatch.measure.memory.kernels import trace_kernels
from rightbatch.measure.memory.options import AS_TODAY, StepOptions
from rightbatch.measure.memory.steps import build_subject, caller_untouched
from rightbatch.measure.memory.worst_case import find_worst_case, with_examples
from rightbatch.tasks.build import has_values
from rightbatch.tasks.task import Task
from rightbatch.tasks.where import at, raised, raised_at

# Two sizes give a line and a far one checks it: beside reading its examples, a fake trace costs the
# same at any size. Where the check fails, a fourth checks the parabola, and then a fifth the cubic.
FAKE_SIZES = (2, 3, 64, 4, 5)
# Real steps start small. Each rung checks the law of the one below, and replaces it where that
# fails, because kernels choose other algorithms for larger batches.
KERNEL_RUNGS = (2, 16, 64, 256)
_BETWEEN = (5, 9)  # where 2 and 16 take other kernels, which of both the sizes between take
_AGREEMENT = 1e-3  # of the peak: what a law may miss and still be confirmed
_FREE_SHARE = 0.25  # of free memory: what a real step may take by the prediction for its size
_SCRATCH = 1.5  # times the fake peak: bound on a real one before any was run


def measure_memory(
    task: Task,
    *,
    max_micro_batch_size: int | None = None,
    options: StepOptions = AS_TODAY,
    seconds: float = 8.0,
    memory_bytes: float | None = None,
) -> tuple[MemoryTrace, ...]:
    """Every trace of ``iterate_memory_traces``."""
    return tuple(
        iterate_memory_traces(
            task,
            max_micro_batch_size=max_micro_batch_size,
            options=options,
            seconds=seconds,
            memory_bytes=memory_bytes,
        )
    )


def iterate_memory_traces(
    task: Task,
    *,
    max_micro_batch_size: int | None = None,
    options: StepOptions = AS_TODAY,
    seconds: float = 8.0,
    memory_bytes: float | None = None,
) -> Iterator[MemoryTrace]:
    """Trace the sizes from which the memory of any other follows, cheapest first.

    Where examples differ in size, every traced batch is made of the costliest.

    Args:
        task: built afresh for every real step.
        max_micro_batch_size: no real step is larger, beyond the first few; None is the data's length.
        options: what the steps do beside today's recipe.
        seconds: what real steps may take in all, beyond the first group.
        memory_bytes: what a real step may hold; None takes a quarter of what is free.

    A model built under ``torch.device("meta")`` has no values: its steps are traced and not run.

    Raises:
        InvalidTaskError: the task does not build, or its batches are the same at every size.
        MeasurementError: its step fails for real.
    """
    affordable_bytes = _FREE_SHARE * free_memory_bytes() if memory_bytes is None else memory_bytes
    largest = task.num_train_examples if max_micro_batch_size is None else max_micro_batch_size
    fakes: list[MemoryTrace] = []
    caveats: tuple[str, ...] = ()
    with caller_untouched():
        worst_case = find_worst_case(task)
        task = with_examples(task, worst_case.indices)
        subject = build_subject(task, options)
    for size in FAKE_SIZES:
        if len(fakes) == degree_of(fakes) + 2:
            break
        if (
            size > KERNEL_RUNGS[1]
            and _input_bytes(fakes[-1]) / fakes[-1].micro_batch_size * size > affordable_bytes
        ):
            continue
        try:
            with caller_untouched():
                traced = trace_subject(task, subject, size, options)
        except Exception as error:  # whether the user's code is at fault, the real step tells
            line = str(error).partition("\n")[0]
            place = at(raised_at(error))
            caveats = (f"no trace under fake tensors{place}: {type(error).__name__}: {line}",)
            break
        fakes.append(traced.replace(worst_case=worst_case))
        yield fakes[-1]
    runnable = has_values(subject.model)
    del subject
    check_growth(fakes)
    if not runnable and len(fakes) >= 2:
        return

    def trace(size: int) -> MemoryTrace:
        try:
            traced = trace_kernels(task, size, options=options)
        except RightBatchError:
            raise
        except Exception as error:
            need, hint = "a step that runs", "run one step of the recipe in Python"
            doing = f"a real step of {size} examples"
            raise MeasurementError(*raised(doing, error, need, hint)) from error
        return traced.replace(caveats=(*traced.caveats, *caveats), worst_case=worst_case)

    if fakes and _SCRATCH * peak_bytes(fakes[0]) > affordable_bytes:
        return
    group = degree_of(fakes) + 1
    rungs = sorted({*(r for r in KERNEL_RUNGS if r <= largest), max(2, min(largest, KERNEL_RUNGS[1]))})
    small = dict[int, MemoryTrace]()
    for traced in _climb(trace, rungs, group, seconds, affordable_bytes):
        small[traced.micro_batch_size] = traced
        yield traced
    check_growth(list(small.values()))
    if KERNEL_RUNGS[1] in small and not _aligned([small[size] for size in KERNEL_RUNGS[:2]]):
        yield from (trace(size) for size in _BETWEEN)
    if len(worst_case.indices) < 2:  # else no single example is the costliest
        yield from trace_lone(trace)


def trace_lone(trace: Callable[[int], MemoryTrace]) -> tuple[MemoryTrace, ...]:
    """The trace of 1, or nothing where that cannot run: BatchNorm refuses a lone value."""
    try:
        return (trace(1),)
    except Exception:  # the user's code may raise anything where larger sizes ran
        return ()


def _climb(
    trace: Callable[[int], MemoryTrace],
    rungs: Sequence[int],
    group: int,
    seconds: float,
    affordable_bytes: float,
) -> Iterator[MemoryTrace]:
    """Trace ``group`` sizes at each rung until the first of a rung confirms those of the last.

    Time ends it between rungs alone: a single size of a rung tells no law.
    """
    traces: list[MemoryTrace] = []
    spent = 0.0
    for rung in rungs:
        for size in range(rung, rung + group):
            start, busy = time.perf_counter(), time.process_time()
            traces.append(trace(size))
            # The smaller of both: other processes lengthen the first, own threads the second.
            took = min(time.perf_counter() - start, time.process_time() - busy)
            yield traces[-1]
            if size == rung and follows(traces[-1 - group : -1], traces[-1]):
                return
            spent += took if size > group + 1 else 0.0
            following = (
                size + 1 if size < rung + group - 1 else next((r for r in rungs if r > size), None)
            )
            if following is None:
                return
            if len(traces) >= group:
                expected = peak_bytes(traces[-1]) * max(1.0, following / size)
                late = following in rungs and spent + took * following / size > seconds
                if late or expected > affordable_bytes:
                    return


def check_growth(traces: Sequence[MemoryTrace]) -> None:
    """Refuse batches that are the same at every size: no law in the batch size can follow from them.

    Args:
        traces: of one source, in any order.

    Raises:
        InvalidTaskError: the smallest and the largest are made of the same batch.
    """
    by_size = sorted(traces, key=lambda trace: trace.micro_batch_size)
    if not by_size or (few := by_size[0]).micro_batch_size == (many := by_size[-1]).micro_batch_size:
        return
    batch_bytes = _input_bytes(many)
    if (batch_bytes and _input_bytes(few) == batch_bytes) or few.delta_bytes == many.delta_bytes:
        sizes = f"{few.micro_batch_size} and of {many.micro_batch_size} examples"
        found = f"batches of {sizes} are the same {batch_bytes:,} bytes"
        need = "a collate that joins all the examples it is given"
        hint = (
            "see that collate uses its whole list; where it packs a fixed length, let the dataset pack"
        )
        raise InvalidTaskError(found, need=need, hint=hint)


def follows(known: Sequence[MemoryTrace], new: MemoryTrace) -> bool:
    """Whether a trace is what the polynomial through ``known``, event by event, predicts."""
    if len(known) < 2 or not _aligned([*known, new]):
        return False
    actual = peak_bytes(new)
    return abs(float(_predicted(known, new).max()) - actual) <= _AGREEMENT * actual


def degree_of(traces: Sequence[MemoryTrace]) -> int:
    """Power of the batch size that sizes of traces grow with, to the byte; unknown counts as 2."""
    if not traces or not _aligned(traces):
        return 2
    for degree in range(1, min(MAX_DEGREE, len(traces) - 2) + 1):
        known, others = traces[: degree + 1], traces[degree + 1 :]
        errors = [np.abs(_predicted(known, t) - np.cumsum(t.delta_bytes)).max() for t in others]
        if max(errors) < 1:
            return degree
    return 3 if len(traces) == 4 else 2  # a parabola met three of them and no more


def _predicted(known: Sequence[MemoryTrace], new: MemoryTrace) -> NDArray[np.float64]:
    """Live bytes after each event of a trace by the polynomial through others."""
    sizes, size = [t.micro_batch_size for t in known], new.micro_batch_size
    shares = [prod((size - c) / (b - c) for c in sizes if c != b) for b in sizes]
    return np.cumsum(np.array(shares) @ np.array([t.delta_bytes for t in known], dtype=np.float64))


def peak_bytes(trace: MemoryTrace) -> int:
    """Highest running sum of a trace."""
    return int(np.cumsum(np.array(trace.delta_bytes, dtype=np.int64)).max())


def free_memory_bytes() -> int:
    """Memory that may be taken without swapping, within a container's limit.

    Linux says so itself; elsewhere half of the physical memory is taken to be free.

    Raises:
        MeasurementError: the system does not say.
    """
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if not meminfo.is_file():
        if not hasattr(os, "sysconf"):
            hint = "give memory_bytes, what real steps may hold"
            raise MeasurementError(f"no memory size on {sys.platform}", need="one", hint=hint)
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    lines = (line.split() for line in meminfo.read_text().splitlines())
    free = next(int(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        used = int((limit.parent / "memory.current").read_text())
        free = min(free, max(0, int(text) - used))
    return free


def _aligned(traces: Sequence[MemoryTrace]) -> bool:
    """Whether all list the same births and deaths in the same order."""
    first = traces[0]
    same = all(
        (t.operators, t.operator, t.phase) == (first.operators, first.operator, first.phase)
        for t in traces
    )
    return same and all(len(t.delta_bytes) == len(first.delta_bytes) for t in traces)


def _input_bytes(trace: MemoryTrace) -> int:
    """Bytes of the batch."""
    owner = trace.owners.index("inputs")
    return sum(d for d, o in zip(trace.delta_bytes, trace.owner, strict=True) if o == owner and d > 0)
