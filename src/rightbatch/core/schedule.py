"""The learning rate as a function of examples seen: warmup, then constant, cosine or linear."""

from __future__ import annotations

import math

from rightbatch.core.errors import InvalidInputError
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
    along straight lines the sum of rate x examples is the same for every batch size.

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
    return learning_rate
