"""What a run refuses before it starts, so that nothing fails or is lost hours later."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from rightbatch.core.errors import InvalidInputError, InvalidTaskError
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Target
from rightbatch.tasks.build import collate, compute_loss, to_device
from rightbatch.tasks.check import check_task, first_metrics
from rightbatch.tasks.task import Task
from rightbatch.train.normalization import planned_model
from rightbatch.train.sampler import Windows, split_evenly


def check_options(
    task: Task, seed: int, max_updates: int | None, keep: int, early_stopping: int | None
) -> None:
    """Refuse numbers that no run can have.

    Raises:
        InvalidInputError: one is too small, or early stopping has nothing to go by.
    """
    counts = {"max_updates": max_updates, "keep": keep, "early_stopping": early_stopping}
    least = {"seed": 0} | dict.fromkeys(counts, 1)
    given = {"seed": seed} | {name: value for name, value in counts.items() if value is not None}
    if small := [name for name, value in given.items() if value < least[name]]:
        found = ", ".join(f"{name} = {given[name]}" for name in small)
        need = " and ".join(f"{name} >= {least[name]}" for name in small)
        raise InvalidInputError(found, need=need, hint="leave it out for the default")
    if early_stopping is not None and task.valid_data is None:
        found, hint = "early stopping without valid_data", "give the task valid_data, or leave it out"
        raise InvalidInputError(found, need="evaluations to go by", hint=hint)


def check_plan(task: Task, plan: Plan) -> Plan:
    """Return the plan with its optimizer factory resolved, or refuse one made for something else.

    Raises:
        InvalidInputError: the plan is another task's, its batch is larger than the data, or its
            optimizer factory is not the recipe's.
    """
    if plan.task not in {"", task.name}:
        found = f"a plan for task {plan.task!r}, and task {task.name!r}"
        hint = f"plan again: rightbatch plan {task.name}"
        raise InvalidInputError(found, need="a plan made for this task", hint=hint)
    if plan.global_batch_size > task.num_train_examples:
        found = (
            f"global batch {plan.global_batch_size} with {task.num_train_examples} training examples"
        )
        hint = "lower global_batch_size in the plan, or batch_size in the recipe"
        raise InvalidInputError(found, need="a batch no larger than the data", hint=hint)
    if plan.schedule == "plateau" and task.valid_data is None:
        found, hint = "schedule plateau without valid_data", "use step, cosine or linear"
        raise InvalidInputError(found, need="evaluations to follow", hint=hint)
    if not isinstance(plan.optimizer, str) or ":" not in plan.optimizer:
        return plan
    if plan.optimizer != task.recipe.optimizer_name:
        found = f"optimizer {plan.optimizer!r}, while the recipe has {task.recipe.optimizer_name!r}"
        hint = "plan again, or name a torch.optim class in the plan"
        raise InvalidInputError(found, need="the factory of the task's recipe", hint=hint)
    return plan.replace(optimizer=task.recipe.optimizer)


def judge_of(target: Target | None, metrics: Iterable[str]) -> Target | None:
    """What evaluations are judged by: the target, or else a metric named ``loss``."""
    return target or (Target("loss", 0.0, higher_is_better=False) if "loss" in metrics else None)


def check_run(
    task: Task, plan: Plan, windows: Windows, device: str, *, stops_early: bool = False
) -> bool:
    """Check the task itself, that its weights can be saved, and that its smallest micro-batch runs.

    Returns:
        Whether the loss reaches every parameter that is trained, seen on two examples.

    Raises:
        InvalidTaskError: data, model, loss or metric is not usable, or the weights cannot be saved.
        InvalidInputError: BatchNorm cannot normalise the one example of some micro-batch, or no metric
            judges the evaluations that early stopping or the rate is to follow.
    """
    model = planned_model(task, plan, device)
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            found = f"state_dict() holds a {type(value).__name__} under {name!r}"
            hint = "return a tensor from get_extra_state(), or drop it"
            raise InvalidTaskError(found, need="tensors only, to be saved without pickle", hint=hint)
    check_task(task, device)
    if task.target is None and task.valid_data is not None:  # the target has just been evaluated
        metrics = first_metrics(task, model, device)
        if judge_of(None, metrics) is None and (stops_early or plan.schedule == "plateau"):
            what = "early stopping" if stops_early else "schedule plateau"
            found, hint = f"{what} and metrics {', '.join(metrics)}", "give the task a target"
            raise InvalidInputError(found, need="a target, or a metric named loss", hint=hint)
    if any(isinstance(module, _BatchNorm) for module in model.modules()):
        _check_lone_example(task, model, windows, device)
    return windows.ranks.count == 1 or _reaches_all(task, model, device)


def _reaches_all(task: Task, model: nn.Module, device: str) -> bool:
    """Whether one backward leaves a gradient in every parameter that is trained."""
    indices = range(min(2, task.num_train_examples))
    batch = to_device(collate(task, indices), device)
    compute_loss(task.loss, model, batch, num_examples=len(indices)).total.backward()
    return all(p.grad is not None for p in model.parameters() if p.requires_grad)


def _check_lone_example(task: Task, model: nn.Module, windows: Windows, device: str) -> None:
    """Try one example where some window leaves one alone; only some BatchNorm models fail on it.

    Raises:
        InvalidInputError: this one does.
        ValueError: the loss fails on one example for another reason.
    """
    splits = {
        size: split_evenly(size, windows.micro_batch_size, windows.ranks.count)
        for size in _window_sizes(windows)
    }
    lone = next((size for size, pieces in splits.items() if min(pieces) <= 1), None)
    if lone is None:
        return
    try:
        task.loss(model, to_device(collate(task, [0]), device))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        sizes = " and ".join(str(size) for size in sorted(set(splits[lone]), reverse=True))
        found = (
            "a micro-batch of 1 example, which BatchNorm cannot normalise:"
            f" {windows.num_train_examples} examples in updates of {windows.global_batch_size} come to"
            f" one of {lone}, in micro-batches of {sizes}"
        )
        hint = "change global_batch_size or micro_batch_size in the plan, or drop a training example"
        raise InvalidInputError(
            found, need="at least 2 examples in every micro-batch", hint=hint
        ) from error


def _window_sizes(windows: Windows) -> list[int]:
    """Every size that a window of the run has."""
    if windows.batch_schedule is not None:
        return list(dict.fromkeys(window.num_examples for window in windows))
    batch, num, total = windows.global_batch_size, windows.num_train_examples, windows.last_example
    lasts = [num % batch, total % num % batch] if total >= num else [total % batch]
    return [size for size in (min(batch, total), *lasts) if size]
