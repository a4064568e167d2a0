"""``rightbatch train``: the training loop, by a plan or by today's recipe, on one device or many."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from rightbatch.cli.output import Answer, say
from rightbatch.cli.progress import train_bar
from rightbatch.cli.source import Flag, load, option, parse_target
from rightbatch.core.errors import EXIT_DONE, EXIT_FINDING, EXIT_INTERRUPTED, InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.run import Outcome, Run
from rightbatch.core.store import read_json, read_record
from rightbatch.core.units import format_seconds, parse_interval

if TYPE_CHECKING:
    from rightbatch.tasks.task import Task

OUTCOME = "outcome.json"
_PLAN, _START = "plan.json", "start.json"
_EVERY, _KEEP = "10m", 2
_EXIT_TERMINATED = 143  # 128 + SIGTERM, as shells report it
_EXIT_CODES = {
    Outcome.DIVERGED: EXIT_FINDING,
    Outcome.INTERRUPTED: EXIT_INTERRUPTED,
    Outcome.TERMINATED: _EXIT_TERMINATED,
}


def train(  # noqa: PLR0913 - each its own
    task: str,
    /,
    *,
    plan: Path | None = None,
    run: Annotated[Path | None, Parameter(name=("--run", "--run-dir"))] = None,
    device: str = "cpu",
    seed: int | None = None,
    max_updates: int | None = None,
    early_stopping: int | None = None,
    target: str | None = None,
    resume: Flag = False,
    checkpoint_every: str = _EVERY,
    keep: int = _KEEP,
    noise: Flag = False,
    shard: Flag = False,
    tensorboard: Flag = False,
    mlflow: Flag = False,
    check: Flag = False,
    pin_malloc: Flag = False,
    json: Flag = False,
) -> Answer:
    """Train a task by a plan, or by its recipe of today.

    On many devices: torchrun --nproc-per-node 4 -m rightbatch train TASK --run-dir DIR

    Args:
        task: A built-in name, my_task.py[:name] or package.module:name.
        plan: A plan.toml; without it, today's recipe is trained.
        run: New folder; without it, the next free runs/plan or rightbatch-NAME/runs/recipe. torchrun
            mistakes --run for an option of its own: write --run-dir.
        device: Where to train, as torch names it: cpu, cuda, cuda:1.
        seed: Of the initial weights, the order of the examples and all else random; 0 if not given.
        max_updates: Stop after so many optimizer steps; the schedule still sees the whole plan.
        early_stopping: End after so many evaluations in a row that are no better than the best.
        target: End at this instead of the task's or plan's: accuracy=0.98, or loss<=0.1 in quotes.
        resume: Go on with the run in that folder, or the newest one, where it was stopped or killed.
        checkpoint_every: Longest time to lose, such as 90s or 10m; 0s saves after every update.
        keep: Checkpoints that are kept, the newest ones.
        noise: Meter the gradient noise on the way; where the plan's batch follows it, this is on.
        shard: Keep a part of weights, gradients and optimizer state in each process (FSDP2), not all.
        tensorboard: Write TensorBoard events into the run's folder too; needs 'rightbatch[logs]'.
        mlflow: Log to MLflow too, at MLFLOW_TRACKING_URI or in the folder; needs 'rightbatch[mlflow]'.
        check: Instead of training, prove in float64 that accumulation is exact for this task.
        pin_malloc: Return large blocks of memory to the system at once, on the CPU.
        json: Print one JSON document on stdout.
    """
    if pin_malloc:  # before torch's first tensor: only then it reads what to ask the system for
        from rightbatch.measure.memory.malloc import pin_malloc as pin

        pin()
    if check:
        _refuse_beside_check(
            run=run,
            max_updates=max_updates,
            early_stopping=early_stopping,
            target=target,
            resume=resume,
            checkpoint_every=checkpoint_every != _EVERY,
            keep=keep != _KEEP,
            noise=noise,
            shard=shard,
            tensorboard=tensorboard,
            mlflow=mlflow,
        )
    from rightbatch.plan.toml import read_plan

    chosen = read_plan(plan) if plan else None
    loaded = load(task, device)
    if check:
        return _check(loaded, chosen, device, seed or 0)
    from rightbatch.train.distributed import restart_count
    from rightbatch.train.loop import Saving

    saving = Saving(seconds=option("--checkpoint-every", parse_interval, checkpoint_every), keep=keep)
    usual = plan.parent / "runs" / plan.stem if plan else Path(f"rightbatch-{loaded.name}/runs/recipe")
    is_restart = restart_count() > 0
    folder = run or _newest_or_free(usual, resume=resume or is_restart)
    resume = resume or (is_restart and (folder / _START).exists())
    used = chosen or Plan.from_recipe(loaded.recipe, loaded.name)
    if resume and (folder / _START).exists():
        if chosen is None:
            used = read_record(folder / _PLAN, Plan)
        if seed is None:
            seed = int(read_json(folder / _START).get("seed", 0))
    if target:
        used = used.replace(target=parse_target(target, used.target or loaded.target))
    return run_answer(
        train_task(
            loaded,
            used,
            folder,
            device=device,
            seed=seed or 0,
            max_updates=max_updates,
            early_stopping=early_stopping,
            resume=resume,
            saving=saving,
            noise=noise,
            shard=shard,
            tensorboard=tensorboard,
            mlflow=mlflow,
        )
    )


def run_folders(first: Path) -> list[Path]:
    """Folders of the finished runs of one kind (plan, plan-2, ...), and last the one that is free."""
    paths = [first]
    while (paths[-1] / OUTCOME).exists():
        paths.append(first.with_name(f"{first.name}-{len(paths) + 1}"))
    return paths


def _newest_or_free(first: Path, *, resume: bool) -> Path:
    """The folder that a new run takes, or the newest run of those that took one."""
    *earlier, free = run_folders(first)
    return earlier[-1] if resume and earlier and not (free / _START).exists() else free


def train_task(
    task: Task,
    plan: Plan,
    run_dir: Path,
    *,
    device: str,
    seed: int,
    noise: bool = False,
    **how: Any,
) -> Run:
    """Train with a progress bar on stderr, together with the other processes of this job.

    Raises:
        SystemExit: in every process but the first, when the run has ended.
    """
    from rightbatch.train.distributed import Ranks, process_group
    from rightbatch.train.loop import train as train_by_plan
    from rightbatch.train.sampler import describe_split

    schedule = plan.batch_schedule
    if noise or (schedule is not None and schedule.kind == "noise"):
        from rightbatch.measure.meter.noise_meter import NoiseMeter

        shuffled = task.recipe.sampler == "shuffle"
        how["meter"] = partial(NoiseMeter, population=task.num_train_examples if shuffled else None)
    with process_group(device) as own_device:
        ranks = Ranks.current()
        if ranks.is_first:
            split = describe_split(plan.global_batch_size, plan.micro_batch_size, ranks.count)
            say(f"training {task.name} into {run_dir}: {split}")
        with train_bar() as on_progress:
            run = train_by_plan(
                task, plan, run_dir, seed, device=own_device, on_progress=on_progress, **how
            )
    if not ranks.is_first:
        raise SystemExit(_EXIT_CODES.get(run.outcome, EXIT_DONE))
    return run


def run_answer(run: Run) -> Answer:
    """What a run did, with its exit code: divergence is a finding."""
    metrics = "".join(f", {name} {value:.4g}" for name, value in run.metrics.items())
    cost = f"{run.updates:,} updates in {format_seconds(run.seconds)}{metrics}"
    now = ""
    if run.outcome.can_resume:
        more = " and a larger --max-updates" if run.outcome is Outcome.STOPPED else ""
        now = f" The same command with --run {run.run_dir} --resume{more} goes on."
    return Answer(
        document={
            "task": run.task,
            "outcome": run.outcome.value,
            "message": run.message,
            "examples": run.examples,
            "updates": run.updates,
            "skipped_updates": run.skipped_updates,
            "seconds": run.seconds,
            "metrics": run.metrics,
            "target_reached": run.target_reached,
            "seed": run.seed,
            "run_dir": str(run.run_dir),
        },
        text=(f"Run: {run.message}; {cost}; saved in {run.run_dir}.{now}",),
        exit_code=_EXIT_CODES.get(run.outcome, EXIT_DONE),
    )


def _refuse_beside_check(**training: object) -> None:
    """Options of a run mean nothing to a check, which trains nothing.

    Raises:
        InvalidInputError: one was given.
    """
    if given := [f"--{name.replace('_', '-')}" for name, value in training.items() if value]:
        found, hint = f"--check with {', '.join(given)}", "leave them out, or train without --check"
        raise InvalidInputError(found, need="options that a check has", hint=hint)


def _check(task: Task, plan: Plan | None, device: str, seed: int) -> Answer:
    """Whether accumulation is exact; what breaks it is a finding."""
    from rightbatch.train.exact import check_accumulation, split_sizes

    finding = check_accumulation(task, plan, device=device, seed=seed)
    sizes = split_sizes(task, plan)
    exact = f"exact: {sum(sizes)} examples in micro-batches of {', '.join(map(str, sizes))} have the"
    return Answer(
        document={
            "task": task.name,
            "micro_batch_sizes": list(sizes),
            "finding": None if finding is None else finding.model_dump(mode="json"),
        },
        text=(str(finding) if finding else f"{exact} gradient of the one batch, in float64.",),
        exit_code=EXIT_DONE if finding is None else EXIT_FINDING,
    )
