"""What is wanted of a plan beside its limits, and which wishes contradict each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import BatchScheduleKind, Objective
from rightbatch.plan.limits import DEFAULT_SLOWDOWN, Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user wants beside an objective and limits."""

    batch_schedule: BatchScheduleKind | None = None
    """None keeps one batch all along."""
    fine_tuning: bool = False
    """Whether training starts from weights that are worth keeping."""
    modes: bool = False
    """Choose precision and recomputation too, where their samples are in the measurements."""
    device: str | None = None
    """An accelerator of the catalogue, such as ``cuda:a100-40gb``, whose step was traced; None is the
    device of the measurements."""


NO_WISHES = Wishes()


def check_wishes(
    objective: Objective, limits: Limits, batch_schedule: BatchScheduleKind | None = None
) -> None:
    """Refuse wishes that cannot both be meant.

    Raises:
        InvalidInputError: they contradict each other.
    """
    if objective not in get_args(Objective):
        hint = f"use one of {', '.join(get_args(Objective))}"
        raise InvalidInputError(f"objective = {objective!r}", need="a known objective", hint=hint)
    if limits.slowdown != DEFAULT_SLOWDOWN and objective != "accuracy":
        found = f"slowdown = {limits.slowdown:g} with objective {objective!r}"
        hint = "--objective accuracy, or leave --slowdown out"
        raise InvalidInputError(found, need="the objective that weighs it", hint=hint)
    if limits.training_seconds is not None and objective != "time":
        found = f"a time for training with objective {objective!r}"
        hint = "--objective time, which gets furthest in a given time too, or leave --objective out"
        raise InvalidInputError(found, need="one thing to optimise", hint=hint)
    if limits.training_seconds is not None and batch_schedule is not None:
        found = f"a time for training and batch_schedule = {batch_schedule!r}"
        need = "one batch all along, whose updates the time is shared among"
        hint = "leave out --batch-schedule or --time-budget-train"
        raise InvalidInputError(found, need=need, hint=hint)
