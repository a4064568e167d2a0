"""What may help where a large batch does worse: each remedy as a plan, or why it cannot be tried.

Every remedy changes one thing of the candidate. Values come from cited practice where there is any;
none is promised to help, which is what their runs are for.
"""

from __future__ import annotations

import math

from rightbatch.core.comparison import Matching, Remedy, RemedyName
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.facts import TaskFacts
from rightbatch.core.plan import Plan
from rightbatch.core.units import format_number
from rightbatch.plan.scaling import scale_weight_decay, with_defaults
from rightbatch.tasks.task import Task
from rightbatch.train.check import check_plan, check_run
from rightbatch.train.sampler import Windows
from rightbatch.validate.sides import as_recipe, at_batch, count_updates, with_updates
from rightbatch.validate.smoothing import why_not_smoothed

SMOOTHING = 0.1
_SOURCES: dict[RemedyName, str] = {
    "weight decay": "wang2024",
    "label smoothing": "szegedy2016",
    "ghost batch norm": "hoffer2017",
    "smaller batch": "shallue2019",
    "longer training": "hoffer2017",
}


def list_remedies(
    task: Task,
    facts: TaskFacts,
    candidate: Plan,
    reference: Plan,
    *,
    matched_by: Matching,
    device: str,
) -> tuple[Remedy, ...]:
    """Every remedy for the candidate, the one that costs most examples last.

    Args:
        task: whose loss is looked at.
        facts: of the task.
        candidate: at its matched length and rate.
        reference: it is held against.
        matched_by: what both sides had the same of.
        device: where the loss is called.
    """
    listed = (
        _weight_decay(facts, candidate, reference),
        _label_smoothing(task, candidate, device),
        _ghost_batch_norm(facts, candidate, reference),
        _smaller_batch(facts, candidate, reference, matched_by),
        _longer_training(facts, candidate, reference),
    )
    return tuple(_if_it_runs(task, remedy, device) for remedy in listed)


def _if_it_runs(task: Task, remedy: Remedy, device: str) -> Remedy:
    """The remedy, or why a run of it would be refused, such as for a lone example in BatchNorm."""
    if remedy.plan is None:
        return remedy
    try:
        windows = Windows.of(remedy.plan, task.num_train_examples, seed=0)
        check_run(task, check_plan(task, remedy.plan), windows, device)
    except InvalidInputError as refusal:
        return remedy.replace(change=refusal.found, plan=None)
    return remedy


def _remedy(name: RemedyName, change: str, plan: Plan | None, label_smoothing: float = 0.0) -> Remedy:
    return Remedy(
        name=name,
        change=change,
        source=_SOURCES[name],
        plan=plan,
        label_smoothing=label_smoothing,
    )


def _weight_decay(facts: TaskFacts, candidate: Plan, reference: Plan) -> Remedy:
    """The reference's time constant in epochs or, where the candidate keeps it already, half of it."""
    name: RemedyName = "weight decay"
    if why := _other_optimizer(facts, candidate, reference):
        return _remedy(name, why, None)
    kind = facts.optimizer_class
    ours = with_defaults(as_recipe(candidate), kind).weight_decay
    theirs = with_defaults(as_recipe(reference), kind).weight_decay
    if not theirs or not ours:
        return _remedy(name, "a side has no weight decay that could be moved", None)
    decision = scale_weight_decay(
        theirs,
        candidate.global_batch_size / reference.global_batch_size,
        candidate.learning_rate / reference.learning_rate,
        kind,
    )
    if decision.rule == "kept":
        return _remedy(name, decision.reason, None)
    value = float(decision.value or 0)
    what = "with which weights decay over as many epochs as the reference's"
    if math.isclose(value, ours, rel_tol=1e-3):
        value, what = (
            2 * ours,
            "twice as much: weights decay over as many epochs as the reference's now",
        )
    change = f"weight decay {format_number(value)} in place of {format_number(ours)}, {what}"
    return _remedy(name, change, candidate.replace(weight_decay=value))


def _label_smoothing(task: Task, candidate: Plan, device: str) -> Remedy:
    why = why_not_smoothed(task, SMOOTHING, device)
    if why is not None:
        return _remedy("label smoothing", why, None)
    change = f"label_smoothing = {SMOOTHING:g} in the loss's call of cross_entropy while training"
    return _remedy("label smoothing", change, candidate, SMOOTHING)


def _ghost_batch_norm(facts: TaskFacts, candidate: Plan, reference: Plan) -> Remedy:
    """Statistics over as many examples as in the reference."""
    name: RemedyName = "ghost batch norm"
    size, over = reference.ghost_batch_size or reference.micro_batch_size, candidate.micro_batch_size
    if not facts.num_batch_norm_layers:
        return _remedy(name, "the model has no BatchNorm in training", None)
    if candidate.batch_norm is not None:
        return _remedy(name, f"the candidate has {candidate.batch_norm} batch norm already", None)
    if size < 2 or over <= size:
        why = f"BatchNorm sees {over} examples at a time, and {size} in the reference"
        return _remedy(name, why, None)
    plan = candidate.replace(batch_norm="ghost", ghost_batch_size=size)
    return _remedy(name, f"BatchNorm over {size} examples in place of {over}", plan)


def _smaller_batch(facts: TaskFacts, candidate: Plan, reference: Plan, matched_by: Matching) -> Remedy:
    """Half-way to the reference in doublings, everything moved by rule."""
    name: RemedyName = "smaller batch"
    large, small = candidate.global_batch_size, reference.global_batch_size
    if why := _other_optimizer(facts, candidate, reference):
        return _remedy(name, why, None)
    if candidate.batch_schedule is not None:
        return _remedy(name, "the candidate's batch follows a schedule", None)
    if matched_by == "time":
        return _remedy(name, "matched by time, and the pace of another batch was not measured", None)
    plan = at_batch(candidate, facts, round(math.sqrt(large * small)))
    if large <= 2 * small or not small < plan.global_batch_size < large:
        return _remedy(name, f"no batch half-way between {large} and the reference's {small}", None)
    rate = format_number(plan.learning_rate)
    return _remedy(name, f"batch {plan.global_batch_size} in place of {large}, rate {rate}", plan)


def _longer_training(facts: TaskFacts, candidate: Plan, reference: Plan) -> Remedy:
    """As many updates as the reference makes, with the schedule stretched over them."""
    name: RemedyName = "longer training"
    if candidate.batch_schedule is not None or reference.batch_schedule is not None:
        return _remedy(name, "a batch that follows a schedule has no updates of one size", None)
    ours, theirs = count_updates(candidate, facts), count_updates(reference, facts)
    if ours >= theirs:
        why = f"the candidate makes {ours:,} updates already, the reference {theirs:,}"
        return _remedy(name, why, None)
    change = f"{theirs:,} updates in place of {ours:,}, as many as the reference makes"
    return _remedy(name, change, with_updates(candidate, facts, theirs))


def _other_optimizer(facts: TaskFacts, candidate: Plan, reference: Plan) -> str | None:
    """Rules of the recipe's optimizer say nothing about another one."""
    names = {candidate.optimizer_name, reference.optimizer_name}
    if names == {facts.recipe.optimizer_name}:
        return None
    return f"its rule is for the recipe's optimizer, and a side has {' and '.join(sorted(names))}"
