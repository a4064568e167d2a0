"""Try the planned learning rate against half and twice of it, by short branches with equal effort."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.samples import RateTrial, RateTuning
from rightbatch.fit.rate_choice import choose_rate, settled_loss
from rightbatch.fit.stability import STANDING_STILL
from rightbatch.measure.branches import Branch, fork, trained_trunk
from rightbatch.measure.budget import Budget
from rightbatch.measure.pilot import Pilot
from rightbatch.tasks.task import Task

FACTORS = (0.5, 1.0, 2.0)
WINDOWS = 16
"""Stretches of examples in a whole branch; losses are compared stretch by stretch."""
FIRST_RUNG = 6
"""After so many the worst rate is dropped (successive halving)."""
MOST_RATES = 5
# At most so many in a window of a branch that is only to show whether it trains.
CHECK_UPDATES = 8
# Of the recipe's run: how long today's recipe trains before the branches fork.
TRUNK_SHARE = 0.1


def measure_rates(
    task: Task, plan: Plan, *, device: str, seed: int, budget: Budget
) -> Iterator[RateTuning]:
    """Train branches at the plan's batch and 1/2, 1 and 2 x its rate; yield what is known so far.

    All start from today's recipe after a tenth of its run, and read the same examples. The worst
    rate is dropped early. Where an outermost rate is best, the next one beyond is tried, too.

    Args:
        task: gives recipe and data.
        plan: gives batch, split, rate and the optimizer's constants.
        device: where to train.
        seed: of trunk and branches.
        budget: time to spend; it sets how many examples a branch sees, at most the recipe's run.

    Raises:
        InvalidInputError: the plan names another optimizer than the recipe.
        MeasurementError: today's recipe diverges.
    """
    trunk, rest = _trunk(task, plan, device=device, seed=seed)
    # One branch in reserve, for a rate beyond.
    window = _window_examples(trunk, plan, budget, at_most=rest, branches=len(FACTORS) + 1)
    search = _Search(trunk, plan, window)
    for factor in FACTORS:
        yield search.extend(factor * plan.learning_rate, FIRST_RUNG)
    for rate in search.best(len(FACTORS) - 1):
        yield search.extend(rate, WINDOWS)
    while len(search.branches) < MOST_RATES and budget.left > 0:
        rates = sorted(search.branches)
        best = choose_rate(search.tuning()).rate
        if best == plan.learning_rate or best not in {rates[0], rates[-1]}:
            return
        yield search.extend(best * (0.5 if best == rates[0] else 2.0), WINDOWS)


def measure_stability(
    task: Task, plan: Plan, *, device: str, seed: int, budget: Budget
) -> Iterator[RateTuning]:
    """Train a short branch at the plan's batch and rate, beside one whose weights stand still.

    Both start from today's recipe after a tenth of its run and read the same examples, so that a
    loss that rises shows even where its windows differ.

    Args:
        task: gives recipe and data.
        plan: gives batch, split, rate and the optimizer's constants.
        device: where to train.
        seed: of trunk and branches.
        budget: time to spend, which sets the length of the branches.

    Raises:
        InvalidInputError: the plan names another optimizer than the recipe.
        MeasurementError: today's recipe diverges.
    """
    trunk, rest = _trunk(task, plan, device=device, seed=seed)
    most = min(rest, WINDOWS * CHECK_UPDATES * plan.global_batch_size)
    search = _Search(trunk, plan, _window_examples(trunk, plan, budget, at_most=most, branches=2))
    for rate in (STANDING_STILL, plan.learning_rate):
        yield search.extend(rate, WINDOWS)


def check_optimizer(task: Task, plan: Plan) -> None:
    """Refuse a plan whose branches cannot begin with the state of today's optimizer.

    Raises:
        InvalidInputError: the plan names another optimizer than the recipe.
    """
    ours, theirs = plan.optimizer_name, task.recipe.optimizer_name
    if ours.lower() != theirs.lower():
        found = f"branches of a plan with optimizer {ours!r}, while the recipe has {theirs!r}"
        need = "the recipe's optimizer, with whose state the branches begin"
        raise InvalidInputError(found, need=need, hint="leave out --tune-lr, or name it in the recipe")


def _trunk(task: Task, plan: Plan, *, device: str, seed: int) -> tuple[Pilot, int]:
    """Today's recipe after a tenth of its run, and how many examples of that are left."""
    check_optimizer(task, plan)
    whole = task.recipe.total_examples(task.recipe.batch_size, task.num_train_examples)
    trunk = trained_trunk(task, int(TRUNK_SHARE * whole), device=device, seed=seed)
    return trunk, whole - trunk.examples_seen


class _Search:
    """Branches by learning rate, and the losses of each."""

    def __init__(self, trunk: Pilot, plan: Plan, window_examples: int) -> None:
        self.trunk, self.plan, self.window_examples = trunk, plan, window_examples
        self.branches: dict[float, Branch] = {}
        self.losses: dict[float, list[float]] = {}

    def extend(self, rate: float, windows: int) -> RateTuning:
        """Train a rate until it has so many windows, or has diverged."""
        if rate not in self.branches:
            self.branches[rate], self.losses[rate] = _branch(self.trunk, self.plan, rate), []
        branch, losses = self.branches[rate], self.losses[rate]
        while len(losses) < windows and not branch.diverged:
            loss = branch.train(self.window_examples)
            if math.isfinite(loss):
                losses.append(loss)
        return self.tuning()

    def best(self, count: int) -> list[float]:
        """The rates with the lowest loss so far."""
        trials = sorted(self.tuning().trials, key=settled_loss)
        return [trial.learning_rate for trial in trials[:count]]

    def tuning(self) -> RateTuning:
        """What has been measured."""
        return RateTuning(
            batch_size=self.plan.global_batch_size,
            rule_rate=self.plan.learning_rate,
            examples_seen=self.trunk.examples_seen,
            window_examples=self.window_examples,
            trials=tuple(
                RateTrial(
                    learning_rate=rate,
                    losses=tuple(self.losses[rate]),
                    diverged=self.branches[rate].diverged,
                )
                for rate in sorted(self.branches)
            ),
        )


def _branch(trunk: Pilot, plan: Plan, rate: float) -> Branch:
    return fork(
        trunk,
        batch_size=plan.global_batch_size,
        learning_rate=rate,
        micro_batch_size=plan.micro_batch_size,
        constants=plan,
    )


def _window_examples(trunk: Pilot, plan: Plan, budget: Budget, *, at_most: int, branches: int) -> int:
    """Examples of one window, in whole updates: what the budget allows for all branches."""
    probe = _branch(trunk, plan, plan.learning_rate)
    probe.train(plan.global_batch_size)
    start = time.perf_counter()
    probe.train(plan.global_batch_size)
    seconds = time.perf_counter() - start
    affordable = budget.left / (seconds * WINDOWS * branches)
    useful = at_most / (WINDOWS * plan.global_batch_size)
    return plan.global_batch_size * max(1, int(min(affordable, useful)))
