"""The learning rate as a function of examples seen; pure arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan

# Factor on the rate, by the fraction of the examples after warmup that is done.
_DECAY: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + cos(pi * done)) / 2,
    "linear": lambda done: 1 - done,
}


def rate_at(plan: Plan, examples_seen: float, total_examples: int) -> float:
    """Climb linearly from ``warmup_start`` times the rate to the rate, then follow the schedule.

    An update takes the rate in the middle of its window of examples. So neither the first update
    of a warmup nor the last of a decay is spent at rate 0, and on linear stretches the sum of
    rate x examples is the same for every batch size.

    >>> plan = Plan(task="", global_batch_size=100, micro_batch_size=100, epochs=1,
    ...             learning_rate=0.1, warmup_examples=200, schedule="linear")
    >>> [round(rate_at(plan, middle, total_examples=400), 6) for middle in (50, 150, 250, 350)]
    [0.025, 0.075, 0.075, 0.025]

    Args:
        plan: gives the rate, the schedule and the warmup.
        examples_seen: position in the run, 0 to ``total_examples``.
        total_examples: examples of the whole run; ``check_warmup`` has passed.
    """
    warmup = plan.warmup_examples
    if examples_seen < warmup:
        return plan.learning_rate * (
            plan.warmup_start + (1 - plan.warmup_start) * examples_seen / warmup
        )
    rest = total_examples - warmup
    return plan.learning_rate * _DECAY[plan.schedule]((examples_seen - warmup) / rest if rest else 0.0)


def check_warmup(plan: Plan, total_examples: int) -> None:
    """Refuse a warmup that the run ends before, rather than never reach the planned rate.

    Raises:
        InvalidInputError: the warmup is longer than the run.
    """
    if plan.warmup_examples > total_examples:
        found = f"warmup_examples = {plan.warmup_examples} in a run of {total_examples} examples"
        hint = "shorten warmup_examples, or raise epochs or steps"
        raise InvalidInputError(found, need="a warmup within the run", hint=hint)
