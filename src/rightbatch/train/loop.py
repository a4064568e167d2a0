"""The training run: one update after another, evaluation after every epoch, an outcome at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.run import Outcome, Run
from rightbatch.core.schedule import rate_at
from rightbatch.tasks.check import evaluate
from rightbatch.tasks.task import Task
from rightbatch.train.accumulate import WindowGradient
from rightbatch.train.check import check_plan, check_run
from rightbatch.train.record import Progress, RunRecord
from rightbatch.train.sampler import Windows, train_loader, valid_loader
from rightbatch.train.update import InterruptGuard, Updater


def train(
    task: Task,
    plan: Plan,
    run_dir: Path | str,
    seed: int = 0,
    max_updates: int | None = None,
    *,
    device: str = "cpu",
    on_progress: Callable[[Progress], None] | None = None,
) -> Run:
    """Train a fresh model by the plan; the same seed gives the same bits on one thread.

    Args:
        task: what ``load_task`` gave.
        plan: made by a planner, or by ``Plan.from_recipe``.
        run_dir: a folder of this run's own.
        seed: of the initial weights, the order of the examples and torch's random numbers.
        max_updates: stop after so many; the learning rate still follows the whole plan.
        device: as torch names it.
        on_progress: called at most ten times a second, and after every evaluation.

    Returns:
        What happened. A target reached, an interruption and a divergence are outcomes, not errors.

    Raises:
        InvalidInputError: the plan does not fit the task, the folder holds a run already, or an
            update has no target at all.
        InvalidTaskError: the task cannot be trained as it stands.
    """
    if seed < 0 or (max_updates is not None and max_updates < 1):
        found, hint = f"seed = {seed}, max_updates = {max_updates}", "change the one that is less"
        raise InvalidInputError(found, need="seed >= 0 and max_updates >= 1 or None", hint=hint)
    plan = check_plan(task, plan)
    whole = Windows.of(plan, task.num_train_examples, seed)
    # Before anything is built: this refuses a warmup that is longer than the run.
    rate_at(plan, plan.learning_rate, 0, whole.total_examples)
    windows = Windows.of(plan, task.num_train_examples, seed, max_updates)
    check_run(task, windows, device)
    updater = Updater(task, plan, total_examples=whole.total_examples, seed=seed, device=device)
    with RunRecord(Path(run_dir), plan, windows.total_examples, on_progress) as record:
        guard = InterruptGuard()
        try:
            with guard.installed():
                outcome, message = _run(task, windows, updater, record, guard)
        except KeyboardInterrupt:
            outcome = Outcome.INTERRUPTED
            message = f"interrupted; the weights are those after update {record.updates}"
        updater.discard()
        record.save_weights("final", updater.model)
        if updater.averaged is not None:
            record.save_weights("ema", updater.averaged.module)
        run = Run(
            task=task.name,
            outcome=outcome,
            message=message,
            seed=seed,
            global_batch_size=plan.global_batch_size,
            examples=record.examples,
            updates=record.updates,
            seconds=record.seconds,
            target=task.target,
            evaluations=tuple(record.evaluations),
            run_dir=record.path,
        )
        record.finish(run)
    return run


def _run(
    task: Task, windows: Windows, updater: Updater, record: RunRecord, guard: InterruptGuard
) -> tuple[Outcome, str]:
    """Train to the target, the end or a divergence; say which, and what to do."""
    batches = iter(train_loader(task, windows, updater.device))
    validation = valid_loader(task, windows, updater.device)
    started, evaluating = perf_counter(), 0.0
    for window in windows:
        gradient = updater.accumulate(window, batches)
        if not gradient.is_finite:
            return Outcome.DIVERGED, _divergence(gradient, record)
        with guard:
            rate = updater.step(gradient.norm, record.examples + window.num_examples / 2)
            seconds = perf_counter() - started - evaluating
            record.add_update(window.num_examples, gradient, rate, seconds)
        if validation is None or not window.ends_epoch:
            continue
        before = perf_counter()
        metrics = evaluate(
            task, updater.evaluated, validation, updater.device, precision=updater.plan.precision
        )
        evaluating += perf_counter() - before
        if bad := [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]:
            where = f"evaluation after update {record.updates} gave {', '.join(bad)}"
            return Outcome.DIVERGED, f"{where}; check `evaluate`, or lower learning_rate"
        record.add_evaluation(metrics)
        target = task.target
        if target is not None and target.is_reached(metrics[target.metric]):
            return Outcome.TARGET_REACHED, f"{target} reached after {record.examples} examples"
    if windows.total_examples < updater.total_examples:
        left = updater.total_examples - windows.total_examples
        return Outcome.STOPPED, f"stopped at max_updates = {record.updates}, {left} examples early"
    missed = "" if task.target is None else f" without reaching {task.target}"
    return Outcome.FINISHED, f"all {record.examples} examples processed{missed}"


def _divergence(gradient: WindowGradient, record: RunRecord) -> str:
    """What was not finite, and what to try."""
    found = f"loss {gradient.mean:g} with gradient norm {gradient.norm:g} at update"
    advice = "lower learning_rate, lengthen warmup_examples or set clip_norm"
    if record.updates == 0:
        advice = "check the data and the loss; a mean over 0 targets is nan, rb.Loss is not"
    return f"{found} {record.updates + 1}; the weights are those before it: {advice}"
