"""Each number of a plan with its rule, its evidence and one sentence of reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rightbatch.core.facts import TaskFacts
from rightbatch.core.plan import Candidate, Decision, Objective
from rightbatch.core.samples import Measurements
from rightbatch.core.units import format_bytes, format_number, format_seconds
from rightbatch.fit.loader_model import LoaderModel
from rightbatch.fit.speed_model import SpeedModel
from rightbatch.fit.steps_model import StepsModel
from rightbatch.plan.limits import Limits
from rightbatch.plan.scaling import scale_learning_rate, scale_weight_decay

# Goyal et al. (2017), Sec. 2.2: 5 of 90 epochs, from today's rate to the larger one.
WARMUP_FRACTION = 5 / 90


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The candidate that the objective picked."""

    candidate: Candidate
    plateau: tuple[int, int]
    objective: Objective


def decide(
    chosen: Chosen,
    measurements: Measurements,
    speed: SpeedModel,
    loader: LoaderModel,
    steps: StepsModel,
    *,
    limits: Limits,
) -> tuple[tuple[Decision, ...], dict[str, Any]]:
    """Explain the batch and its split, move the constants that follow it, keep the rest.

    Returns:
        The decisions in reading order, and the fields of ``Plan`` that they set.
    """
    facts, candidate, recipe = measurements.task, chosen.candidate, measurements.task.recipe
    batch, ratio = candidate.global_batch_size, candidate.global_batch_size / recipe.batch_size
    rate = scale_learning_rate(recipe.lr, ratio, facts.optimizer_family)
    rate_value = float(rate.value or recipe.lr)
    warmup = _warmup(facts, rate_value / recipe.lr, batch)
    decisions = [
        _batch(chosen, facts, steps),
        *_split(candidate, measurements, speed, loader, limits),
        rate,
        warmup,
    ]
    changes: dict[str, Any] = {
        "global_batch_size": batch,
        "micro_batch_size": candidate.micro_batch_size,
        "accumulation_steps": candidate.accumulation_steps,
        "learning_rate": rate_value,
        "warmup_examples": warmup.value,
        "warmup_start": min(1.0, recipe.lr / rate_value) if not recipe.warmup_examples else 0.0,
    }
    if recipe.weight_decay:
        decay = scale_weight_decay(
            recipe.weight_decay, ratio, rate_value / recipe.lr, facts.optimizer_class
        )
        decisions.append(decay)
        changes["weight_decay"] = decay.value
    if recipe.steps is not None:
        length = _steps(facts, batch)
        decisions.append(length)
        changes["steps"] = length.value
    decisions += [_kept("precision", recipe.precision), _kept("checkpointing", False)]
    return tuple(decisions), changes


def _batch(chosen: Chosen, facts: TaskFacts, steps: StepsModel) -> Decision:
    low, high = chosen.plateau
    goal = "seconds" if chosen.objective == "time" else "seconds x examples"
    span = f"every batch from {low} to {high} is" if low != high else f"no other batch than {low} is"
    critical = (
        f"critical batch size {format_number(round(steps.critical_batch_size))}"
        f" ({format_number(round(steps.low))} to {format_number(round(steps.high))})"
    )
    kept = (
        ", so today's is kept" if chosen.candidate.global_batch_size == facts.recipe.batch_size else ""
    )
    return Decision(
        name="global_batch_size",
        value=chosen.candidate.global_batch_size,
        evidence="derived",
        rule=f"least expected regret in {goal} to the target, S = S_min (1 + B_crit/B)",
        source="mccandlish2018",
        reason=f"{critical} against measured step times: {span} within 5 % of the best{kept}",
        low=low,
        high=high,
    )


def _split(
    candidate: Candidate,
    measurements: Measurements,
    speed: SpeedModel,
    loader: LoaderModel,
    limits: Limits,
) -> list[Decision]:
    micro, count = candidate.micro_batch_size, candidate.accumulation_steps
    limit = limits.memory_limit_bytes or measurements.environment.memory_bytes
    load = loader.load_seconds(micro)
    micro_reason = (
        f"{format_seconds(speed.step_seconds(micro))} a step and {format_seconds(load)} to load it;"
        f" peak {format_bytes(candidate.peak_bytes)} of {format_bytes(limit)}"
    )
    if count == 1:
        steps_reason = "the whole batch fits one pass, and no split of it is quicker"
    else:
        passes = f"{count} passes of {micro}"
        steps_reason = f"{passes} are the quickest way to {candidate.global_batch_size} that fits"
    return [
        Decision(
            name="micro_batch_size",
            value=micro,
            evidence="measured",
            rule="quickest update among equal splits within the memory limit",
            source="measured",
            reason=micro_reason,
        ),
        Decision(
            name="accumulation_steps",
            value=count,
            evidence="measured",
            rule="global_batch_size / micro_batch_size",
            source="measured",
            reason=steps_reason,
        ),
        Decision(
            name="num_replicas",
            value=1,
            evidence="assumed",
            rule="one device",
            source="recipe",
            reason=f"measured on one device, {measurements.environment.device}",
        ),
    ]


def _warmup(facts: TaskFacts, rate_ratio: float, batch: int) -> Decision:
    recipe = facts.recipe
    total = recipe.total_examples(recipe.batch_size, facts.num_train_examples)
    if recipe.warmup_examples or rate_ratio <= 1:
        reason = f"today's {format_number(recipe.warmup_examples)} examples are kept"
        return Decision(
            name="warmup_examples",
            value=recipe.warmup_examples,
            evidence="assumed",
            rule="kept, counted in examples",
            source="recipe",
            reason=reason
            if recipe.warmup_examples
            else "the rate does not rise, so no warmup is added",
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
    )


def _steps(facts: TaskFacts, batch: int) -> Decision:
    recipe, count = facts.recipe, facts.num_train_examples
    examples = recipe.total_examples(recipe.batch_size, count)
    epochs, rest = divmod(examples, count)
    value = epochs * -(-count // batch) + -(-rest // batch)
    return Decision(
        name="steps",
        value=value,
        evidence="derived",
        rule="fewest steps with as many examples as today's, an epoch's last one being shorter",
        source="recipe",
        reason=f"{format_number(examples)} examples: {format_number(recipe.steps or 0)} steps become"
        f" {format_number(value)}",
    )


def _kept(name: str, value: Any) -> Decision:
    return Decision(
        name=name,
        value=value,
        evidence="assumed",
        rule="kept",
        source="recipe",
        reason="as in today's recipe",
    )
