"""A sweep: batch sizes x learning rates x seeds, each trained to the target, each run once for good.

Rates are constant along a run, so that the steps to the target do not depend on where a schedule was
meant to end. Each batch size finds its own best rate: half, once and twice the rule's, and one beyond
while the outermost is best. A run is given up, and counts as censored, after twice the updates that its
batch and seed needed: in the first seed with the best rate so far, in the others with the best that
reached the target with every seed, so that this one remains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch.utils.data import DataLoader, Subset

from rightbatch.core.errors import InvalidTaskError
from rightbatch.core.facts import TaskFacts
from rightbatch.core.progress import OnProgress
from rightbatch.core.recipe import Target
from rightbatch.core.sweep import Arm, ArmOutcome
from rightbatch.fit.hyperbola import Steps
from rightbatch.measure.pilot import Pilot
from rightbatch.plan.inputs import refuse_if_met
from rightbatch.tasks.build import build_model
from rightbatch.tasks.check import evaluate
from rightbatch.tasks.order import fixed_sample
from rightbatch.tasks.task import Task
from rightbatch.validate.allowance import Allowance
from rightbatch.validate.branching import averaged_model, branch, plan_for
from rightbatch.validate.ledger import LEDGER, BudgetEndedError, open_ledger
from rightbatch.validate.work import Board, Chain, Job, Tell, run_chains
from rightbatch.validate.workers import HowMany, workers_for

FEWEST_RATES = 3
MORE_RATES = 3
"""At most, beyond those that every batch size tries."""
AS_GOOD = 1.05
"""Steps over the fewest up to which a rate on the edge asks for one beyond."""
HOPELESS = 2.0
EVALUATIONS = 100
"""In the longest run; the target is met on the line between two."""
EVALUATED = 2000
"""Most validation examples."""
_EVALUATION_BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepStudy:
    """What a sweep's runs need."""

    task: Task
    facts: TaskFacts
    target: Target
    batch_sizes: tuple[int, ...]
    rates: int
    """That every batch size tries: the rule's, and as many doublings as halvings of it."""
    seeds: int
    most_examples: int
    device: str
    folder: Path


@dataclass(frozen=True, slots=True)
class ArmJob:
    """One run to make."""

    batch_size: int
    factor: float
    seed: int
    most_updates: float
    """After which it is hopeless."""

    @property
    def key(self) -> str:
        """Its name in the ledger."""
        return f"batch {self.batch_size}, {self.factor:g} x the rate, seed {self.seed}"


def check_start(task: Task, target: Target, seeds: int, device: str) -> None:
    """Refuse a target that is met before any training.

    Raises:
        InvalidInputError: the untrained model of a seed meets it.
        InvalidTaskError: there is no validation data.
    """
    validation = _validation(task)
    for seed in range(seeds):
        untrained = evaluate(task, build_model(task, device, seed), validation, device)[target.metric]
        refuse_if_met(target, untrained, hint="give the task a harder target=rb.Target(...)")


def run_sweep(
    study: SweepStudy,
    *,
    allowance: Allowance,
    workers: HowMany = 1,
    on_progress: OnProgress | None = None,
) -> list[Arm]:
    """Every run of the sweep, made now or finished earlier, by batch size, seed and rate.

    Raises:
        BudgetEndedError: the allowance ended before the sweep; finished runs are kept.
    """
    board = Board("sweep", len(study.batch_sizes) * study.seeds * (study.rates + 1), on_progress)
    chains = [_first_seed(study, size, board) for size in study.batch_sizes]
    crew = workers_for(
        workers,
        partial(_train_arm, study),
        board,
        task=study.task,
        device=study.device,
        folder=study.folder,
    )
    with open_ledger(study.folder / LEDGER) as ledger, crew as hands:
        done = run_chains(
            chains, Arm, workers=hands, ledger=ledger, board=board, may_start=allowance.take
        )
        arms = [arm for _, arm in done]
    if allowance.ended:
        found = (
            f"the budget ended with {len(arms)} of about {board.expected} runs of the sweep finished"
        )
        hint = f"give the same command again: {study.folder} keeps every finished run"
        raise BudgetEndedError(found, need="all of them for a fit", hint=hint)
    return sorted(arms, key=lambda arm: (arm.batch_size, arm.seed, arm.factor))


def _first_seed(study: SweepStudy, size: int, board: Board) -> Chain:
    """Find out with one seed which rates matter; the others then repeat them."""
    factors = [1.0]
    for n in range(1, 1 + study.rates // 2):
        factors += [0.5**n, 2.0**n]
    updates: dict[float, float] = {}
    at = 0
    while at < len(factors):
        hopeless = HOPELESS * min(updates.values(), default=math.inf)
        arm = cast(Arm, (yield ArmJob(size, factors[at], 0, hopeless)))
        updates[factors[at]] = _reached_after(arm)
        at += 1
        if at == len(factors) and len(factors) < study.rates + MORE_RATES:
            factors += _beyond(updates)
    board.expected += study.seeds * (len(factors) - study.rates - 1)
    return [_other_seeds(size, updates, range(1, study.seeds))]


def _other_seeds(size: int, updates: dict[float, float], seeds: range) -> Chain:
    """Repeat rates, best first, until one reached with every seed; it then limits what is left."""
    best_first = sorted(updates, key=updates.__getitem__)
    left = {seed: list(best_first) for seed in seeds}
    limits = dict.fromkeys(seeds, math.inf)
    for factor in best_first:
        if math.isinf(updates[factor]):
            break
        for seed in seeds:
            left[seed].remove(factor)
            took = _reached_after(cast(Arm, (yield ArmJob(size, factor, seed, math.inf))))
            if math.isinf(took):
                break
            limits[seed] = HOPELESS * took
        else:
            break
    return [_rest(size, factors, seed, limits[seed]) for seed, factors in left.items()]


def _rest(size: int, factors: Sequence[float], seed: int, most_updates: float) -> Chain:
    for factor in factors:
        yield ArmJob(size, factor, seed, most_updates)
    return []


def _reached_after(arm: Arm) -> float:
    return arm.updates if arm.outcome == "reached" else math.inf


def _beyond(updates: dict[float, float]) -> list[float]:
    """The next rate beyond an outermost one that is best, or as good as the best."""
    good = AS_GOOD * min(updates.values())
    if not math.isfinite(good):
        return []
    low, high = min(updates), max(updates)
    if updates[high] <= good:
        return [2.0 * high]
    return [0.5 * low] if updates[low] <= good else []


def _train_arm(study: SweepStudy, job: Job, tell: Tell) -> Arm:
    assert isinstance(job, ArmJob)
    task, target, size = study.task, study.target, job.batch_size
    plan = plan_for(study.facts, size)
    run = branch(Pilot(task, study.device, job.seed, study.most_examples), plan, job.factor)
    every = max(1, round(study.most_examples / EVALUATIONS / size))
    validation, evaluated = _validation(task), averaged_model(run, plan)
    updates, before = 0, _metric(study, run.model, validation)
    outcome: ArmOutcome = "censored"
    reached = 0.0
    most_updates = min(job.most_updates, math.ceil(study.most_examples / size))
    while updates < most_updates:
        run.train(every * size)
        updates += every
        now = math.nan if run.diverged else _metric(study, evaluated, validation)
        if not math.isfinite(now):
            outcome, reached = "diverged", float(updates)
            break
        if target.is_reached(now):
            share = (target.value - before) / (now - before) if math.isfinite(before) else 1.0
            outcome, reached = "reached", updates - every + min(max(share, 0.0), 1.0) * every
            break
        before, reached = now, float(updates)
        tell(min(updates / most_updates, 1.0), f"{target.metric} {now:.4g}")
    return Arm(
        batch_size=size,
        factor=job.factor,
        learning_rate=job.factor * plan.learning_rate,
        seed=job.seed,
        outcome=outcome,
        updates=max(reached, 1.0),
        value=before if outcome != "diverged" and math.isfinite(before) else None,
    )


def _validation(task: Task) -> list[Any]:
    """Batches of validation examples, the same ones for every run.

    Raises:
        InvalidTaskError: there are none.
    """
    if task.valid_data is None:
        found, hint = "no valid_data", "give the task validation data"
        raise InvalidTaskError(found, need="data to meet the target on", hint=hint)
    held_out = Subset(task.valid_data, fixed_sample(task.num_valid_examples, EVALUATED))
    return list(DataLoader(held_out, batch_size=_EVALUATION_BATCH, collate_fn=task.collate))


def _metric(study: SweepStudy, model: Any, validation: Sequence[Any]) -> float:
    found = evaluate(study.task, model, validation, study.device)
    return found[study.target.metric]


def steps_of(arms: Sequence[Arm]) -> Steps:
    """Steps by batch size, rate and seed; infinite where the target was not reached."""
    found: dict[int, dict[float, list[float]]] = {}
    for arm in arms:
        rates = found.setdefault(arm.batch_size, {}).setdefault(arm.factor, [])
        rates.append(_reached_after(arm))
    return found
