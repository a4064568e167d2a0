"""How many updates of one plan fit into the time of another's, from stretches that take turns.

A machine is not as fast at one time as at another. Neighbouring stretches of both plans share its
moods, so that the ratio of their paces is taken from each pair of them, and the median of these.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch

from rightbatch.core.errors import InvalidInputError, MeasurementError
from rightbatch.core.plan import Plan
from rightbatch.core.run import Outcome, Run
from rightbatch.tasks.task import Task
from rightbatch.train.loop import train
from rightbatch.validate.ledger import StudyStoppedError
from rightbatch.validate.sides import with_target_out_of_reach
from rightbatch.validate.workers import HowMany

_STRETCH_SECONDS = 0.25
_PAIRS = 7
_FIRST_UPDATES = 8
_SEED = 1_000_000  # no seed of the comparison


def pace_ratio(
    task: Task, candidate: Plan, reference: Plan, *, device: str, workers: HowMany, folder: Path
) -> float:
    """Seconds of an update of the candidate over those of the reference, in the training loop.

    Args:
        task: that both train.
        candidate: whose pace is wanted.
        reference: whose pace is 1.
        device: where they train.
        workers: of the study, each of which has one thread where there are several.
        folder: of the study, as a stopped one names it.

    Raises:
        InvalidInputError: a batch changes on the way.
        MeasurementError: a side diverged before it could be timed.
        StudyStoppedError: Ctrl-C or SIGTERM.
    """
    for plan in (candidate, reference):
        if plan.batch_schedule is not None:
            found, hint = "a batch schedule matched by time", "--matched-by examples"
            raise InvalidInputError(found, need="a batch that stays", hint=hint)

    def stretch(plan: Plan, updates: int) -> float:
        run = _train(task, plan, updates, device=device, folder=folder)
        return run.seconds / run.updates

    with _threads_of(workers):
        ours = _long_enough(task, candidate, device=device, folder=folder)
        theirs = _long_enough(task, reference, device=device, folder=folder)
        ratios: list[float] = []
        for pair in range(_PAIRS):
            if pair % 2:  # whoever comes second is not the same every time
                seconds = stretch(candidate, ours)
                ratios.append(seconds / stretch(reference, theirs))
            else:
                seconds = stretch(reference, theirs)
                ratios.append(stretch(candidate, ours) / seconds)
    return statistics.median(ratios)


def _long_enough(task: Task, plan: Plan, *, device: str, folder: Path) -> int:
    """Updates that take about as long as a stretch is to last, or the plan's whole run."""
    updates = _FIRST_UPDATES
    while True:
        run = _train(task, plan, updates, device=device, folder=folder)
        if run.updates < updates:
            return run.updates
        if run.seconds >= _STRETCH_SECONDS:
            return max(1, math.ceil(updates * _STRETCH_SECONDS / run.seconds))
        updates *= 4


def _train(task: Task, plan: Plan, updates: int, *, device: str, folder: Path) -> Run:
    plan = with_target_out_of_reach(plan, plan.target or task.target)
    with tempfile.TemporaryDirectory() as aside:
        run = train(task, plan, aside, _SEED, updates, device=device)
    if run.outcome in {Outcome.INTERRUPTED, Outcome.TERMINATED}:
        terminated = run.outcome is Outcome.TERMINATED
        stopped = StudyStoppedError.at("while both sides were timed", folder, terminated=terminated)
        raise stopped
    if run.outcome is Outcome.DIVERGED:
        hint = "lower its learning rate, or match by examples"
        raise MeasurementError(f"timing: {run.message}", need="a side that trains", hint=hint)
    return run


@contextmanager
def _threads_of(workers: HowMany) -> Generator[None]:
    """As many threads as the runs will have."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if workers == 1 else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
