"""``rightbatch train``: the training loop, by a plan or by today's recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rightbatch.cli.output import Answer, say
from rightbatch.cli.progress import train_bar
from rightbatch.cli.source import Flag, load
from rightbatch.core.errors import EXIT_DONE, EXIT_FINDING, EXIT_INTERRUPTED
from rightbatch.core.plan import Plan
from rightbatch.core.run import Outcome, Run
from rightbatch.core.units import format_seconds

if TYPE_CHECKING:
    from rightbatch.tasks.task import Task

OUTCOME = "outcome.json"
_EXIT_CODES = {Outcome.DIVERGED: EXIT_FINDING, Outcome.INTERRUPTED: EXIT_INTERRUPTED}

_WHAT_NOW = {Outcome.INTERRUPTED: " The same command with another --run trains from the start."}


def train(
    task: str,
    /,
    *,
    plan: Path | None = None,
    run: Path | None = None,
    device: str = "cpu",
    seed: int = 0,
    max_updates: int | None = None,
    json: Flag = False,
) -> Answer:
    """Train a task by a plan, or by its recipe of today.

    Args:
        task: A built-in name, my_task.py[:name] or package.module:name.
        plan: A plan.toml; without it, today's recipe is trained.
        run: New folder; without it, the next free runs/plan or rightbatch-NAME/runs/recipe.
        device: Where to train, as torch names it: cpu, cuda, cuda:1.
        seed: Of the initial weights, the order of the examples and everything else random.
        max_updates: Stop after so many optimizer steps; the schedule still sees the whole plan.
        json: Print one JSON document on stdout.
    """
    from rightbatch.plan.toml import read_plan

    chosen = read_plan(plan) if plan else None
    loaded = load(task, device)
    used = chosen or Plan.from_recipe(loaded.recipe, loaded.name)
    usual = plan.parent / "runs" / plan.stem if plan else Path(f"rightbatch-{loaded.name}/runs/recipe")
    folder = run or run_folders(usual)[-1]
    return run_answer(
        train_task(loaded, used, folder, device=device, seed=seed, max_updates=max_updates)
    )


def run_folders(first: Path) -> list[Path]:
    """Folders of the finished runs of one kind (plan, plan-2, ...), and last the one that is free."""
    paths = [first]
    while (paths[-1] / OUTCOME).exists():
        paths.append(first.with_name(f"{first.name}-{len(paths) + 1}"))
    return paths


def train_task(
    task: Task, plan: Plan, run_dir: Path, *, device: str, seed: int, max_updates: int | None = None
) -> Run:
    """Train with a progress bar on stderr."""
    from rightbatch.train.loop import train as train_by_plan

    say(f"training {task.name} into {run_dir}: global {plan.global_batch_size} = {plan.split}")
    with train_bar() as on_progress:
        return train_by_plan(
            task, plan, run_dir, seed, max_updates, device=device, on_progress=on_progress
        )


def run_answer(run: Run) -> Answer:
    """What a run did, with its exit code: divergence is a finding."""
    metrics = "".join(f", {name} {value:.4g}" for name, value in run.metrics.items())
    cost = f"{run.updates:,} updates in {format_seconds(run.seconds)}{metrics}"
    return Answer(
        document={
            "task": run.task,
            "outcome": run.outcome.value,
            "message": run.message,
            "examples": run.examples,
            "updates": run.updates,
            "seconds": run.seconds,
            "metrics": run.metrics,
            "target_reached": run.target_reached,
            "seed": run.seed,
            "run_dir": str(run.run_dir),
        },
        text=(f"Run: {run.message}; {cost}; saved in {run.run_dir}.{_WHAT_NOW.get(run.outcome, '')}",),
        exit_code=_EXIT_CODES.get(run.outcome, EXIT_DONE),
    )
