"""A comparison from question to verdict: sides, lengths, rates, paired runs, and what they show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rightbatch.core.comparison import Comparison, CompletedRun, Matching, Side
from rightbatch.core.errors import InvalidTaskError
from rightbatch.core.facts import TaskFacts
from rightbatch.core.plan import Plan
from rightbatch.core.progress import OnProgress
from rightbatch.core.record import SCHEMA_VERSION, Record
from rightbatch.core.store import write_record
from rightbatch.core.units import format_number
from rightbatch.fit.rate_choice import choose_rate
from rightbatch.measure.budget import Budget
from rightbatch.measure.rates import check_optimizer, measure_rates
from rightbatch.tasks.build import build_model, join, to_device
from rightbatch.tasks.check import check_task, evaluate
from rightbatch.tasks.task import Task
from rightbatch.train.check import check_plan, check_run
from rightbatch.train.sampler import Windows
from rightbatch.validate.allowance import Allowance
from rightbatch.validate.compare import compare, metric_to_judge
from rightbatch.validate.ledger import finished, same_question, sole_owner
from rightbatch.validate.pace import pace_ratio
from rightbatch.validate.pairs import Inspect, Study, run_pairs
from rightbatch.validate.remedy_session import try_remedies
from rightbatch.validate.sides import (
    batch_side,
    count_updates,
    plan_side,
    recipe_side,
    with_examples,
    with_updates,
)
from rightbatch.validate.statistics import check_design
from rightbatch.validate.workers import HowMany

COMPARISON, QUESTION, SIDES = "comparison.json", "question.json", "sides.json"
_TUNING_SEED = 1_000_000  # no seed of the comparison


class Question(Record):
    """What was asked before the first run; only more seeds may be asked for later."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: str
    fingerprint: str
    """Of the task, its recipe and the size of its data."""
    candidate: Side
    reference: Side
    matched_by: Matching
    seeds: int
    margin: float
    tune_seconds: float | None
    sharpness: bool
    device: str


class Sides(Record):
    """Both sides with the lengths and rates that they were given; measured once, then kept."""

    schema_version: Literal[1] = SCHEMA_VERSION
    candidate: Side
    reference: Side


def validate(  # noqa: PLR0913 - what is compared, and then how
    task: Task,
    plan: Plan | int,
    *,
    out: Path | str,
    against: Plan | int | None = None,
    seeds: int = 3,
    margin: float = 0.005,
    matched_by: Matching = "examples",
    tune_seconds: float | None = None,
    sharpness: bool = False,
    remedy: bool = False,
    budget_runs: int | None = None,
    budget_seconds: float | None = None,
    workers: HowMany = 1,
    device: str = "cpu",
    on_progress: OnProgress | None = None,
) -> Comparison:
    """Train both sides over paired seeds and judge the metric at the end; a second call goes on.

    Args:
        task: what ``load_task`` gave.
        plan: what is questioned: a plan, or a batch size to which the recipe is moved by rule.
        out: folder of the comparison.
        against: what it is held against: a plan, a batch size, or None for today's recipe.
        seeds: pairs of runs.
        margin: smallest difference in the metric that matters.
        matched_by: what the candidate gets as much of as the reference.
        tune_seconds: time for each side to try learning rates around its own; None tries none.
        sharpness: measure the curvature at the end of each run.
        remedy: where the candidate is worse, or that is undecided, try what may help it.
        budget_runs: new runs that this call may start; None makes all of them.
        budget_seconds: after which this call starts no new run.
        workers: processes to train in, or ``ray``.
        device: as torch names it.
        on_progress: called while the runs go on.

    Raises:
        InvalidInputError: a design that cannot decide, a plan of another task, rates to be tried for
            another optimizer than the recipe's, or a folder that was begun with another question.
        InvalidTaskError: the task has no validation data, or a loss without the curvature asked for.
        StudyStoppedError: stopped from outside; what was run is kept.
    """
    check_design(seeds, margin)
    allowance = Allowance(budget_runs, budget_seconds)
    if task.valid_data is None:
        found, hint = "no valid_data", "give the task validation data"
        raise InvalidTaskError(found, need="data that no run has trained on", hint=hint)
    facts, folder = check_task(task, device), Path(out)
    candidate, reference = _side(plan, facts, "the plan"), _side(against, facts, "the other plan")
    for side in (candidate, reference):
        checked = check_plan(task, side.plan)
        if tune_seconds is not None:
            check_optimizer(task, checked)
    target = candidate.plan.target or task.target
    metric, higher_is_better = metric_to_judge(_metrics(task, device), target)
    inspect = _inspection(task, device) if sharpness else None
    asked = Question(
        task=task.name,
        fingerprint=facts.fingerprint,
        candidate=candidate,
        reference=reference,
        matched_by=matched_by,
        seeds=seeds,
        margin=margin,
        tune_seconds=tune_seconds,
        sharpness=sharpness,
        device=device,
    )
    if matched_by != "time":  # whose length is known once both sides have been timed
        _check_runs(task, (_candidate_plan(facts, asked), reference.plan), device)
    with sole_owner(folder):
        same_question(folder / QUESTION, asked, frozenset({"seeds"}))
        sides = finished(folder / SIDES, Sides)
        if sides is None:
            sides = _match(task, facts, asked, folder, workers)
            write_record(folder / SIDES, sides)
        study = Study(
            task=task,
            candidate=check_plan(task, sides.candidate.plan),
            reference=check_plan(task, sides.reference.plan),
            target=target,
            seeds=seeds,
            device=device,
            folder=folder,
            inspect=inspect,
            on_progress=on_progress,
            allowance=allowance,
            workers=workers,
        )
        runs: list[CompletedRun] = [*run_pairs(study)]
        comparison = compare(
            task=task.name,
            metric=metric,
            higher_is_better=higher_is_better,
            target=target,
            matched_by=matched_by,
            candidate=sides.candidate,
            reference=sides.reference,
            margin=margin,
            num_valid_examples=task.num_valid_examples,
            runs=runs,
            seeds_asked=seeds,
        )
        if remedy and comparison.verdict in {"worse", "undecided"} and not comparison.unfinished_runs:
            comparison = try_remedies(study, facts, comparison, matched_by=matched_by)
        write_record(folder / COMPARISON, comparison)
    return comparison


def _side(given: Plan | int | None, facts: TaskFacts, name: str) -> Side:
    if given is None:
        return recipe_side(facts.name, facts.recipe)
    if isinstance(given, Plan):
        return plan_side(given, f"{name} (batch {given.global_batch_size})")
    return batch_side(facts, given)


def _metrics(task: Task, device: str) -> list[str]:
    """Names of what evaluation returns, seen on two examples and fresh weights."""
    data = task.valid_data
    batch = join(task, [data[i] for i in range(min(2, task.num_valid_examples))])  # type: ignore[index]
    return [*evaluate(task, build_model(task, device), [to_device(batch, device)], device)]


def _match(task: Task, facts: TaskFacts, asked: Question, folder: Path, workers: HowMany) -> Sides:
    """Give the candidate as much as the reference has, and tune both rates with equal effort."""
    candidate, reference = asked.candidate, asked.reference
    pace = 1.0
    if asked.matched_by == "time":
        pace = pace_ratio(
            task, candidate.plan, reference.plan, device=asked.device, workers=workers, folder=folder
        )
    candidate = candidate.replace(plan=_candidate_plan(facts, asked, pace))
    if asked.matched_by == "time":
        _check_runs(task, (candidate.plan, reference.plan), asked.device)
    if asked.tune_seconds is not None:
        candidate = _tuned(task, candidate, asked.tune_seconds, asked.device)
        reference = _tuned(task, reference, asked.tune_seconds, asked.device)
    return Sides(candidate=candidate, reference=reference)


def _candidate_plan(facts: TaskFacts, asked: Question, pace: float = 1.0) -> Plan:
    """The candidate at its matched length, where an update takes ``pace`` times the reference's."""
    if asked.matched_by == "examples":
        return with_examples(asked.candidate.plan, facts, asked.reference.plan)
    updates = count_updates(asked.reference.plan, facts)
    return with_updates(asked.candidate.plan, facts, max(1, round(updates / pace)))


def _check_runs(task: Task, plans: Sequence[Plan], device: str) -> None:
    """Refuse what a run of either side would refuse, before one of the other side has been made.

    Raises:
        InvalidInputError: BatchNorm cannot normalise the one example of some micro-batch.
    """
    for plan in plans:
        check_run(task, plan, Windows.of(plan, task.num_train_examples, seed=0), device)


def _tuned(task: Task, side: Side, seconds: float, device: str) -> Side:
    """Try rates around a side's in short branches; its weight decay stays."""
    budget = Budget(seconds=seconds)
    plan = check_plan(task, side.plan)
    *_, tuning = measure_rates(task, plan, device=device, seed=_TUNING_SEED, budget=budget)
    choice = choose_rate(tuning)
    tried = ", ".join(format_number(trial.learning_rate) for trial in tuning.trials)
    found = "the best of" if choice.decided else "not shown to be beaten among"
    if all(trial.diverged for trial in tuning.trials):
        found = "kept, while training diverged at each of"
    return side.replace(
        plan=side.plan.replace(learning_rate=choice.rate),
        rate_from=f"{found} {tried} in short branches; first {side.rate_from}",
    )


def _inspection(task: Task, device: str) -> Inspect:
    """What looks at a run's final weights, tried once before the first run.

    Raises:
        InvalidTaskError: the loss cannot be differentiated twice.
    """
    from rightbatch.validate.sharpness import check_sharpness, inspect_sharpness

    check_sharpness(task, device=device)
    return lambda model: inspect_sharpness(task, model, device=device)
