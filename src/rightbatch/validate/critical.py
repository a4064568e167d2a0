"""Critical batch size by branched training: up to which batch does the loss keep up?

From one point of training, weights and optimizer state and all, branches go on at batch k x today's
with the rate that the rule gives, over the same examples in the same order; B* is the largest batch
whose loss at the end keeps up (Merrill et al. 2025, arXiv:2505.23971, Sec. 3.1). Where the paper
compares single runs within a tolerance, one-sided tests on paired seeds show on which side of it a
batch lies, and what they leave open is the interval.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Subset

from rightbatch.core.errors import MeasurementError
from rightbatch.core.facts import TaskFacts
from rightbatch.core.progress import OnProgress
from rightbatch.core.record import SCHEMA_VERSION, Record
from rightbatch.core.store import write_record
from rightbatch.core.sweep import BranchPoint, Critical, Definition
from rightbatch.measure.branches import trained_trunk
from rightbatch.measure.pilot import Pilot
from rightbatch.tasks.check import check_task, evaluate
from rightbatch.tasks.order import fixed_sample
from rightbatch.tasks.task import Task
from rightbatch.validate.branching import branch, plan_for
from rightbatch.validate.critical_question import LOOKS, CriticalQuestion, pose_question, rate_share
from rightbatch.validate.ledger import LEDGER, open_ledger, same_question, sole_owner
from rightbatch.validate.one_sided import Bounds, keeps_up
from rightbatch.validate.saved_run import restored_trunk
from rightbatch.validate.work import Board, Job, Tell, once, run_chains
from rightbatch.validate.workers import HowMany, workers_for

CRITICAL = "critical.json"
LEVEL = 0.05
EVALUATED = 2000
"""Training examples that the loss is taken over, the same ones for every branch."""
_EVALUATION_BATCH = 500


class Branches(Record):
    """Losses of one seed at one point, by batch size; None where a branch diverged."""

    schema_version: Literal[1] = SCHEMA_VERSION
    losses: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class BranchJob:
    """All branches of one seed from one point."""

    point: int
    """Examples seen before."""
    seed: int

    @property
    def key(self) -> str:
        """Its name in the ledger."""
        return f"after {self.point} examples, seed {self.seed}"


class _Setting(NamedTuple):
    task: Task
    facts: TaskFacts
    asked: CriticalQuestion
    manifests: Mapping[int, Path]
    evaluated: list[Any]


def measure_critical(  # noqa: PLR0913 - what is measured, and then how
    task: Task,
    batch_sizes: Sequence[int],
    *,
    out: Path | str,
    points: Sequence[float] | Mapping[int, Path] = (0.05, 0.2, 0.5),
    seeds: int = 5,
    tolerance: float = 0.05,
    workers: HowMany = 1,
    device: str = "cpu",
    on_progress: OnProgress | None = None,
) -> Critical:
    """Branch at several points of today's recipe; a second call goes on.

    Args:
        task: what ``load_task`` gave.
        batch_sizes: each the double of the one before.
        out: folder of the work.
        points: shares of the recipe's run at which branches begin; or checkpoints by examples seen,
            as ``read_run`` gives them with the task.
        seeds: of weights and order, from checkpoints of order alone; branches of one seed are paired.
        tolerance: rise of the loss, as a share of it, that does not count.
        workers: processes to train in, or ``ray``.
        device: as torch names it.
        on_progress: called while the branches go on.

    Raises:
        InvalidInputError: batch sizes that do not double or exceed the data, a point outside the
            run or where the schedule has ended, fewer than 2 seeds, a checkpoint that does not fit
            the task, or a folder that was begun with another question.
        MeasurementError: today's recipe diverges, or the smallest batch does.
    """
    facts, folder = check_task(task, device), Path(out)
    asked = pose_question(facts, batch_sizes, points, seeds, tolerance, device)
    subset = Subset(task.train_data, fixed_sample(task.num_train_examples, EVALUATED))
    evaluated = list(DataLoader(subset, batch_size=_EVALUATION_BATCH, collate_fn=task.collate))
    manifests = points if isinstance(points, Mapping) else {}
    setting = _Setting(task, facts, asked, manifests, evaluated)
    with sole_owner(folder):
        same_question(folder / "question.json", asked, frozenset({"seeds"}))
        found = _summarise(asked, _run(setting, folder, workers, on_progress))
        write_record(folder / CRITICAL, found)
    return found


def _run(
    setting: _Setting, folder: Path, workers: HowMany, on_progress: OnProgress | None
) -> dict[int, list[tuple[float | None, ...]]]:
    """Losses by point and seed, measured now or by an earlier call."""
    task, asked = setting.task, setting.asked
    jobs = [BranchJob(point, seed) for seed in range(asked.seeds) for point in asked.points]
    board = Board("critical", len(jobs), on_progress)
    do = partial(_branches, setting)
    crew = workers_for(workers, do, board, task=task, device=asked.device, folder=folder)
    with open_ledger(folder / LEDGER) as ledger, crew as hands:
        done = run_chains(map(once, jobs), Branches, workers=hands, ledger=ledger, board=board)
        losses = {job.key: found.losses for job, found in done}
    rows: dict[int, list[tuple[float | None, ...]]] = {point: [] for point in asked.points}
    for job in jobs:
        rows[job.point].append(losses[job.key])
    return rows


def _branches(setting: _Setting, job: Job, tell: Tell) -> Branches:
    """Train every branch of one seed from one point."""
    assert isinstance(job, BranchJob)
    task, asked = setting.task, setting.asked
    if manifest := setting.manifests.get(job.point):
        trunk = restored_trunk(task, manifest, device=asked.device, seed=job.seed)
    else:
        trunk = trained_trunk(task, job.point, device=asked.device, seed=job.seed)
    share = rate_share(setting.facts, asked, job.point)
    losses: list[float | None] = []
    for number, size in enumerate(asked.batch_sizes):
        tell(number / len(asked.batch_sizes), f"batch {size}")
        losses.append(_branch_loss(setting, trunk, size, share))
    return Branches(losses=tuple(losses))


def _branch_loss(setting: _Setting, trunk: Pilot, size: int, share: float) -> float | None:
    """Mean training loss of the weights over the looks in the last quarter of a branch."""
    run = branch(trunk, plan_for(setting.facts, size), share)
    total = setting.asked.window_examples
    last = total // LOOKS
    looks = min(LOOKS, last // size)
    stretches = [total - last, *(size * n for n in _shares(last // size, looks))]
    losses: list[float] = []
    for place, stretch in enumerate(stretches):
        run.train(stretch)
        if run.diverged:
            return None
        if place:
            losses.append(_loss(setting, run.model))
    mean = math.fsum(losses) / len(losses)
    return mean if math.isfinite(mean) else None


def _shares(updates: int, parts: int) -> list[int]:
    """Cut a number of updates into parts as even as they can be."""
    ends = [updates * n // parts for n in range(parts + 1)]
    return [b - a for a, b in itertools.pairwise(ends)]


def _loss(setting: _Setting, model: Any) -> float:
    """The task's mean loss in evaluation mode, whatever metric the task has."""
    plain = replace(setting.task, evaluate=None)
    return evaluate(plain, model, setting.evaluated, setting.asked.device)["loss"]


def _shares_of(rise: Bounds) -> tuple[float, float, float] | None:
    """A log ratio and its bounds as shares."""
    if not math.isfinite(rise.value):
        return None
    return math.expm1(rise.value), math.expm1(rise.low), math.expm1(rise.high)


def _summarise(asked: CriticalQuestion, rows: dict[int, list[tuple[float | None, ...]]]) -> Critical:
    """Test every point, and name what was found at the last.

    Raises:
        MeasurementError: the smallest batch, which all others are held against, diverged, or a loss is
            not positive.
    """
    points: list[BranchPoint] = []
    for seen, losses in rows.items():
        values = np.array([[math.inf if v is None else v for v in row] for row in losses], float)
        if not np.isfinite(values[:, 0]).all():
            found = f"branches at batch {asked.batch_sizes[0]} after {seen:,} examples diverged"
            hint = "lower Recipe.lr, or begin with a larger batch: --batch 32:1024"
            raise MeasurementError(found, need="a smallest batch that trains", hint=hint)
        if not (values > 0).all():
            found, hint = f"a mean loss of {values.min():.3g}", "add a constant to the loss"
            raise MeasurementError(found, need="positive losses, whose ratio says something", hint=hint)
        shown = keeps_up(values, tolerance=math.log1p(asked.tolerance), level=LEVEL)
        sizes = asked.batch_sizes
        points.append(
            BranchPoint(
                examples_seen=seen,
                batch_sizes=sizes,
                losses=tuple(losses),
                rises=tuple(_shares_of(rise) for rise in shown.rises),
                passed=sizes[shown.passed],
                worse=None if shown.worse is None else sizes[shown.worse],
            )
        )
    last = points[-1]
    low, high = last.passed, last.worse
    return Critical(
        task=asked.task,
        seeds=asked.seeds,
        window_examples=asked.window_examples,
        tolerance=asked.tolerance,
        level=LEVEL,
        checkpoints=asked.checkpoints,
        definition=Definition(
            name="B*",
            value=None if high is None else math.sqrt(low * high),
            low=float(low),
            high=None if high is None else float(high),
            meaning=f"largest batch whose loss after the same examples from one point is at most"
            f" {asked.tolerance:.0%} above that of batch {asked.batch_sizes[0]}",
            source="Merrill et al. 2025, arXiv:2505.23971, Sec. 3.1",
        ),
        points=tuple(points),
    )
