"""What measurements must be before anything is fitted to them: a file may have been edited by hand."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import accumulate, pairwise

from rightbatch.core.errors import InvalidInputError, did_you_mean
from rightbatch.core.facts import TaskFacts
from rightbatch.core.recipe import Target
from rightbatch.core.samples import (
    GradientSample,
    Measurements,
    MemoryTrace,
    ModeSamples,
    RateTuning,
)

LONGEST_STEP_SECONDS = 86_400.0
# No step is ten times as quick at a larger micro-batch: one of the two sizes was written wrong.
IMPOSSIBLE_FALL = 10.0
MOST_BYTES = 2**50
LARGEST_SQ_NORM = 1e100
# The mean of gradients is no longer than they are on average; parts of unequal size leave some room.
IMPOSSIBLE_RISE = 1.5

Complaint = tuple[str, str, str]


def check_measurements(measurements: Measurements) -> None:
    """Refuse samples that no machine gives.

    Raises:
        InvalidInputError: a time, size, norm or trace is impossible; says which entry.
    """
    for where, found, need in _complaints(measurements):
        hint = f"correct {where} in measurements.json, or measure again with --refresh"
        raise InvalidInputError(f"{where} {found}", need=need, hint=hint)


def check_target(facts: TaskFacts, measurements: Measurements) -> None:
    """Refuse a target that nothing evaluates, or that is met before any training.

    Raises:
        InvalidInputError: the task's metrics are others, or the untrained model meets it.
    """
    target = facts.target
    if target is None:
        return
    known = {name for point in measurements.pilot for name in point.metrics}
    if known and target.metric not in known:
        hint = did_you_mean(target.metric, known)
        raise InvalidInputError(f"target {target}", need="a metric of the task", hint=hint)
    for point in measurements.pilot:
        value = point.metrics.get(target.metric)
        if point.examples_seen == 0 and value is not None:
            refuse_if_met(target, value, hint=f"--target {target.metric}=VALUE")


def refuse_if_met(target: Target, untrained: float, *, hint: str) -> None:
    """Refuse a target that the untrained model's metric meets.

    Raises:
        InvalidInputError: it does.
    """
    if target.is_reached(untrained):
        found = f"target {target}, and {target.metric} = {untrained:g} before any training"
        raise InvalidInputError(found, need="a target that training has to reach", hint=hint)


def until_target(facts: TaskFacts, measurements: Measurements) -> Measurements:
    """Leave out the gradients of the pilot beyond the point where it reached the target.

    The noise scale grows all along a run; what it is after the target does not count. The point that
    reached the target is kept, so that there is always one.
    """
    reached = reached_after(facts.target, measurements)
    if reached is None:
        return measurements
    kept = tuple(s for s in measurements.gradients if s.examples_seen <= reached)
    return measurements.replace(gradients=kept) if kept else measurements


def reached_after(target: Target | None, measurements: Measurements) -> int | None:
    """Examples after which the pilot was seen to meet the target; None where it was not."""
    reached = [
        point.examples_seen
        for point in measurements.pilot
        if target and target.metric in point.metrics and target.is_reached(point.metrics[target.metric])
    ]
    return min(reached, default=None)


def _complaints(measurements: Measurements) -> Iterator[Complaint]:
    """Place, what is there, and what would do, one for each impossible entry."""
    yield from _task_complaints(measurements)
    yield from _time_complaints(measurements)
    yield from _trace_complaints("memory", measurements.memory)
    for i, mode in enumerate(measurements.modes):
        yield from _mode_complaints(f"modes[{i}]", mode)
    names = [(mode.device, mode.precision, mode.checkpointing) for mode in measurements.modes]
    yield from _twice("modes", names)
    for i, sample in enumerate(measurements.gradients):
        yield from _gradient_complaints(f"gradients[{i}]", sample)
    for name in ("rate_tunings", "rate_checks"):
        for i, tuning in enumerate(getattr(measurements, name)):
            yield from _tuning_complaints(f"{name}[{i}]", tuning)


def _task_complaints(measurements: Measurements) -> Iterator[Complaint]:
    facts, memory = measurements.task, measurements.environment.memory_bytes
    if memory < 1:
        yield "environment.memory_bytes", f"is {memory}", "1 or more"
    if facts.num_trainable_parameters < 1:
        found = f"is {facts.num_trainable_parameters}"
        yield "task.num_trainable_parameters", found, "1 or more"
    if facts.recipe.batch_size > facts.num_train_examples:
        found = f"is {facts.num_train_examples}, with a batch of {facts.recipe.batch_size}"
        yield "task.num_train_examples", found, "a batch no larger than the data"


def _time_complaints(measurements: Measurements) -> Iterator[Complaint]:
    steps, loading = measurements.step_timings, measurements.loader_timings
    for name, timings in (("step_timings", steps), ("loader_timings", loading)):
        for i, timing in enumerate(timings):
            if timing.micro_batch_size < 1:
                yield f"{name}[{i}]", f"has micro_batch_size {timing.micro_batch_size}", "1 or more"
    for i, timing in enumerate(steps):
        yield from _step_complaints(f"step_timings[{i}]", timing.seconds)
    yield from _twice("step_timings", [timing.micro_batch_size for timing in steps])
    for i, timing in enumerate(loading):
        if not timing.seconds or timing.num_workers < 0:
            found = f"has {len(timing.seconds)} times of {timing.num_workers} workers"
            yield f"loader_timings[{i}]", found, "a time, and 0 workers or more"
        yield from _step_complaints(f"loader_timings[{i}]", timing.seconds)
    yield from _twice("loader_timings", [timing.micro_batch_size for timing in loading])
    for seconds in measurements.optimizer_seconds:
        if not 0 <= seconds <= LONGEST_STEP_SECONDS:
            yield "optimizer_seconds", f"has {seconds:g} s", "seconds from 0 up to a day"
    timed = sorted((t for t in steps if t.seconds), key=lambda t: t.micro_batch_size)
    for a, b in pairwise(timed):
        # The quickest of each: others working on the machine can make a median ten times as long.
        before, after = min(a.seconds), min(b.seconds)
        if before > IMPOSSIBLE_FALL * after:
            found = f"take {before:g} s or more at micro-batch {a.micro_batch_size} and {after:g} s"
            found += f" at {b.micro_batch_size}"
            yield "step_timings", found, f"a step that falls at most {IMPOSSIBLE_FALL:g} times"


def _step_complaints(where: str, times: Sequence[float]) -> Iterator[Complaint]:
    for seconds in times:
        if not 0 < seconds <= LONGEST_STEP_SECONDS:
            yield where, f"has {seconds:g} s", "seconds above 0, up to a day"


def _twice(where: str, names: Sequence[Hashable]) -> Iterator[Complaint]:
    for i, name in enumerate(names):
        if name in names[:i]:
            yield f"{where}[{i}]", f"is the second of {name}", "each once"


def _trace_complaints(where: str, traces: Sequence[MemoryTrace]) -> Iterator[Complaint]:
    for i, trace in enumerate(traces):
        place = f"{where}[{i}]"
        if trace.micro_batch_size < 1:
            yield place, f"has micro_batch_size {trace.micro_batch_size}", "1 or more"
        columns = (
            (trace.operator, trace.operators),
            (trace.phase, trace.phases),
            (trace.owner, trace.owners),
        )
        if any(
            len(column) != len(trace.delta_bytes)
            or not 0 <= min(column, default=0) <= max(column, default=0) < max(1, len(names))
            for column, names in columns
        ):
            yield place, "has columns that do not belong together", "an operator, phase and owner each"
        live = [*accumulate(trace.delta_bytes)]
        if min(live, default=0) < 0:
            yield place, "frees more bytes than it holds", "live bytes of 0 or more"
        if max(live, default=0) > MOST_BYTES:
            yield place, f"holds {max(live):,} bytes", f"at most {MOST_BYTES:,}"


def _mode_complaints(where: str, mode: ModeSamples) -> Iterator[Complaint]:
    yield from _trace_complaints(f"{where}.memory", mode.memory)
    for i, timing in enumerate(mode.timings):
        place = f"{where}.timings[{i}]"
        if min(timing.micro_batch_size, timing.beside_micro_batch_size) < 1:
            yield place, f"has micro_batch_size {timing.micro_batch_size}", "1 or more"
        if len(timing.seconds) != len(timing.beside_seconds):
            found = f"has {len(timing.seconds)} steps beside {len(timing.beside_seconds)}"
            yield place, found, "as many of both"
        yield from _step_complaints(place, (*timing.seconds, *timing.beside_seconds))
    yield from _twice(f"{where}.timings", [timing.micro_batch_size for timing in mode.timings])
    sizes = [work.micro_batch_size for work in mode.works]
    if sizes != sorted({size for size in sizes if size > 0}):
        yield f"{where}.works", f"are of micro-batches {sizes}", "sizes of 1 or more that rise"
    if mode.device and not mode.refused and not (mode.memory and sizes and mode.optimizer_work):
        yield where, f"is of {mode.device} without traces", "memory, works and optimizer_work"


def _gradient_complaints(where: str, sample: GradientSample) -> Iterator[Complaint]:
    small, big = sample.small_batch_size, sample.big_batch_size
    if not 1 <= small < big:
        yield where, f"has batches of {small:g} and {big}", "a small batch of 1 or more, below the big"
    if sample.examples_seen < 0 or not 0 < sample.covered <= 1 or not sample.targets_per_example > 0:
        found = f"has examples_seen {sample.examples_seen}, covered {sample.covered:g} and"
        found += f" targets_per_example {sample.targets_per_example:g}"
        yield where, found, "0 or more, a share of at most 1, and above 0"
    if sample.population is not None and sample.population < big:
        yield where, f"draws {big} of {sample.population} examples", "no more than there are"
    for low, high in (
        (sample.big_sq_norm, sample.small_sq_norm),
        (sample.preconditioned_big_sq_norm, sample.preconditioned_small_sq_norm),
    ):
        for norm in (low, high):
            if norm is not None and not 0 <= norm <= LARGEST_SQ_NORM:
                yield where, f"has a squared norm of {norm:g}", f"from 0 to {LARGEST_SQ_NORM:g}"
        if low is not None and high is not None and low > IMPOSSIBLE_RISE * high:
            found = f"has a squared norm of {low:g} of the mean of gradients of {high:g}"
            yield where, found, "a mean no longer than what it is of"


def _tuning_complaints(where: str, tuning: RateTuning) -> Iterator[Complaint]:
    if tuning.rule_rate not in {trial.learning_rate for trial in tuning.trials}:
        yield where, f"has no trial of its rule_rate {tuning.rule_rate:g}", "one"
    if min(tuning.batch_size, tuning.window_examples) < 1:
        found = f"has batches of {tuning.batch_size} in windows of {tuning.window_examples}"
        yield where, found, "1 or more"
