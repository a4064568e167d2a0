"""Look at a task once before it is measured, and refuse in words what would fail later in a trace."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rightbatch.core.errors import InvalidTaskError, RightBatchError, did_you_mean
from rightbatch.core.facts import TaskFacts
from rightbatch.core.recipe import Target
from rightbatch.tasks.build import (
    batch_norm_layers,
    build_model,
    build_optimizer,
    compute_loss,
    join,
    loss_terms,
    optimizer_family,
    to_device,
)
from rightbatch.tasks.step import precision_context
from rightbatch.tasks.task import Loss, Task
from rightbatch.tasks.where import raised

_PROBE_EXAMPLES = 2
_ACCURACY_NAMES = {"accuracy", "acc"}


def check_task(task: Task, device: str = "cpu") -> TaskFacts:
    """Run one forward, one backward and one evaluation on two examples; return the task as data.

    Args:
        task: what ``load_task`` gave.
        device: where it is to run.

    Raises:
        InvalidTaskError: a dataset, the model, the loss, the optimizer or the metric is not usable.
        InvalidInputError: the recipe names no optimizer there is, or a constant that it has not.
    """
    recipe = task.recipe
    if task.num_train_examples == 0:
        raise InvalidTaskError(
            "train_data is empty", need="at least one example", hint="check the data's path"
        )
    if task.valid_data is not None and task.num_valid_examples == 0:
        raise InvalidTaskError(
            "valid_data is empty", need="an example, or valid_data=None", hint="check the split"
        )
    if recipe.batch_size > task.num_train_examples:
        found = f"batch_size {recipe.batch_size} with {task.num_train_examples} training examples"
        raise InvalidTaskError(
            found, need="a batch no larger than the data", hint="lower Recipe.batch_size"
        )
    model = build_model(task, device)
    optimizer = build_optimizer(recipe, model, recipe.lr)
    batch = to_device(_read(task, task.train_data, "train_data"), device)
    _check_loss(task, model, batch, device)
    if task.positive_loss is not None:
        _check_positive_loss(task, model, batch, device)
    if task.target is not None:
        _check_target(task, task.target, model, device)
    return TaskFacts(
        name=task.name,
        spec=task.spec or task.name,
        num_train_examples=task.num_train_examples,
        num_valid_examples=task.num_valid_examples,
        num_parameters=sum(p.numel() for p in model.parameters()),
        num_trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        num_batch_norm_layers=len(batch_norm_layers(model)),
        optimizer_class=type(optimizer).__name__,
        optimizer_family=optimizer_family(optimizer),
        recipe=recipe,
        target=task.target,
        loader=task.loader,
        fingerprint=_fingerprint(task, model),
    )


def evaluate(
    task: Task, model: nn.Module, batches: Any, device: str = "cpu", *, precision: str | None = None
) -> dict[str, float]:
    """Evaluate in eval mode without gradients, by the task's metric or else its mean loss.

    Args:
        task: gives metric and loss.
        model: left in train mode.
        batches: of the validation data.
        device: of the model.
        precision: of the forward; None is the recipe's.

    Raises:
        InvalidTaskError: ``evaluate`` fails or returns no dictionary of numbers.
        RightBatchError: the task's own code raised one.
    """
    model.eval()
    try:
        with torch.no_grad(), precision_context(precision or task.recipe.precision, device):
            moved = (to_device(batch, device) for batch in batches)
            metrics = task.evaluate(model, moved) if task.evaluate else _mean_loss(task, model, moved)
        if not isinstance(metrics, Mapping):
            found, hint = f"evaluate returned {metrics!r}", 'return {"accuracy": value}'
            raise InvalidTaskError(found, need="a dict of metric to number", hint=hint)
        return {str(name): float(value) for name, value in metrics.items()}
    except RightBatchError:
        raise
    except Exception as error:
        found = f"evaluate raised {type(error).__name__}: {error}"
        raise InvalidTaskError(
            found, need="a dict of metric to number", hint="call it on two batches"
        ) from error
    finally:
        model.train()


def _mean_loss(task: Task, model: nn.Module, batches: Any) -> dict[str, float]:
    totals: dict[str, float] = {}
    counts: dict[str, float] = {}
    for batch in batches:
        terms = loss_terms(task.loss, model, batch)
        for name, term in terms.items():
            totals[name] = totals.get(name, 0.0) + float(term.total)
            counts[name] = counts.get(name, 0.0) + float(term.count)
    means = [totals[name] / count for name, count in counts.items() if count]
    return {"loss": math.fsum(means) if means else math.nan}


def _read(task: Task, data: Any, name: str) -> Any:
    """Join the first examples of a dataset into one batch.

    Raises:
        InvalidTaskError: the dataset or the collate function fails.
    """
    try:
        return join(task, [data[i] for i in range(min(_PROBE_EXAMPLES, len(data)))])
    except Exception as error:
        found = f"reading {name} raised {type(error).__name__}: {error}"
        hint = f"join {name}[0] and {name}[1] with the task's collate in Python"
        raise InvalidTaskError(found, need="examples that join into a batch", hint=hint) from error


def _check_loss(task: Task, model: nn.Module, batch: Any, device: str) -> None:
    try:
        with precision_context(task.recipe.precision, device):
            loss = compute_loss(task.loss, model, batch, num_examples=_PROBE_EXAMPLES)
    except RightBatchError:
        raise
    except Exception as error:
        need, hint = "a loss that runs on two examples", "call loss(model(), batch) in Python"
        raise InvalidTaskError(*raised("loss", error, need, hint)) from error
    if not loss.total.requires_grad:
        hint = "compute it from the model's output, outside torch.no_grad()"
        raise InvalidTaskError(
            "the loss has no gradient", need="a loss that depends on parameters", hint=hint
        )
    if not math.isfinite(value := loss.total.item()):
        found = f"the loss of the first two examples is {value}"
        hint = "look for log(0), division by 0 or bad inputs"
        raise InvalidTaskError(found, need="a finite loss at initialisation", hint=hint)
    loss.total.backward()
    sparse = [n for n, p in model.named_parameters() if p.grad is not None and p.grad.is_sparse]
    if sparse and task.recipe.clip_norm is not None:
        found = f"clip_norm = {task.recipe.clip_norm:g} with sparse gradients of {sparse[0]}"
        hint = "leave out Recipe.clip_norm, or build the embedding with sparse=False"
        raise InvalidTaskError(found, need="dense gradients, which torch can clip", hint=hint)
    model.zero_grad(set_to_none=True)


def _check_positive_loss(task: Task, model: nn.Module, batch: Any, device: str) -> None:
    """Its sum must be a part of the loss's sum, so both have to be sums.

    Raises:
        InvalidTaskError: either returns a mean, or the positives outnumber the targets.
    """
    with precision_context(task.recipe.precision, device):
        whole, part = (f(model, batch) for f in (task.loss, task.positive_loss) if f is not None)
    if not (isinstance(whole, Loss) and isinstance(part, Loss)):
        found = f"loss returned {type(whole).__name__}, positive_loss {type(part).__name__}"
        hint = "sum both over their targets: rb.Loss(losses.sum(), count)"
        raise InvalidTaskError(found, need="rb.Loss from both", hint=hint)
    if float(part.count) > float(whole.count):
        found = f"positive_loss counts {float(part.count):g} of {float(whole.count):g} targets"
        raise InvalidTaskError(found, need="positives among them", hint="count the positive targets")


def _check_target(task: Task, target: Target, model: nn.Module, device: str) -> None:
    if task.valid_data is None:
        found = f"target {target} without valid_data"
        raise InvalidTaskError(
            found, need="data to evaluate on", hint="give valid_data or remove the target"
        )
    if task.positive_loss is not None and target.metric.lower() in _ACCURACY_NAMES:
        raise InvalidTaskError(
            f"target {target} with rare positives: a model that never finds one is right nearly always",
            need="a metric of the positives",
            hint="return average_precision from evaluate: sparse.average_precision",
        )
    metrics = first_metrics(task, model, device)
    if target.metric not in metrics:
        found = f"evaluate returned {', '.join(metrics) or 'nothing'}, without {target.metric!r}"
        raise InvalidTaskError(
            found,
            need=f"the target's metric in it ({target})",
            hint=did_you_mean(target.metric, metrics),
        )


def first_metrics(task: Task, model: nn.Module, device: str) -> dict[str, float]:
    """Evaluate two examples of the validation data, or all where a metric fails on so few.

    Raises:
        InvalidTaskError: ``evaluate`` fails or returns no dictionary of numbers.
    """
    data: Any = task.valid_data
    few = _read(task, data, "valid_data")
    try:
        return evaluate(task, model, [few], device)
    except RightBatchError:  # such as an area under a curve, of one class alone
        total, size = task.num_valid_examples, task.recipe.batch_size
        rows = (range(start, min(start + size, total)) for start in range(0, total, size))
        batches = (join(task, [data[i] for i in some]) for some in rows)
        return evaluate(task, model, batches, device)


def _fingerprint(task: Task, model: nn.Module) -> str:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    shapes = [f"{name}:{tuple(t.shape)}:{t.dtype}" for name, t in tensors]
    sizes = f"{task.num_train_examples}/{task.num_valid_examples}"
    facts = [task.name, task.source_sha256, sizes, task.recipe.model_dump_json(), str(task.target)]
    facts += [task.loader.model_dump_json(), *shapes]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
