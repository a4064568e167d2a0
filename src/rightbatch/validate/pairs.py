"""The runs of a comparison: both sides for one seed after the other, each run once and for good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import nn
from torch.utils.data import DataLoader, Subset

from rightbatch.core.comparison import CompletedRun, SideName
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.progress import OnProgress
from rightbatch.core.recipe import Target
from rightbatch.core.run import Evaluation, Outcome, Run
from rightbatch.tasks.check import evaluate
from rightbatch.tasks.order import fixed_sample
from rightbatch.tasks.task import Task
from rightbatch.train.loop import train
from rightbatch.train.normalization import planned_model
from rightbatch.train.record import Progress
from rightbatch.validate.allowance import Allowance
from rightbatch.validate.ledger import LEDGER, StudyStoppedError, finished, open_ledger
from rightbatch.validate.sides import with_target_out_of_reach
from rightbatch.validate.smoothing import smoothed
from rightbatch.validate.work import Board, Job, Tell, once, run_chains
from rightbatch.validate.workers import HowMany, workers_for

GAP_EXAMPLES = 10_000
"""Most training examples that the gap looks at; the same ones for every run."""
SIDES: tuple[SideName, SideName] = ("reference", "candidate")

Inspect = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What the runs of a comparison need."""

    task: Task
    candidate: Plan
    reference: Plan
    target: Target | None
    seeds: int
    device: str
    folder: Path
    inspect: Inspect | None = None
    """Looks at the final weights of a run, for sharpness."""
    on_progress: OnProgress | None = None
    sides: tuple[SideName, ...] = SIDES
    """Those that are run here."""
    label_smoothing: float = 0.0
    """Given to the loss of every run."""
    allowance: Allowance = field(default_factory=Allowance)
    """For new runs; once it ends, only runs that were finished earlier are left."""
    workers: HowMany = 1


@dataclass(frozen=True, slots=True)
class RunJob:
    """One run to make."""

    side: SideName
    seed: int

    @property
    def key(self) -> str:
        """Its name in the ledger."""
        return f"{self.side}, seed {self.seed}"


def run_pairs(study: Study) -> list[CompletedRun]:
    """Every run, made now or finished earlier, the two of one seed after each other.

    Raises:
        StudyStoppedError: Ctrl-C or SIGTERM; the runs in flight are saved where they stand.
    """
    jobs = [RunJob(side, seed) for seed in range(study.seeds) for side in study.sides]
    board = Board("validate", len(jobs), study.on_progress)
    folder = study.folder.absolute()  # as every process sees it
    alone = replace(study, folder=folder, on_progress=None, allowance=Allowance())
    crew = workers_for(
        study.workers,
        partial(_run_one, alone),
        board,
        task=study.task,
        device=study.device,
        folder=study.folder,
    )
    with open_ledger(study.folder / LEDGER) as ledger, crew as workers:
        done = run_chains(
            map(once, jobs),
            CompletedRun,
            workers=workers,
            ledger=ledger,
            board=board,
            may_start=study.allowance.take,
        )
        runs = {job.key: run for job, run in done}
    return [runs[job.key] for job in jobs if job.key in runs]


def _run_one(study: Study, job: Job, tell: Tell) -> CompletedRun:
    """Train one run to its end and look at what came out.

    Raises:
        InvalidInputError: the study's folder is not on this machine.
        StudyStoppedError: it was stopped.
    """
    assert isinstance(job, RunJob)
    if not study.folder.is_dir():
        found, hint = f"no folder {study.folder} where a worker runs", "--out on a shared disk"
        raise InvalidInputError(found, need="a disk that every worker sees", hint=hint)
    task = smoothed(study.task, study.label_smoothing)
    plan = study.candidate if job.side == "candidate" else study.reference
    folder = study.folder / "runs" / f"{job.side}-seed{job.seed}"

    def show(progress: Progress) -> None:
        tell(progress.examples / progress.total_examples, f"loss {progress.loss:.4g}")

    run = finished(folder / "outcome.json", Run)
    if run is None or run.outcome.can_resume:
        run = train(
            task,
            with_target_out_of_reach(plan, study.target),
            folder,
            job.seed,
            device=study.device,
            on_progress=show,
            resume=(folder / "start.json").exists(),
        )
    if run.outcome.can_resume:
        terminated = run.outcome is Outcome.TERMINATED
        stopped = StudyStoppedError.at(f"in {folder.name}", study.folder, terminated=terminated)
        raise stopped
    ended = run.outcome is not Outcome.DIVERGED and bool(run.metrics)
    model = _final_model(task, plan, folder, study.device) if ended else None
    reached = _first_reached(run.evaluations, study.target)
    return CompletedRun(
        side=job.side,
        seed=job.seed,
        outcome=run.outcome,
        message=run.message,
        examples=run.examples,
        updates=run.updates,
        seconds=run.seconds,
        metrics=run.metrics if ended else {},
        train_metrics=_on_training_data(task, plan, model, study.device) if model else {},
        examples_to_target=reached[0] if reached else None,
        seconds_to_target=reached[1] if reached else None,
        met_at_first=reached is not None and reached[0] == run.evaluations[0].examples,
        sharpness=study.inspect(model) if model and study.inspect else None,
        run_dir=folder.relative_to(study.folder),
    )


def _final_model(task: Task, plan: Plan, folder: Path, device: str) -> nn.Module:
    """The weights that the last evaluation saw: averaged where the plan averages."""
    from safetensors.torch import load_file

    name = "ema" if plan.ema_decay is not None else "final"
    model = planned_model(task, plan, device)
    model.load_state_dict(load_file(folder / "checkpoints" / f"{name}.safetensors"))
    return model.to(device)


def _on_training_data(task: Task, plan: Plan, model: nn.Module, device: str) -> dict[str, float]:
    """The task's metrics on training examples, as many as validation has, in eval mode."""
    count = min(task.num_train_examples, max(1, task.num_valid_examples), GAP_EXAMPLES)
    subset = Subset(task.train_data, fixed_sample(task.num_train_examples, count))
    size = min(count, plan.micro_batch_size)
    loader = DataLoader(subset, batch_size=max(size, min(count, 64)), collate_fn=task.collate)
    return evaluate(task, model, loader, device, precision=plan.precision)


def _first_reached(
    evaluations: Sequence[Evaluation], target: Target | None
) -> tuple[float, float] | None:
    """Examples and seconds at which the target was first met, on the line between two evaluations."""
    if target is None:
        return None
    met = [target.is_reached(made.metrics[target.metric]) for made in evaluations]
    if True not in met:
        return None
    first = met.index(True)
    now = evaluations[first]
    if first == 0:
        return float(now.examples), now.seconds
    before = evaluations[first - 1]
    at = (before.metrics[target.metric], now.metrics[target.metric])
    share = (target.value - at[0]) / (at[1] - at[0])
    return (
        before.examples + share * (now.examples - before.examples),
        before.seconds + share * (now.seconds - before.seconds),
    )
