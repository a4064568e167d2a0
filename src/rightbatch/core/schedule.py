"""Learning rate and batch size as functions of examples seen."""

from __future__ import annotations

import math

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import BatchSchedule
from rightbatch.core.recipe import Constants


def rate_at(
    constants: Constants,
    learning_rate: float,
    examples: float,
    total_examples: int,
    *,
    warmup_start: float = 0.0,
) -> float:
    """Learning rate at a point of the run, counted in examples.

    So the same schedule serves every batch size. An update takes the rate in the middle of its own
    examples: neither the first update of a warmup nor the last of a decay is spent at rate 0, and
    along straight lines the sum of rate x examples is the same for every batch size. ``plateau``
    depends on evaluations, not on examples: here it is constant, and the training loop lowers it.

    Args:
        constants: give schedule and warmup.
        learning_rate: the peak.
        examples: from the start of the run.
        total_examples: of the whole run.
        warmup_start: fraction of the peak at which warmup begins.

    Raises:
        InvalidInputError: the warmup is longer than the run.

    >>> from rightbatch.core.recipe import Recipe
    >>> recipe = Recipe(lr=1.0, batch_size=10, epochs=1, schedule="cosine", warmup_examples=20)
    >>> [round(rate_at(recipe, 1.0, n, 100), 3) for n in (10, 20, 60, 100)]
    [0.5, 1.0, 0.5, 0.0]
    """
    warmup = constants.warmup_examples
    if warmup > total_examples:
        found = f"warmup_examples = {warmup} in a run of {total_examples} examples"
        raise InvalidInputError(
            found, need="a warmup shorter than the run", hint="shorten it or train longer"
        )
    if examples < warmup:
        return learning_rate * (warmup_start + (1 - warmup_start) * examples / warmup)
    progress = (examples - warmup) / max(1, total_examples - warmup)
    if constants.schedule == "cosine":
        return learning_rate * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    if constants.schedule == "linear":
        return learning_rate * (1 - min(progress, 1.0))
    if constants.decay_at is not None and constants.decay_factor is not None:
        return learning_rate * constants.decay_factor ** sum(
            at <= examples for at in constants.decay_at
        )
    return learning_rate


def batch_size_at(schedule: BatchSchedule | None, global_batch_size: int, examples: int) -> int:
    """Global batch of the update that begins after so many examples.

    A noise-driven schedule cannot be read ahead: it gives the batch that it begins with.

    >>> grows = BatchSchedule(kind="milestones", milestones=((0, 16), (1000, 64)), rate_power=0.5)
    >>> [batch_size_at(grows, 64, n) for n in (0, 999, 1000)], batch_size_at(None, 64, 0)
    ([16, 16, 64], 64)
    """
    if schedule is None:
        return global_batch_size
    return max(size for start, size in schedule.milestones if start <= examples)


def batch_rate_factor(schedule: BatchSchedule | None, global_batch_size: int, batch: int) -> float:
    """What the plan's learning rate is multiplied by while the global batch is another than its own.

    >>> grows = BatchSchedule(kind="milestones", milestones=((0, 16), (1000, 64)), rate_power=0.5)
    >>> batch_rate_factor(grows, 64, 16), batch_rate_factor(grows, 64, 64)
    (0.5, 1.0)
    """
    return 1.0 if schedule is None else (batch / global_batch_size) ** schedule.rate_power
