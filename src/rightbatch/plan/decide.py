"""Each number of a plan with its rule, its evidence and one sentence of reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rightbatch.core.facts import TaskFacts
from rightbatch.core.plan import Candidate, Decision, Evidence, Interval, Objective
from rightbatch.core.samples import Measurements
from rightbatch.core.units import format_bytes, format_number, format_seconds
from rightbatch.fit.loader_model import LoaderModel
from rightbatch.fit.speed_model import SpeedModel
from rightbatch.fit.steps_model import StepsModel
from rightbatch.plan.draws import Link
from rightbatch.plan.lengths import Length, decide_warmup
from rightbatch.plan.limits import Limits
from rightbatch.plan.scaling import (
    TORCH_BATCH_NORM_MOMENTUM,
    Move,
    move_constants,
    scale_batch_norm_momentum,
    with_defaults,
)
from rightbatch.plan.tuned import with_tuned_rate

_GOALS: dict[Objective, tuple[str, str]] = {
    "time": ("least expected regret in seconds to the target", "of the best"),
    "balanced": ("least expected regret in sqrt(seconds x examples) to the target", "of the best"),
    "compute": ("quickest among batches within 5 % of the fewest examples", "of the fewest examples"),
    "accuracy": ("smallest batch within the stated slowdown", "of the quickest"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The candidate that the objective picked, and what it was picked from."""

    candidate: Candidate
    plateau: tuple[int, int]
    tolerance: float
    objective: Objective
    speed: SpeedModel
    """Of the candidate's mode."""
    loader: LoaderModel
    steps: StepsModel
    link: Link
    limits: Limits
    modes: tuple[Decision, ...] = ()
    """Why this precision and recomputation; empty keeps the recipe's."""
    is_derived: bool = False
    """Whether step times were not measured."""
    today_passes: int = 1
    """In which today's batch is taken to run, for comparison."""


def decide(
    chosen: Chosen, length: Length, measurements: Measurements
) -> tuple[tuple[Decision, ...], dict[str, Any]]:
    """Explain the batch and its split, move the constants that follow it, keep the rest.

    Returns:
        The decisions in reading order, and the fields of ``Plan`` that they set.
    """
    facts, candidate, recipe = measurements.task, chosen.candidate, measurements.task.recipe
    batch = candidate.global_batch_size
    constants = with_defaults(recipe, facts.optimizer_class)
    by_rule = [*move_constants(constants, recipe.lr, move_to(batch, facts, chosen.steps))]
    moved = with_tuned_rate(by_rule, measurements.rate_tunings, batch)
    values = {decision.name: decision.value for decision in moved}
    rate = float(values["learning_rate"] or recipe.lr)
    warmup = decide_warmup(facts, rate / recipe.lr, batch, length.total_examples)
    decisions = [
        _batch(chosen, facts),
        *_split(chosen, measurements),
        *moved,
        warmup,
        *length.decisions,
        _kept("schedule", recipe.schedule),
        _kept("clip_norm", recipe.clip_norm),
        *(
            chosen.modes
            or (
                _kept("precision", candidate.precision),
                _kept("checkpointing", candidate.checkpointing),
            )
        ),
    ]
    if facts.num_batch_norm_layers:
        decisions.append(_batch_norm_momentum(candidate, facts))
    changes: dict[str, Any] = {
        "global_batch_size": batch,
        "micro_batch_size": candidate.micro_batch_size,
        "accumulation_steps": candidate.accumulation_steps,
        "num_replicas": candidate.num_replicas,
        "precision": candidate.precision,
        "checkpointing": candidate.checkpointing,
        "learning_rate": rate,
        "warmup_examples": warmup.value,
        "warmup_start": min(1.0, recipe.lr / rate) if not recipe.warmup_examples else 0.0,
        **length.changes,
    }
    for name in ("eps", "weight_decay", "ema_decay"):
        if name in values:
            changes[name] = values[name]
    if "beta1" in values:
        changes["betas"] = (values["beta1"], values["beta2"])
    return tuple(decisions), changes


def move_to(batch: int, facts: TaskFacts, steps: StepsModel | None) -> Move:
    """From today's batch to another; the critical batch size counts where it is decided."""
    today, critical = facts.recipe.batch_size, None
    if steps is not None and steps.decided:
        value, low, high = (size / today for size in (steps.critical_batch_size, steps.low, steps.high))
        critical = Interval(value=value, low=low, high=high)
    return Move(
        ratio=batch / today,
        family=facts.optimizer_family,
        optimizer_class=facts.optimizer_class,
        critical=critical,
    )


def _batch(chosen: Chosen, facts: TaskFacts) -> Decision:
    (low, high), steps = chosen.plateau, chosen.steps
    rule, best = _GOALS[chosen.objective]
    span = f"every batch from {low} to {high} is" if low != high else f"no other batch than {low} is"
    times = "derived" if chosen.is_derived else "measured"
    critical = (
        f"critical batch size {format_number(round(steps.critical_batch_size))}"
        f" ({format_number(round(steps.low))} to {format_number(round(steps.high))})"
    )
    is_today = chosen.candidate.global_batch_size == facts.recipe.batch_size
    kept = ", so today's is kept" if is_today else ""
    return Decision(
        name="global_batch_size",
        value=chosen.candidate.global_batch_size,
        evidence="derived",
        rule=f"{rule}, S = S_min (1 + B_crit/B)",
        source="mccandlish2018",
        reason=f"{critical} against {times} step times: {span} within"
        f" {100 * chosen.tolerance:.3g} % {best}{kept}",
        low=low,
        high=high,
        answers="The largest batch that fits is the best one: no, examples to the target grow with it",
    )


def _split(chosen: Chosen, measurements: Measurements) -> list[Decision]:
    candidate, limits = chosen.candidate, chosen.limits
    micro, count = candidate.micro_batch_size, candidate.accumulation_steps
    limit = limits.memory_limit_bytes or measurements.environment.memory_bytes
    load = chosen.loader.load_seconds(micro)
    evidence: Evidence = "derived" if chosen.is_derived else "measured"
    source = "williams2009" if chosen.is_derived else "measured"
    micro_reason = (
        f"{format_seconds(chosen.speed.step_seconds(micro))} a step and {format_seconds(load)} to load"
        f" it; peak {format_bytes(candidate.peak_bytes)} of {format_bytes(limit)}"
    )
    if count == 1:
        whole = "the whole batch" if candidate.num_replicas == 1 else "a replica's share of the batch"
        steps_reason = f"{whole} fits one pass, and no split of it is quicker"
    else:
        low, high = chosen.speed.valid_range
        steps_reason = (
            f"{count} passes of {micro} are the quickest way to {candidate.global_batch_size}"
        )
        steps_reason += f" that fits, of micro-batches from {low} to {high}"
    return [
        Decision(
            name="micro_batch_size",
            value=micro,
            evidence=evidence,
            rule="quickest update among equal splits within the memory limit",
            source=source,
            reason=micro_reason,
        ),
        Decision(
            name="accumulation_steps",
            value=count,
            evidence=evidence,
            rule="global_batch_size / (micro_batch_size x num_replicas)",
            source=source,
            reason=steps_reason,
            answers="Accumulated gradients are stale: no, the weights do not move in between",
        ),
        _replicas(chosen, measurements),
    ]


def _replicas(chosen: Chosen, measurements: Measurements) -> Decision:
    count, most, link = chosen.candidate.num_replicas, chosen.limits.num_replicas, chosen.link
    device = measurements.environment.device
    if most == 1:
        return Decision(
            name="num_replicas",
            value=1,
            evidence="assumed",
            rule="one device",
            source="recipe",
            reason=f"planned for one device, {device}",
        )
    sent = f"{format_bytes(link.num_bytes)} of gradients at {format_bytes(link.bytes_per_second)}/s"
    known = "as given" if link.given else "assumed: give --bandwidth"
    return Decision(
        name="num_replicas",
        value=count,
        evidence="derived" if link.given else "assumed",
        rule="quickest number of devices; a ring all-reduce moves 2 (R - 1) / R x gradients",
        source="patarasuk2009",
        reason=f"{count} of {most} devices like {device}; {sent}, {known}; none of it hidden behind"
        " the backward pass",
    )


def _batch_norm_momentum(candidate: Candidate, facts: TaskFacts) -> Decision:
    """Said and not set: the model holds its own, and running averages serve evaluation alone."""
    ratio = candidate.micro_batch_size / facts.recipe.batch_size
    moved = scale_batch_norm_momentum(TORCH_BATCH_NORM_MOMENTUM, ratio)
    return moved.replace(
        value=None,
        rule="kept as the model has it",
        reason=f"to remember as many examples, torch's default of {TORCH_BATCH_NORM_MOMENTUM} would"
        f" become {format_number(float(moved.value or 0))} at micro-batches of"
        f" {candidate.micro_batch_size}; set it in the model",
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
