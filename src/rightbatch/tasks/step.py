"""The one forward and backward that timing, noise, memory and training all run."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.recipe import Constants
from rightbatch.tasks.build import compute_loss, loss_terms
from rightbatch.tasks.task import Loss

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def precision_context(precision: str, device: str) -> AbstractContextManager[Any]:
    """Autocast for ``bf16`` and ``fp16``, nothing for other precisions."""
    if precision not in _AUTOCAST:
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=_AUTOCAST[precision])


def forward_terms(
    task_loss: Any, model: nn.Module, batch: Any, *, num_examples: int, precision: str, device: str
) -> dict[str, Loss]:
    """The terms of one micro-batch's loss, ready for backward."""
    with precision_context(precision, device):
        return loss_terms(task_loss, model, batch, num_examples)


def forward_backward(
    task_loss: Any,
    model: nn.Module,
    batch: Any,
    *,
    num_examples: int,
    divisor: float,
    constants: Constants,
    device: str,
) -> Loss:
    """Add the gradient of one micro-batch's summed loss, over ``divisor``, to ``.grad``.

    Args:
        task_loss: ``(model, batch) -> Loss | scalar mean``.
        model: its ``.grad`` is added to.
        batch: one micro-batch on the model's device.
        num_examples: examples in it, the weight of a plain mean.
        divisor: what the sum is divided by before backward.
        constants: gives the precision.
        device: of model and batch.

    Returns:
        The summed loss, detached, and its count of targets.
    """
    with precision_context(constants.precision, device):
        loss = compute_loss(task_loss, model, batch, num_examples)
    total: Tensor = loss.total / divisor
    total.backward()
    return Loss(loss.total.detach(), loss.count)
