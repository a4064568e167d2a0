"""How long the planned run is, and how much of it warms up: both counted in examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rightbatch.core.facts import TaskFacts
from rightbatch.core.plan import Candidate, Decision
from rightbatch.core.recipe import examples_in, updates_of
from rightbatch.core.units import format_number, format_seconds
from rightbatch.plan.limits import Limits

# Goyal et al. (2017), Sec. 2.2: 5 of 90 epochs, from today's rate to the larger one.
WARMUP_FRACTION = 5 / 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """The run's length as fields of a plan."""

    total_examples: int
    num_updates: int
    decisions: tuple[Decision, ...]
    """Empty where today's epochs are simply kept."""
    changes: dict[str, Any]


def decide_length(
    candidate: Candidate, facts: TaskFacts, limits: Limits, *, batch_grows: bool = False
) -> Length:
    """As many examples as today, or as many updates as the time for training holds.

    Args:
        candidate: the planned batch, and the seconds of its update.
        facts: today's recipe and the data.
        limits: time for training.
        batch_grows: whether updates will be smaller than planned, so that steps do not tell examples.
    """
    recipe, count, batch = facts.recipe, facts.num_train_examples, candidate.global_batch_size
    changes: dict[str, Any]
    if limits.training_seconds is not None:
        steps = int(limits.training_seconds / candidate.update_seconds)
        total = examples_in(steps, batch, count)
        decision = Decision(
            name="steps",
            value=steps,
            evidence="derived",
            rule="time for training / predicted seconds of an update; evaluation not counted",
            source="measured",
            reason=f"{format_seconds(limits.training_seconds)} at"
            f" {format_seconds(candidate.update_seconds)} an update: {format_number(total)} examples,"
            f" {format_number(float(f'{total / count:.3g}'))} epochs",
        )
        changes = {"epochs": None, "steps": steps}
        decisions = [decision]
        if recipe.decay_at is not None:
            share = total / recipe.total_examples(recipe.batch_size, count)
            decays = sorted({max(1, round(share * at)) for at in recipe.decay_at})
            changes["decay_at"] = tuple(decays)
            decisions.append(_decays(decays, recipe.decay_at))
        return Length(
            total_examples=total, num_updates=steps, decisions=tuple(decisions), changes=changes
        )
    total = recipe.total_examples(recipe.batch_size, count)
    steps = updates_of(total, batch, count)
    if recipe.steps is None:
        return Length(total_examples=total, num_updates=steps, decisions=(), changes={})
    if batch_grows:
        decision = Decision(
            name="epochs",
            value=total / count,
            evidence="derived",
            rule="as many examples as today's, counted in epochs while the batch grows",
            source="recipe",
            reason=f"{format_number(total)} examples: {format_number(recipe.steps)} steps become"
            f" {format_number(total / count)} epochs",
        )
        changes = {"epochs": total / count, "steps": None}
        return Length(total_examples=total, num_updates=steps, decisions=(decision,), changes=changes)
    decision = Decision(
        name="steps",
        value=steps,
        evidence="derived",
        rule="fewest steps with as many examples as today's, an epoch's last one being shorter",
        source="recipe",
        reason=f"{format_number(total)} examples: {format_number(recipe.steps)} steps become"
        f" {format_number(steps)}",
    )
    return Length(
        total_examples=total, num_updates=steps, decisions=(decision,), changes={"steps": steps}
    )


def _decays(moved: Sequence[int], today: Sequence[int]) -> Decision:
    before, now = (", ".join(map(format_number, examples)) for examples in (today, moved))
    return Decision(
        name="decay_at",
        value=now,
        evidence="derived",
        rule="at the same shares of the run",
        source="recipe",
        reason=f"the rate falls after {now} examples, as after {before} of today's run",
    )


def decide_warmup(facts: TaskFacts, rate_ratio: float, batch: int, total: int) -> Decision:
    """Keep today's examples of warmup; add one where there was none and the rate rises."""
    recipe = facts.recipe
    answers = "Batches above 64 need a warmup: no threshold is known, a rate that rises is the reason"
    if recipe.warmup_examples or rate_ratio <= 1:
        value = min(recipe.warmup_examples, total)
        reason = f"today's {format_number(recipe.warmup_examples)} examples are kept"
        if value < recipe.warmup_examples:
            reason = f"the run ends before today's {format_number(recipe.warmup_examples)} examples"
        return Decision(
            name="warmup_examples",
            value=value,
            evidence="assumed",
            rule="kept, counted in examples",
            source="recipe",
            reason=reason
            if recipe.warmup_examples
            else "the rate does not rise, so no warmup is added",
            answers=answers,
        )
    value = min(total, max(batch, round(WARMUP_FRACTION * total)))
    return Decision(
        name="warmup_examples",
        value=value,
        evidence="assumed",
        rule="5/90 of the run, from today's rate to the planned one",
        source="goyal2017",
        reason=f"the rate rises to {format_number(rate_ratio)} x today's; the climb is spread over"
        f" {format_number(value)} of {format_number(total)} examples",
        answers=answers,
    )
