"""Label smoothing for a task that did not ask for it: given to the one cross-entropy its loss calls.

Smoothing is a matter of training alone: in evaluation mode the task's loss is called as it is, so that
what is judged stays the same metric.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rightbatch.tasks.build import build_model, collate, compute_loss, to_device
from rightbatch.tasks.task import Task

_SIGNATURE = inspect.signature(F.cross_entropy)


def smoothed(task: Task, amount: float) -> Task:
    """The task with its labels mixed with ``amount`` of the uniform distribution while it trains.

    Szegedy et al. (2016), arXiv:1512.00567, Sec. 7. An amount of 0 leaves the task as it is.
    """
    return replace(task, loss=_SmoothedLoss(task.loss, amount)) if amount else task


def why_not_smoothed(task: Task, amount: float, device: str) -> str | None:
    """Why ``smoothed`` would not do what it says, seen on two examples; None where it would."""
    plain, calls = _look(task, 0.0, device)
    if len(calls) != 1:
        return f"the loss is the task's own: {len(calls)} calls of torch's cross_entropy, and not 1"
    (call,) = calls
    if call["target"].is_floating_point():
        return "the targets are probabilities already"
    if call["label_smoothing"]:
        return f"the loss has label smoothing {call['label_smoothing']:g} already"
    changed, _ = _look(task, amount, device)
    return None if changed != plain else "the cross_entropy that the loss calls does not reach it"


@dataclass(frozen=True, slots=True)
class _SmoothedLoss:
    """Pickles wherever the task's own loss does."""

    loss: Any
    amount: float

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        if not model.training:
            return self.loss(model, batch)
        with _Smoothing(self.amount):
            return self.loss(model, batch)


class _Smoothing(TorchFunctionMode):
    """Hands ``label_smoothing`` to calls of cross_entropy with class labels, and remembers them."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount
        self.calls: list[Mapping[str, Any]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.cross_entropy:
            return func(*args, **(kwargs or {}))
        given = _SIGNATURE.bind(*args, **(kwargs or {}))
        given.apply_defaults()
        self.calls.append({**given.arguments})
        target: Tensor = given.arguments["target"]
        if not target.is_floating_point() and not given.arguments["label_smoothing"]:
            given.arguments["label_smoothing"] = self.amount
        return func(*given.args, **given.kwargs)


def _look(task: Task, amount: float, device: str) -> tuple[float, list[Mapping[str, Any]]]:
    """The loss of two training examples at the seed of the weights, and its calls of cross_entropy."""
    model = build_model(task, device)
    indices = range(min(2, task.num_train_examples))
    batch = to_device(collate(task, indices), device)
    with torch.no_grad(), _Smoothing(amount) as mode:
        loss = compute_loss(task.loss, model, batch, num_examples=len(indices))
    return float(loss.total), mode.calls
