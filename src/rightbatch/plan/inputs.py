"""What measurements must be before anything is fitted to them: a file may have been edited by hand."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise

import numpy as np

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.facts import TaskFacts
from rightbatch.core.samples import GradientSample, Measurements

LONGEST_STEP_SECONDS = 86_400.0
# No step is ten times as quick at a larger micro-batch: one of the two sizes was written wrong.
IMPOSSIBLE_FALL = 10.0


def check_measurements(measurements: Measurements) -> None:
    """Refuse samples that no machine gives.

    Raises:
        InvalidInputError: a time, size, norm or trace is impossible; says which entry.
    """
    for where, found, need in _complaints(measurements):
        hint = f"correct {where} in measurements.json, or measure again with --refresh"
        raise InvalidInputError(f"{where} {found}", need=need, hint=hint)


def check_target(facts: TaskFacts, measurements: Measurements) -> None:
    """Refuse a target that is met before any training: no batch size reaches it sooner.

    Raises:
        InvalidInputError: the untrained model meets it.
    """
    target = facts.target
    if target is None:
        return
    for point in measurements.pilot:
        value = point.metrics.get(target.metric)
        if point.examples_seen == 0 and value is not None and target.is_reached(value):
            found = f"target {target}, and {target.metric} = {value:g} before any training"
            need = "a target that training has to reach"
            raise InvalidInputError(found, need=need, hint=f"--target {target.metric}=VALUE")


def until_target(facts: TaskFacts, measurements: Measurements) -> Measurements:
    """Leave out the gradients of the pilot beyond the point where it reached the target.

    The noise scale grows all along a run; what it is after the target does not count. The point that
    reached the target is kept, so that there is always one.
    """
    target = facts.target
    if target is None:
        return measurements
    reached = [
        point.examples_seen
        for point in measurements.pilot
        if target.metric in point.metrics and target.is_reached(point.metrics[target.metric])
    ]
    if not reached:
        return measurements
    kept = tuple(s for s in measurements.gradients if s.examples_seen <= min(reached))
    return measurements.replace(gradients=kept) if kept else measurements


def _complaints(measurements: Measurements) -> Iterator[tuple[str, str, str]]:
    """Place, what is there, and what would do, one for each impossible entry."""
    for i, timing in enumerate(measurements.step_timings):
        if timing.micro_batch_size < 1:
            yield f"step_timings[{i}]", f"has micro_batch_size {timing.micro_batch_size}", "1 or more"
        for seconds in timing.seconds:
            if not 0 < seconds <= LONGEST_STEP_SECONDS:
                yield (
                    f"step_timings[{i}]",
                    f"has a step of {seconds:g} s",
                    "seconds above 0, up to a day",
                )
    for name, times in (
        ("optimizer_seconds", measurements.optimizer_seconds),
        *((f"loader_timings[{i}]", t.seconds) for i, t in enumerate(measurements.loader_timings)),
    ):
        for seconds in times:
            if not 0 <= seconds <= LONGEST_STEP_SECONDS:
                yield name, f"has {seconds:g} s", "seconds from 0 up to a day"
    timed = sorted(
        (t for t in measurements.step_timings if t.seconds), key=lambda t: t.micro_batch_size
    )
    for a, b in pairwise(timed):
        before, after = float(np.median(a.seconds)), float(np.median(b.seconds))
        if before > IMPOSSIBLE_FALL * after:
            found = f"take {before:g} s at micro-batch {a.micro_batch_size} and {after:g} s"
            found += f" at {b.micro_batch_size}"
            yield "step_timings", found, f"a step that falls at most {IMPOSSIBLE_FALL:g} times"
    for i, trace in enumerate(measurements.memory):
        if min(accumulate(trace.delta_bytes), default=0) < 0:
            yield f"memory[{i}]", "frees more bytes than it holds", "live bytes of 0 or more"
    for i, sample in enumerate(measurements.gradients):
        yield from _gradient_complaints(f"gradients[{i}]", sample)


def _gradient_complaints(where: str, sample: GradientSample) -> Iterator[tuple[str, str, str]]:
    small, big = sample.small_batch_size, sample.big_batch_size
    if not 1 <= small < big:
        yield where, f"has batches of {small:g} and {big}", "a small batch of 1 or more, below the big"
    for norm in (sample.small_sq_norm, sample.big_sq_norm):
        if norm < 0:
            yield where, f"has a squared norm of {norm:g}", "0 or more"
