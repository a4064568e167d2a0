"""The two ways to train that are compared, and how long each trains so that the comparison is fair."""

from __future__ import annotations

from typing import Any

from rightbatch.core.comparison import Side
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.facts import TaskFacts
from rightbatch.core.plan import Decision, Plan
from rightbatch.core.recipe import Constants, Recipe, Target, updates_of
from rightbatch.core.units import format_number
from rightbatch.plan.scaling import Move, move_constants, with_defaults
from rightbatch.train.sampler import Windows


def plan_side(plan: Plan, name: str) -> Side:
    """A plan as it stands; its length is matched later."""
    return Side(name=name, plan=plan, rate_from="the plan's own learning rate")


def recipe_side(task_name: str, recipe: Recipe) -> Side:
    """Today's recipe as it stands."""
    plan = Plan.from_recipe(recipe, task_name)
    return Side(name="today's recipe", plan=plan, rate_from="the recipe's own learning rate")


def batch_side(facts: TaskFacts, batch_size: int) -> Side:
    """Today's recipe at another batch size, every constant moved by the rules of `rightbatch scale`.

    Raises:
        InvalidInputError: the batch is larger than the data, or smaller than one example.
    """
    if not 1 <= batch_size <= facts.num_train_examples:
        found = f"batch {batch_size} with {facts.num_train_examples:,} training examples"
        raise InvalidInputError(found, need="a batch no larger than the data", hint="choose another")
    if batch_size == facts.recipe.batch_size:
        return recipe_side(facts.name, facts.recipe)
    moved, rate = moved_constants(facts.recipe, facts, batch_size)
    plan = Plan.from_recipe(facts.recipe, facts.name, global_batch_size=batch_size, **moved)
    rule = f"{rate.rule} [{rate.source}]: {rate.reason}"
    return Side(name=f"batch {batch_size}", plan=plan, rate_from=rule)


def moved_constants(
    recipe: Recipe, facts: TaskFacts, batch_size: int
) -> tuple[dict[str, Any], Decision]:
    """Fields of a plan that move with the batch, and the decision on its learning rate."""
    move = Move(
        ratio=batch_size / recipe.batch_size,
        family=facts.optimizer_family,
        optimizer_class=facts.optimizer_class,
    )
    decisions = [*move_constants(with_defaults(recipe, facts.optimizer_class), recipe.lr, move)]
    values = {decision.name: decision.value for decision in decisions}
    changes: dict[str, Any] = {
        name: values[name]
        for name in ("learning_rate", "eps", "weight_decay", "ema_decay")
        if name in values
    }
    if "beta1" in values:
        changes["betas"] = (values["beta1"], values["beta2"])
    return changes, decisions[0]


def as_recipe(plan: Plan) -> Recipe:
    """The constants, rate and batch of a plan, to be moved to another batch."""
    shared = {name: getattr(plan, name) for name in Constants.model_fields}
    return Recipe(lr=plan.learning_rate, batch_size=plan.global_batch_size, **shared)


def at_batch(plan: Plan, facts: TaskFacts, batch_size: int) -> Plan:
    """A plan at about another batch, as its split allows, its constants moved; epochs are kept."""
    group = plan.micro_batch_size * plan.num_replicas
    steps = max(1, round(batch_size / group))
    micro = plan.micro_batch_size if batch_size >= group else batch_size // plan.num_replicas
    size = max(1, micro) * steps * plan.num_replicas
    moved, _ = moved_constants(as_recipe(plan), facts, size)
    return plan.replace(
        global_batch_size=size, micro_batch_size=max(1, micro), accumulation_steps=steps, **moved
    )


def with_examples(plan: Plan, facts: TaskFacts, like: Plan) -> Plan:
    """A plan that processes as many examples as another does in all, with its schedules stretched."""
    total = _windows(like, facts).total_examples
    ratio = total / _windows(plan, facts).total_examples
    return _stretched(plan, ratio).replace(epochs=total / facts.num_train_examples, steps=None)


def with_updates(plan: Plan, facts: TaskFacts, updates: int) -> Plan:
    """A plan that makes so many updates, with its schedules stretched over them."""
    longer, whole = plan.replace(epochs=None, steps=updates), _windows(plan, facts)
    if plan.batch_schedule is None:
        ratio = _windows(longer, facts).total_examples / whole.total_examples
    else:  # what the updates come to in examples follows from the stretched batches
        ratio = updates / sum(1 for _ in whole)
    return _stretched(longer, ratio)


def count_updates(plan: Plan, facts: TaskFacts) -> int:
    """Updates of a plan's whole run, each epoch's last one being short.

    Raises:
        InvalidInputError: the batch grows on the way, so that updates say little.
    """
    if plan.steps is not None:
        return plan.steps
    if plan.batch_schedule is not None:
        found, hint = "a batch schedule matched by updates", "--matched-by examples"
        raise InvalidInputError(found, need="a batch that stays", hint=hint)
    num, batch = facts.num_train_examples, plan.global_batch_size
    return updates_of(plan.total_examples(batch, num), batch, num)


def with_target_out_of_reach(plan: Plan, target: Target | None) -> Plan:
    """A plan that trains to its end: the metric is still judged, but nothing stops the run early."""
    if target is None:
        return plan.replace(target=None)
    never = 1e300 if target.higher_is_better else -1e300
    return plan.replace(target=target.replace(value=never))


def _windows(plan: Plan, facts: TaskFacts) -> Windows:
    return Windows.of(plan, facts.num_train_examples, seed=0)


def _stretched(plan: Plan, ratio: float) -> Plan:
    """Keep warmup, and milestones of rate and batch, at the same share of a run of another length."""
    if ratio == 1:
        return plan
    changes: dict[str, Any] = {"warmup_examples": round(plan.warmup_examples * ratio)}
    if plan.decay_at is not None:
        changes["decay_at"] = tuple(max(1, round(at * ratio)) for at in plan.decay_at)
    if (grows := plan.batch_schedule) is not None:
        # Of milestones that fall on the same example, the last holds: the others have no length.
        placed = {round(start * ratio): size for start, size in grows.milestones}
        changes["batch_schedule"] = grows.replace(milestones=tuple(placed.items()))
    return plan.replace(**changes)


def side_text(side: Side) -> str:
    """One line on what a side is."""
    plan = side.plan
    length = f"{plan.steps:,} updates" if plan.steps else f"{format_number(plan.epochs or 0)} epochs"
    rate = format_number(plan.learning_rate)
    return f"{side.name}: global {plan.global_batch_size} = {plan.split}, rate {rate}, {length}"
