"""Remedies tried for a candidate that did worse, over the same seeds and against the same runs.

Whether a remedy closes the gap is judged against the reference alone. Its gain over the candidate is
told, too, but a candidate that did worse by bad luck makes every remedy look good.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from rightbatch.core.comparison import Comparison, CompletedRun, Matching, Remedies, Remedy
from rightbatch.core.facts import TaskFacts
from rightbatch.core.plan import Decision, Plan
from rightbatch.core.recipe import Constants
from rightbatch.core.record import SCHEMA_VERSION, Record
from rightbatch.core.store import write_record
from rightbatch.plan.toml import write_plan
from rightbatch.train.check import check_plan
from rightbatch.validate.ledger import finished
from rightbatch.validate.pairs import Study, run_pairs
from rightbatch.validate.remedies import list_remedies
from rightbatch.validate.remedy_verdict import each_level, judge_remedy
from rightbatch.validate.statistics import LEVEL

REMEDIES = "remedies.json"


class RemedyList(Record):
    """What is tried, fixed before the first run, as the level of the intervals follows from it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    remedies: tuple[Remedy, ...]


def try_remedies(
    study: Study, facts: TaskFacts, plain: Comparison, *, matched_by: Matching
) -> Comparison:
    """The comparison with every remedy tried, as far as the study's allowance goes.

    Args:
        study: that the comparison is of.
        facts: of its task.
        plain: the comparison, with all of its runs.
        matched_by: what both sides had the same of.

    Raises:
        StudyStoppedError: stopped from outside; what was run is kept.
    """
    path = study.folder / REMEDIES
    listed = finished(path, RemedyList)
    if listed is None:
        candidate, reference = plain.candidate.plan, plain.reference.plan
        found = list_remedies(
            study.task, facts, candidate, reference, matched_by=matched_by, device=study.device
        )
        listed = RemedyList(remedies=found)
        for remedy in found:
            _write_plan(study.folder, remedy, candidate, facts)
        write_record(path, listed)
    level = each_level(sum(remedy.plan is not None for remedy in listed.remedies))
    results = [
        judge_remedy(remedy, _runs(study, remedy), plain, level=level) for remedy in listed.remedies
    ]
    missing = sum(plain.seeds - len(r.runs) for r in results if r.remedy.plan is not None)
    remedies = Remedies(family_level=LEVEL, level=level, results=tuple(results))
    return plain.replace(remedies=remedies, unfinished_runs=missing)


def _home(remedy: Remedy) -> Path:
    return Path("remedies", remedy.name.replace(" ", "-"))


def _write_plan(folder: Path, remedy: Remedy, candidate: Plan, facts: TaskFacts) -> None:
    """Save the plan to train with, in case that the remedy helps; its comments say what is new."""
    if remedy.plan is None:
        return
    plan, today = remedy.plan, Plan.from_recipe(facts.recipe, facts.name)
    decisions = [
        Decision(
            name=name,
            value=str(getattr(plan, name)),
            evidence="assumed",
            rule=f"remedy: {remedy.name}" if is_new else "the candidate that was compared",
            source=remedy.source if is_new else "definition",
            reason=remedy.change if is_new else "not today's value",
        )
        for name in (*Constants.model_fields, "global_batch_size", "micro_batch_size", "learning_rate")
        if getattr(plan, name) != getattr(today, name)
        for is_new in (getattr(plan, name) != getattr(candidate, name),)
    ]
    note = f"{remedy.name}: {remedy.change}"
    path = folder / _home(remedy) / "plan.toml"
    write_plan(path, plan.replace(decisions=tuple(decisions), guards=(), notes=(note,)))


def _runs(study: Study, remedy: Remedy) -> list[CompletedRun]:
    if remedy.plan is None:
        return []
    own = dataclasses.replace(
        study,
        candidate=check_plan(study.task, remedy.plan),
        sides=("candidate",),
        label_smoothing=remedy.label_smoothing,
        folder=study.folder / _home(remedy),
    )
    return [run.replace(run_dir=_home(remedy) / run.run_dir) for run in run_pairs(own)]
