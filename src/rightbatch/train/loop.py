"""The training run: checked, begun or resumed, gone through, and recorded with its outcome."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from rightbatch.core.errors import InvalidInputError, RightBatchError
from rightbatch.core.plan import Plan
from rightbatch.core.run import Outcome, Run
from rightbatch.core.schedule import rate_at
from rightbatch.tasks.task import Task
from rightbatch.train.adapt import BatchGrowth, MakeMeter
from rightbatch.train.check import check_options, check_plan, check_run
from rightbatch.train.checkpoint import Checkpoints
from rightbatch.train.distributed import Ranks
from rightbatch.train.folder import Start, check_folder, check_resumable
from rightbatch.train.mlflow import open_mlflow
from rightbatch.train.record import Progress, RunRecord
from rightbatch.train.sampler import Windows
from rightbatch.train.signals import StopRequests
from rightbatch.train.tensorboard import open_tensorboard
from rightbatch.train.training import DEFAULT_SAVING, End, Saving, Training
from rightbatch.train.trouble import in_words
from rightbatch.train.update import Updater


def train(  # noqa: PLR0913 - what a run is, and then how it is watched and kept
    task: Task,
    plan: Plan,
    run_dir: Path | str,
    seed: int = 0,
    max_updates: int | None = None,
    *,
    device: str = "cpu",
    on_progress: Callable[[Progress], None] | None = None,
    resume: bool = False,
    saving: Saving = DEFAULT_SAVING,
    meter: MakeMeter | None = None,
    shard: bool = False,
    tensorboard: bool = False,
    mlflow: bool = False,
    early_stopping: int | None = None,
) -> Run:
    """Train a fresh model by the plan; the same seed gives the same bits on one thread.

    Where torch.distributed has been initialised, all processes train together, each calling this.

    Args:
        task: what ``load_task`` gave.
        plan: made by a planner, or by ``Plan.from_recipe``.
        run_dir: a folder of this run's own.
        seed: of the initial weights, the order of the examples and random numbers.
        max_updates: stop after so many; the learning rate still follows the whole plan.
        device: as torch names it.
        on_progress: called at most ten times a second, and after every evaluation.
        resume: go on with the run in ``run_dir`` where its newest checkpoint stands, or at its start.
        saving: when checkpoints are made.
        meter: of the gradient noise while training, such as ``rb.NoiseMeter``; its estimates go to
            the metrics, and a batch schedule by noise follows them.
        shard: hold a part of weights, gradients and optimizer state in each process (FSDP2), where
            otherwise each holds all.
        tensorboard: write the lines of metrics as TensorBoard events too.
        early_stopping: end the run after so many evaluations in a row that are not better than the
            best, by the target's metric or one named ``loss``.
        mlflow: write them as a run in MLflow, at MLFLOW_TRACKING_URI or in the run's folder.

    Returns:
        What happened. A target reached, an interruption and a divergence are outcomes, not errors;
        an error within the run is on disk as the outcome ``failed``, and is raised.

    Raises:
        InvalidInputError: the plan does not fit the task, the folder holds another run or, to be
            resumed, none, a checkpoint is damaged or cannot be written, an update has no target, or
            the run cannot be sharded.
        InvalidTaskError: the task cannot be trained as it stands, or its code raised on the way.
        MissingPackageError: tensorboard or mlflow is asked for and not installed.
        KeyboardInterrupt: a second Ctrl-C; what was saved until then is kept.
    """
    check_options(task, seed, max_updates, saving.keep, early_stopping)
    ranks = Ranks.current()
    plan = check_plan(task, plan)
    if meter is None and BatchGrowth.of(plan) is not None:
        found, hint = "a batch that follows the noise, and no meter", "meter=rb.NoiseMeter"
        raise InvalidInputError(found, need="a meter of the noise", hint=hint)
    if shard:
        from rightbatch.train.sharding import check_sharding

        check_sharding(plan, ranks, has_meter=meter is not None)
    task = replace(task, target=plan.target or task.target)
    windows = Windows.of(plan, task.num_train_examples, seed, max_updates, ranks)
    # Before anything is built: this refuses a warmup that is longer than the run.
    rate_at(plan, plan.learning_rate, 0, windows.total_examples)
    path = Path(run_dir)
    start = Start(task=task.name, seed=seed, num_train_examples=task.num_train_examples)
    logs = [open_tensorboard()] if tensorboard else []
    logs += [open_mlflow(plan, start, resume=resume)] if mlflow else []
    checkpoints, saved = Checkpoints(path / "checkpoints", saving.keep), None
    if resume:
        if (ended := check_resumable(path, plan, start)) is not None:
            return ended
        saved = checkpoints.load()
    else:
        check_folder(path, checkpoints)
    ranks.barrier()  # every process has looked before the first one writes
    updater = Updater(
        task,
        plan,
        total_examples=windows.total_examples,
        seed=seed,
        device=device,
        ranks=ranks,
        every_parameter_used=check_run(
            task, plan, windows, device, stops_early=early_stopping is not None
        ),
        shard=shard,
    )
    record = RunRecord(
        path,
        total_examples=windows.last_example,
        on_progress=on_progress,
        checkpoints=checkpoints,
        writes=ranks.is_first,
        logs=logs,
    )
    with record:
        training = Training(task, windows, updater, record, saving, early_stopping)
        if meter is not None:
            training.meter = meter(updater.wrapped, updater.optimizer)
        if saved is None:
            record.begin(plan, start)
        else:
            training.go_on(*saved)

        end, error = _go(training)
        updater.discard()
        run = Run(
            task=task.name,
            outcome=end.outcome,
            message=end.message,
            seed=seed,
            global_batch_size=plan.global_batch_size,
            examples=record.examples,
            updates=record.updates,
            seconds=record.seconds,
            target=task.target,
            evaluations=tuple(record.evaluations),
            run_dir=record.path,
            skipped_updates=record.skipped,
            suspects=end.suspects,
        )
        if error is not None:
            with suppress(RightBatchError):  # of a full disk, say: the first error is to be told
                record.finish(run)
            raise error
        if end.outcome.can_resume:
            training.save()
        record.save_weights("final", updater.whole_model())
        if updater.averaged is not None:
            record.save_weights("ema", updater.averaged.module)
        record.finish(run)
    return run


def _go(training: Training) -> tuple[End, RightBatchError | None]:
    """How the run ended; after an error it has been saved, where that can be done."""
    stop = StopRequests()
    try:
        with stop.listening(), training.meter or nullcontext():
            return training.go(stop), None
    except Exception as raised:  # whatever the task's code does: the run has an outcome
        error = in_words(raised, training.record.updates)
        error.__cause__ = raised if error is not raised else raised.__cause__
        with suppress(Exception):  # a device or a disk may be what failed
            training.rescue()
        return End(Outcome.FAILED, f"{error.found}; need {error.need}: {error.hint}"), error
