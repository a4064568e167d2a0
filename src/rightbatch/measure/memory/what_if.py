"""What would change the memory of a training step, by how much, and what it would cost.

Each option is traced like today's step, at the same number of examples per optimizer step, so the
bytes are those of the whole step and not a rule's. Real steps are run where they are affordable;
otherwise, and for accelerators that are not here, fake tensors tell.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count, islice
from typing import Any, Literal

from torch.utils.flop_counter import FlopCounterMode

from rightbatch.core.devices import Accelerator
from rightbatch.core.errors import InfeasibleError, RightBatchError
from rightbatch.core.samples import MemoryTrace
from rightbatch.fit.cuda_memory import largest_micro_batch, predict_cuda_memory
from rightbatch.fit.memory_law import MAX_DEGREE
from rightbatch.fit.memory_model import fit_memory_model
from rightbatch.measure.memory import compat
from rightbatch.measure.memory.cuda_proxy import trace_cuda
from rightbatch.measure.memory.fake import StorageObserver, trace_subject
from rightbatch.measure.memory.kernels import trace_kernels
from rightbatch.measure.memory.ladder import degree_of, free_memory_bytes, peak_bytes, trace_lone
from rightbatch.measure.memory.options import AS_TODAY, StepOptions
from rightbatch.measure.memory.steps import (
    NUM_STEPS,
    build_subject,
    caller_untouched,
    finish_subject,
    read_batches,
    run_steps,
)
from rightbatch.measure.memory.variants import Variant, variants
from rightbatch.measure.memory.worst_case import find_worst_case, with_examples
from rightbatch.tasks.task import Task

Evidence = Literal["measured", "derived"]
_FREE_SHARE = 0.25  # of free memory: what real steps may take
_SCRATCH = 1.5  # times the fake peak: bound on a real one before any was run
_TRACE_SECONDS = 1.0  # of one real step's trace: beyond it fake tensors tell
_ROUNDS = (3, 9)  # fewest and most pairs of today's step and an option's, whose median ratio counts


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """One option: its memory at the same number of examples per step, and its price."""

    option: str
    peak_bytes: int | None
    """None where it cannot be traced; ``note`` says why."""
    saved_bytes: int | None
    """Of today's peak; negative where the option takes more."""
    max_micro_batch_size: int | None
    """Largest within the limit, by memory alone; 0 where one example does not fit."""
    seconds_ratio: float | None
    """Seconds of its step over those of today's; None where neither timed nor derived."""
    evidence: Evidence | None
    """Of the bytes: real steps were run, or fake ones traced."""
    seconds_evidence: Evidence | None
    """Of the ratio: steps were timed in turn with today's, or their operations counted."""
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """Where and how options are traced."""

    usable_bytes: int
    accelerator: Accelerator | None
    real: bool = False
    """Whether real steps are run; else fake ones are."""
    num_sizes: int = MAX_DEGREE + 2
    """Traced sizes: two give a line, four a parabola and five a cubic with one size to check it."""
    run_today: Callable[[], float] | None = None
    """Runs today's steps and returns their seconds; None where nothing is timed."""
    rounds: int = 0


def what_if(
    task: Task,
    micro_batch_size: int,
    *,
    usable_bytes: int,
    accelerator: Accelerator | None = None,
    base: StepOptions = AS_TODAY,
    seconds: float = 2.0,
) -> tuple[WhatIf, ...]:
    """Trace today's step and every option that applies to it.

    Args:
        task: built afresh for each.
        micro_batch_size: examples in each forward today, at least 1.
        usable_bytes: limit that the largest micro-batch has to keep.
        accelerator: one that need not be here; None is the CPU.
        base: what today's step does beside the recipe.
        seconds: what timing may take in all; 0 times nothing.

    Returns:
        Today's step first, then the options by bytes saved, then those that cannot be traced.

    Raises:
        RightBatchError: today's step itself cannot be traced.
    """
    with caller_untouched():
        task = with_examples(task, find_worst_case(task).indices)
    today = Variant(option="today", task=task, options=base, micro_batch_size=micro_batch_size)
    others = variants(today, accelerator)
    setting = _Setting(usable_bytes=usable_bytes, accelerator=accelerator)
    if accelerator is None and _is_affordable(today):
        run = _stepper(today)
        run()
        rounds = int(seconds / (2 * NUM_STEPS * run() * len(others)))
        timed = run if rounds >= _ROUNDS[0] else None
        setting = replace(setting, real=True, run_today=timed, rounds=min(rounds, _ROUNDS[1]))
    traces = _traces(today, setting)
    degree = degree_of([trace for trace in traces if trace.micro_batch_size > 1])
    setting = replace(setting, num_sizes=2 if degree == 1 else degree + 2)
    first = _row(today, traces, setting)
    rows = [first, *(_compare(variant, today, first, setting) for variant in others)]
    return tuple(
        sorted(
            rows, key=lambda row: (row is not first, row.saved_bytes is None, -(row.saved_bytes or 0))
        )
    )


def _is_affordable(today: Variant) -> bool:
    """Whether real steps, up to twice as large and two side by side, are small and short enough.

    Raises:
        RightBatchError: the step cannot be traced at all.
    """
    try:
        with caller_untouched():
            subject = build_subject(today.task, today.options)
            traced = trace_subject(today.task, subject, today.micro_batch_size, today.options)
        peak = peak_bytes(traced)
    except RightBatchError:
        raise
    except Exception:  # fake tensors cannot run it, so that real steps are all there is
        peak = 0
    if 2 * _SCRATCH * peak > _FREE_SHARE * free_memory_bytes():
        return False
    start, busy = time.perf_counter(), time.process_time()
    trace_kernels(today.task, max(2, today.micro_batch_size), options=today.options)
    # The smaller of both: other processes lengthen the first, own threads the second.
    took = min(time.perf_counter() - start, time.process_time() - busy)
    return took <= _TRACE_SECONDS


def _compare(variant: Variant, today: Variant, first: WhatIf, setting: _Setting) -> WhatIf:
    """One option beside today's step; a failure to trace it is an outcome."""
    try:
        row = _row(variant, _traces(variant, setting), setting)
        ratio, evidence = _seconds_ratio(variant, today, setting)
    except Exception as error:  # whatever the user's code raises on another type or size
        text = error.found if isinstance(error, RightBatchError) else f"{type(error).__name__}: {error}"
        return _untraced(variant, f"cannot be traced: {text.partition(chr(10))[0]}")
    assert first.peak_bytes is not None
    assert row.peak_bytes is not None
    saved = first.peak_bytes - row.peak_bytes
    return replace(row, saved_bytes=saved, seconds_ratio=ratio, seconds_evidence=evidence)


def _untraced(variant: Variant, note: str) -> WhatIf:
    return WhatIf(
        option=variant.option,
        peak_bytes=None,
        saved_bytes=None,
        max_micro_batch_size=None,
        seconds_ratio=None,
        evidence=None,
        seconds_evidence=None,
        note=note,
    )


def _traces(variant: Variant, setting: _Setting) -> list[MemoryTrace]:
    """Traces at the variant's size, far from it and beside it, and at 1 where that is its size."""
    trace, size = _tracer(variant, setting), max(2, variant.micro_batch_size)
    beside = (s for s in count(size + 1) if s != 2 * size)
    traces = [trace(s) for s in islice(chain((size, 2 * size), beside), setting.num_sizes)]
    lone = trace_lone(trace) if variant.micro_batch_size == 1 else ()
    return sorted([*traces, *lone], key=lambda trace: trace.micro_batch_size)


def _tracer(variant: Variant, setting: _Setting) -> Callable[[int], MemoryTrace]:
    """What traces a variant at a size; for fake tensors it is built once."""
    task, options = variant.task, variant.options
    if setting.accelerator is not None:
        return partial(trace_cuda, task, options=options, capability=setting.accelerator.capability)
    if setting.real:
        return partial(trace_kernels, task, options=options)
    with caller_untouched():
        subject = build_subject(task, options)

    def trace(size: int) -> MemoryTrace:
        with caller_untouched():
            return trace_subject(task, subject, size, options)

    return trace


def _row(variant: Variant, traces: Sequence[MemoryTrace], setting: _Setting) -> WhatIf:
    """Peak at the variant's size, and the largest size that fits."""
    size, usable = variant.micro_batch_size, setting.usable_bytes
    if (accelerator := setting.accelerator) is not None:
        capability = accelerator.capability
        peak = predict_cuda_memory(traces, size, capability=capability).allocated_bytes
        fits = _or_none(
            lambda: largest_micro_batch(traces, usable, capability=capability).micro_batch_size
        )
    else:
        model = fit_memory_model(traces)
        peak, fits = model.peak_bytes(size), _or_none(lambda: model.max_micro_batch(usable))
    return replace(
        _untraced(variant, variant.note),
        peak_bytes=peak,
        saved_bytes=0,
        max_micro_batch_size=fits,
        evidence="measured" if setting.real else "derived",
    )


def _or_none(largest: Callable[[], int]) -> int:
    """The largest size, 0 where not one example fits."""
    try:
        return largest()
    except InfeasibleError:
        return 0


def _seconds_ratio(
    variant: Variant, today: Variant, setting: _Setting
) -> tuple[float | None, Evidence | None]:
    """How much longer a step takes: timed, or for recomputation counted."""
    if variant.options.parallel is not None or variant.options.evaluation:
        return None, None  # no device to talk to; and evaluation is no part of a step
    if (run_today := setting.run_today) is not None:
        with caller_untouched():
            run = _stepper(variant)
            run()  # state is born, kernels are chosen
            return statistics.median(run() / run_today() for _ in range(setting.rounds)), "measured"
    if variant.options.checkpointing and not today.options.checkpointing:
        return _count_flops(variant) / max(_count_flops(today), 1), "derived"
    return None, None


def _stepper(variant: Variant) -> Callable[[], float]:
    """Build a variant for real; each call runs its steps and returns the seconds of one."""
    with caller_untouched():
        subject = build_subject(variant.task, variant.options)
        finish_subject(variant.task, subject, variant.options, mesh=None)
        batches = read_batches(variant.task, variant.micro_batch_size, variant.options)

    def run() -> float:
        start = time.perf_counter()
        with caller_untouched():
            _run(variant, subject, batches)
        return (time.perf_counter() - start) / NUM_STEPS

    return run


def _run(variant: Variant, subject: Any, batches: list[Any]) -> None:
    run_steps(
        variant.task,
        subject,
        batches,
        variant.micro_batch_size,
        enter=lambda phase: None,
        options=variant.options,
    )


def _count_flops(variant: Variant) -> int:
    """Floating-point operations of matrix products, convolutions and attention in two fake steps."""
    with caller_untouched():
        subject = build_subject(variant.task, variant.options)
        batches = read_batches(variant.task, variant.micro_batch_size, variant.options)
        mode = compat.fake_mode()
        with compat.foreach_accepts_fakes(), mode:
            (fake, fake_batches), _ = compat.copy_as_fakes((subject, batches), mode)
            with StorageObserver(), FlopCounterMode(display=False) as counter:
                _run(variant, fake, fake_batches)
    return counter.get_total_flops()
