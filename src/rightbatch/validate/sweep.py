"""A sweep: batch sizes x learning rates x seeds, each trained to the target, each run once for good.

Rates are constant along a run, so that the steps to the target do not depend on where a schedule was
meant to end. Each batch size finds its own best rate: half, once and twice the rule's, and one beyond
where the outermost is best. A run is given up after twice the examples that the best rate of its batch
and seed needed, and counts as censored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Subset

from rightbatch.core.errors import InvalidTaskError
from rightbatch.core.facts import TaskFacts
from rightbatch.core.progress import OnProgress, Progress
from rightbatch.core.recipe import Target
from rightbatch.core.store import write_record
from rightbatch.core.sweep import Arm, ArmOutcome
from rightbatch.fit.hyperbola import Steps
from rightbatch.measure.pilot import Pilot
from rightbatch.tasks.check import evaluate
from rightbatch.tasks.task import Task
from rightbatch.validate.branching import branch, plan_for
from rightbatch.validate.ledger import finished

FACTORS = (1.0, 0.5, 2.0)
MOST_RATES = 6
AS_GOOD = 1.05
"""Steps over the fewest up to which a rate on the edge asks for one beyond."""
HOPELESS = 2.0
EVALUATIONS = 100
"""In the longest run; the target is met on the line between two."""
EVALUATED = 2000
"""Most validation examples, the first ones."""
_EVALUATION_BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepStudy:
    """What a sweep's runs need."""

    task: Task
    facts: TaskFacts
    target: Target
    batch_sizes: tuple[int, ...]
    seeds: int
    most_examples: int
    device: str
    folder: Path
    on_progress: OnProgress | None = None


def run_sweep(study: SweepStudy) -> list[Arm]:
    """Every run of the sweep, made now or finished earlier."""
    arms: list[Arm] = []
    sizes = study.batch_sizes
    begun = time.monotonic()
    for place, size in enumerate(sizes):
        for done, arm in enumerate(_run_batch(study, size), start=1):
            arms.append(arm)
            if study.on_progress is not None:
                share = min((place + done / (len(FACTORS) + 1) / study.seeds) / len(sizes), 1.0)
                left = (time.monotonic() - begun) * (1 / share - 1)
                message = f"batch {size}, {arm.factor:g} x the rate, seed {arm.seed}: {arm.outcome}"
                study.on_progress(
                    Progress(stage="sweep", fraction=share, seconds_left=left, message=message)
                )
    return arms


def _run_batch(study: SweepStudy, size: int) -> Iterator[Arm]:
    """All runs of one batch size: the first seed finds which rates matter, the others repeat them."""
    factors = [*FACTORS]
    updates: dict[float, float] = {}
    at = 0
    while at < len(factors):
        factor = factors[at]
        arm = _arm(study, size, factor, 0, min(updates.values(), default=math.inf))
        updates[factor] = arm.updates if arm.outcome == "reached" else math.inf
        yield arm
        at += 1
        if at == len(factors) and len(factors) < MOST_RATES:
            factors += _beyond(updates)
    order = sorted(factors, key=updates.__getitem__)
    for seed in range(1, study.seeds):
        shortest = math.inf
        for factor in order:
            arm = _arm(study, size, factor, seed, shortest)
            if arm.outcome == "reached":
                shortest = min(shortest, arm.updates)
            yield arm


def _beyond(updates: dict[float, float]) -> list[float]:
    """The next rate beyond an outermost one that is best, or as good as the best."""
    good = AS_GOOD * min(updates.values())
    if not math.isfinite(good):
        return []
    low, high = min(updates), max(updates)
    if updates[high] <= good:
        return [2.0 * high]
    return [0.5 * low] if updates[low] <= good else []


def _arm(study: SweepStudy, size: int, factor: float, seed: int, shortest: float) -> Arm:
    path = study.folder / "arms" / f"batch{size}-rate{factor:g}-seed{seed}.json"
    kept = finished(path, Arm)
    if kept is None:
        kept = _train_arm(study, size, factor, seed, HOPELESS * shortest)
        write_record(path, kept)
    return kept


def _train_arm(study: SweepStudy, size: int, factor: float, seed: int, most_updates: float) -> Arm:
    task, target = study.task, study.target
    plan = plan_for(study.facts, size)
    run = branch(Pilot(task, study.device, seed, study.most_examples), plan, factor)
    every = max(1, round(study.most_examples / EVALUATIONS / size))
    validation = _validation(task)
    updates, before = 0, _metric(study, run.model, validation)
    outcome: ArmOutcome = "censored"
    reached = 0.0
    while updates * size < study.most_examples and updates < most_updates:
        run.train(every * size)
        updates += every
        if run.diverged:
            outcome, reached = "diverged", float(updates)
            break
        now = _metric(study, run.model, validation)
        if target.is_reached(now):
            share = (target.value - before) / (now - before) if now != before else 1.0
            outcome, reached = "reached", updates - every + min(max(share, 0.0), 1.0) * every
            break
        before, reached = now, float(updates)
    return Arm(
        batch_size=size,
        factor=factor,
        learning_rate=factor * plan.learning_rate,
        seed=seed,
        outcome=outcome,
        updates=max(reached, 1.0),
        value=None if outcome == "diverged" else before,
    )


def _validation(task: Task) -> list[Any]:
    """Batches of the first validation examples.

    Raises:
        InvalidTaskError: there are none.
    """
    if task.valid_data is None:
        found, hint = "no valid_data", "give the task validation data"
        raise InvalidTaskError(found, need="data to meet the target on", hint=hint)
    held_out = Subset(task.valid_data, range(min(EVALUATED, task.num_valid_examples)))
    return list(DataLoader(held_out, batch_size=_EVALUATION_BATCH, collate_fn=task.collate))


def _metric(study: SweepStudy, model: Any, validation: Sequence[Any]) -> float:
    found = evaluate(study.task, model, validation, study.device)
    return found[study.target.metric]


def steps_of(arms: Sequence[Arm]) -> Steps:
    """Steps by batch size, rate and seed; infinite where the target was not reached."""
    found: dict[int, dict[float, list[float]]] = {}
    for arm in arms:
        rates = found.setdefault(arm.batch_size, {}).setdefault(arm.factor, [])
        rates.append(arm.updates if arm.outcome == "reached" else math.inf)
    return found
