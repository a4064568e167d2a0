"""A sweep from question to answer: runs, the curve through them, and what it calls critical."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from rightbatch.core.errors import InvalidInputError, InvalidTaskError, RightBatchError
from rightbatch.core.plan import Interval
from rightbatch.core.progress import OnProgress
from rightbatch.core.recipe import Target
from rightbatch.core.record import SCHEMA_VERSION, Record
from rightbatch.core.store import write_record
from rightbatch.core.sweep import Arm, Definition, Sweep, SweepPoint
from rightbatch.fit.hyperbola import (
    MIN_SIZES,
    Best,
    Hyperbola,
    best_rates,
    critical_bounds,
    fit_hyperbola,
    overhead_batch,
    regime,
)
from rightbatch.fit.models import fit_models
from rightbatch.measure.session import measure
from rightbatch.tasks.check import check_task
from rightbatch.tasks.task import Task
from rightbatch.validate.allowance import Allowance
from rightbatch.validate.ledger import same_question, sole_owner
from rightbatch.validate.sweep import FEWEST_RATES, SweepStudy, check_start, run_sweep, steps_of
from rightbatch.validate.workers import HowMany

SWEEP = "sweep.json"
LENGTHS = 2.0
"""Lengths of the recipe's run after which a run of the sweep is censored."""


class SweepQuestion(Record):
    """What was asked before the first run; only more seeds may be asked for later."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: str
    fingerprint: str
    target: Target
    batch_sizes: tuple[int, ...]
    rates: int
    seeds: int
    most_examples: int
    device: str


def sweep(  # noqa: PLR0913 - what is swept, and then how
    task: Task,
    batch_sizes: Sequence[int],
    *,
    out: Path | str,
    rates: int = FEWEST_RATES,
    seeds: int = 3,
    noise_seconds: float = 20.0,
    budget_runs: int | None = None,
    budget_seconds: float | None = None,
    workers: HowMany = 1,
    device: str = "cpu",
    on_progress: OnProgress | None = None,
) -> Sweep:
    """Train to the target at every batch size, and fit S = S_min (1 + B_crit / B); it can go on.

    Args:
        task: what ``load_task`` gave; it needs a target.
        batch_sizes: to sweep.
        out: folder of the sweep.
        rates: odd; each batch size tries at least so many, a factor 2 apart, the rule's in the middle.
        seeds: of initial weights and order.
        noise_seconds: to measure the noise scale beside it; 0 leaves it out.
        budget_runs: new runs to start, at most; None sets no limit.
        budget_seconds: after which none is started any more; None sets no limit.
        workers: processes to train in, or ``ray``; the same runs are made by any number of them.
        device: as torch names it.
        on_progress: called while the runs go on.

    Raises:
        InvalidTaskError: the task has no target.
        InvalidInputError: a batch larger than the data, fewer than 3 of them, an even number of
            rates, no seed, a target that is met before any training, or a folder that was begun
            with another question.
        BudgetEndedError: the budget ended before the sweep; finished runs are kept.
        StudyStoppedError: stopped from outside; finished runs are kept.
    """
    if task.target is None:
        found, hint = "no target", 'give the task one: target=rb.Target("accuracy", 0.97)'
        raise InvalidTaskError(found, need="a target that runs are to reach", hint=hint)
    facts, folder = check_task(task, device), Path(out)
    sizes, total = sorted(set(batch_sizes)), task.num_train_examples
    if len(sizes) < MIN_SIZES or sizes[0] < 1 or sizes[-1] > total or seeds < 1:
        found = f"batch sizes {', '.join(map(str, sizes))} and {seeds} seed(s)"
        need = f"{MIN_SIZES} batch sizes or more, from 1 to the {total:,} training examples, and a seed"
        raise InvalidInputError(found, need=need, hint="--sweep 8:512 --seeds 3")
    if rates < FEWEST_RATES or rates % 2 == 0:
        found, need = f"{rates} rates", "an odd number, 3 or more: as many above the rule's as below it"
        raise InvalidInputError(found, need=need, hint="--rates 5")
    check_start(task, task.target, seeds, device)
    whole = facts.recipe.total_examples(facts.recipe.batch_size, total)
    asked = SweepQuestion(
        task=task.name,
        fingerprint=facts.fingerprint,
        target=task.target,
        batch_sizes=tuple(sizes),
        rates=rates,
        seeds=seeds,
        most_examples=round(LENGTHS * whole),
        device=device,
    )
    with sole_owner(folder):
        same_question(folder / "question.json", asked, frozenset({"seeds"}))
        noise, predicted, missing = None, None, None
        if noise_seconds:
            try:
                noise, predicted = _noise(task, folder, device, noise_seconds)
            except RightBatchError as error:
                missing = error.found
        study = SweepStudy(
            task=task,
            facts=facts,
            target=task.target,
            batch_sizes=asked.batch_sizes,
            rates=rates,
            seeds=seeds,
            most_examples=asked.most_examples,
            device=device,
            folder=folder,
        )
        allowance = Allowance(budget_runs, budget_seconds)
        arms = run_sweep(study, allowance=allowance, workers=workers, on_progress=on_progress)
        found = summarise(arms, asked, noise=noise, predicted=predicted).replace(noise_missing=missing)
        write_record(folder / SWEEP, found)
    return found


def summarise(
    arms: Sequence[Arm],
    asked: SweepQuestion,
    *,
    noise: Interval | None = None,
    predicted: Interval | None = None,
) -> Sweep:
    """Fit the runs, with an interval over seeds and residuals, if enough batches reached the target."""
    steps = steps_of(arms)
    best = best_rates(steps)
    reached = [one.batch_size for one in best]
    fit, value, bounds = None, None, (None, None)
    if len(best) >= MIN_SIZES:
        fit = fit_hyperbola(reached, [one.steps for one in best])
        bounds = critical_bounds(steps, fit, np.random.default_rng(0))
        value = fit.critical_batch_size if fit.has_bend else None
    low, high = bounds
    return Sweep(
        task=asked.task,
        target=asked.target,
        most_examples=asked.most_examples,
        min_updates=(fit.min_steps or None) if fit else None,
        critical_batch_size=None if value is None else Interval(value=value, low=low, high=high),
        residual_rms=fit.log_rms if fit else None,
        points=tuple(_point(one, fit) for one in best),
        missed=tuple(size for size in asked.batch_sizes if size not in reached),
        definitions=tuple(_definitions(best, value, low, high)),
        predicted=predicted,
        noise_scale=noise,
        arms=tuple(arms),
    )


def _point(one: Best, fit: Hyperbola | None) -> SweepPoint:
    fitted = fit.steps(one.batch_size) if fit else None
    return SweepPoint(
        batch_size=one.batch_size,
        updates=one.steps,
        examples=one.steps * one.batch_size,
        factor=one.factor,
        on_edge=one.on_edge,
        fitted_updates=fitted,
        residual=math.log(one.steps / fitted) if fitted else None,
        regime=regime(one.batch_size, fit.critical_batch_size) if fit else None,
    )


def _definitions(
    best: Sequence[Best], value: float | None, low: float | None, high: float | None
) -> list[Definition]:
    """The critical batch sizes that a curve of steps holds; one word, different numbers."""
    critical = Definition(
        name="B_crit",
        value=value,
        low=low,
        high=high,
        meaning="twice the fewest steps and twice the fewest examples",
        source="McCandlish et al. 2018, arXiv:1812.06162, Eq. 2.11",
    )
    if not best:
        return [critical]
    anchor = best[0].batch_size
    cbs = [None if bound is None else overhead_batch(anchor, bound) for bound in (value, low, high)]
    fewest = min(best, key=lambda one: one.steps * one.batch_size).batch_size
    return [
        critical,
        Definition(
            name="CBS-20",
            value=cbs[0],
            low=cbs[1],
            high=cbs[2],
            meaning=f"20 % more steps than linear scaling from batch {anchor}",
            source="Zhang et al. 2025, arXiv:2410.21676",
        ),
        Definition(
            name="fewest examples",
            value=float(fewest),
            low=None,
            high=None,
            meaning="the swept batch that reached the target with the fewest examples",
            source="this sweep",
        ),
    ]


def _noise(
    task: Task, folder: Path, device: str, seconds: float
) -> tuple[Interval | None, Interval | None]:
    """Noise scale of a pilot and the critical batch size it predicts; None where it set no bound."""
    measurements = measure(
        task, out=folder, device=device, time_budget_seconds=seconds, stages=("noise",)
    )
    models = fit_models(measurements)
    if models.noise is None or models.steps is None:
        return None, None
    noise, steps = models.noise, models.steps
    value = noise.noise_scale if noise.noise_scale is not None else noise.low
    scale = Interval(value=value, low=noise.low, high=noise.high)
    high = steps.high if steps.decided else None
    return scale, Interval(value=steps.critical_batch_size, low=steps.low, high=high)
