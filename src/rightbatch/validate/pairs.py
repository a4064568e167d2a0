"""The runs of a comparison: both sides for one seed after the other, each run once and for good."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn
from torch.utils.data import DataLoader, Subset

from rightbatch.core.comparison import CompletedRun, SideName
from rightbatch.core.plan import Plan
from rightbatch.core.progress import OnProgress, Progress
from rightbatch.core.recipe import Target
from rightbatch.core.run import Evaluation, Outcome, Run
from rightbatch.core.store import write_record
from rightbatch.tasks.check import evaluate
from rightbatch.tasks.task import Task
from rightbatch.train.loop import train
from rightbatch.train.normalization import planned_model
from rightbatch.train.record import Progress as TrainProgress
from rightbatch.validate.ledger import StudyStoppedError, finished
from rightbatch.validate.sides import with_target_out_of_reach

GAP_EXAMPLES = 10_000
"""Most training examples that the gap looks at; the same ones for every run."""
_SIGTERM_EXIT = 143  # 128 + SIGTERM
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


def run_pairs(study: Study) -> Iterator[CompletedRun]:
    """Yield every run, made now or finished earlier, the two of one seed after each other.

    Raises:
        StudyStoppedError: Ctrl-C or SIGTERM; the run in flight is saved where it stands.
    """
    jobs: list[tuple[int, SideName]] = [(seed, side) for seed in range(study.seeds) for side in SIDES]
    clock = _Clock(len(jobs), study.on_progress)
    for done, (seed, name) in enumerate(jobs):
        folder = study.folder / "runs" / f"{name}-seed{seed}"
        kept = finished(folder / "result.json", CompletedRun)
        if kept is None:
            kept = _run_one(study, name, seed, folder, clock.of(done, f"{name}, seed {seed}"))
            write_record(folder / "result.json", kept)
        yield kept


def _run_one(
    study: Study,
    name: SideName,
    seed: int,
    folder: Path,
    on_progress: Callable[[TrainProgress], None] | None,
) -> CompletedRun:
    """Train one run to its end and look at what came out.

    Raises:
        StudyStoppedError: it was stopped.
    """
    task = study.task
    plan = study.candidate if name == "candidate" else study.reference
    run = finished(folder / "outcome.json", Run)
    if run is None or run.outcome.can_resume:
        run = train(
            task,
            with_target_out_of_reach(plan, study.target),
            folder,
            seed,
            device=study.device,
            on_progress=on_progress,
            resume=(folder / "start.json").exists(),
        )
    if run.outcome.can_resume:
        found = f"stopped by {'SIGTERM' if run.outcome is Outcome.TERMINATED else 'Ctrl-C'}"
        error = StudyStoppedError(
            f"{found} in {folder.name}",
            need="time for the runs that are left",
            hint=f"give the same command again: {study.folder} keeps every run, also this one",
        )
        if run.outcome is Outcome.TERMINATED:
            error.exit_code = _SIGTERM_EXIT
        raise error
    ended = run.outcome is not Outcome.DIVERGED and bool(run.metrics)
    model = _final_model(task, plan, folder, study.device) if ended else None
    reached = _first_reached(run.evaluations, study.target)
    return CompletedRun(
        side=name,
        seed=seed,
        outcome=run.outcome,
        message=run.message,
        examples=run.examples,
        updates=run.updates,
        seconds=run.seconds,
        metrics=run.metrics if ended else {},
        train_metrics=_on_training_data(task, plan, model, study.device) if model else {},
        examples_to_target=reached[0] if reached else None,
        seconds_to_target=reached[1] if reached else None,
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
    chosen = np.random.default_rng(0).permutation(task.num_train_examples)[:count]
    subset = Subset(task.train_data, [int(i) for i in chosen])
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


class _Clock:
    """How far all runs together are, and how long the rest may take at the pace so far."""

    def __init__(self, num_jobs: int, on_progress: OnProgress | None) -> None:
        self._num_jobs, self._on_progress = num_jobs, on_progress
        self._begun = time.monotonic()
        self._first: float | None = None  # what an earlier call had done took no time of this one

    def of(self, done: int, label: str) -> Callable[[TrainProgress], None] | None:
        """What one run reports to."""
        if self._on_progress is None:
            return None
        tell = self._on_progress

        def show(progress: TrainProgress) -> None:
            share = (done + progress.examples / progress.total_examples) / self._num_jobs
            if self._first is None:
                self._first = share
            passed = time.monotonic() - self._begun
            fresh = share - self._first
            left = passed * (1 - share) / fresh if fresh > 0 else None
            message = f"{label}, loss {progress.loss:.4g}"
            tell(Progress(stage="validate", fraction=share, seconds_left=left, message=message))

        return show
