"""Branches at many batch sizes, with the rate that the recipe's rules give each."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rightbatch.core.facts import TaskFacts
from rightbatch.core.plan import Plan
from rightbatch.measure.branches import Branch, fork
from rightbatch.measure.pilot import Pilot
from rightbatch.validate.sides import batch_side


def plan_for(facts: TaskFacts, batch_size: int) -> Plan:
    """Today's recipe at a batch size, its constants moved by rule."""
    return batch_side(facts, batch_size).plan


def averaged_model(run: Branch, plan: Plan) -> nn.Module:
    """What is evaluated: the branch's weights, averaged after every update where the plan averages."""
    if plan.ema_decay is None:
        return run.model
    averaged = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(plan.ema_decay))

    def average(*_: object) -> None:
        averaged.update_parameters(run.model)

    run.optimizer.register_step_post_hook(average)
    return averaged.module


def branch(trunk: Pilot, plan: Plan, factor: float = 1.0) -> Branch:
    """A branch of a trunk at a plan's batch, constants, and a multiple of its rate."""
    return fork(
        trunk,
        batch_size=plan.global_batch_size,
        learning_rate=factor * plan.learning_rate,
        micro_batch_size=plan.micro_batch_size,
        constants=plan,
    )
