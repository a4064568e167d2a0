"""Whether an example's gradient depends on the other examples of its batch.

Then no single example has a gradient of its own, and noise is measured on groups: of a few examples
where batch statistics couple them, of today's batch where the loss does (in-batch negatives,
pairwise ranking, a Dice loss over the batch, a mean over a varying number of counted targets).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.samples import Coupling
from rightbatch.measure.gradients import undisturbed
from rightbatch.tasks.build import batch_norm_layers, join, to_device
from rightbatch.tasks.step import forward_backward
from rightbatch.tasks.task import Task

# Rounding gives about 1e-6 in float32 and 1e-2 in bfloat16; coupled losses give 0.1 or more.
_TOLERANCE, _ROUNDED_TOLERANCE = 1e-3, 0.05


def find_coupling(task: Task, model: nn.Module, indices: Sequence[int], device: str) -> Coupling | None:
    """Compare the gradient of a batch with the sum of its halves', in evaluation mode.

    Evaluation mode keeps dropout and batch statistics out of it. A loss that draws random numbers
    itself gives two gradients for one batch; whether it couples examples is then not to be seen.

    Args:
        task: gives loss and data.
        model: in train mode, and left so; its ``.grad`` is cleared.
        indices: of a batch of examples, at least 2.
        device: of the model.
    """
    data: Any = task.train_data
    examples = [data[i] for i in indices]  # read once: reading may augment at random
    half = len(examples) // 2
    model.eval()
    try:
        # cuDNN's recurrent layers have no backward in evaluation mode.
        with undisturbed(model), torch.backends.cudnn.flags(enabled=False):
            whole, again, first, second = (
                _gradient(task, model, part, device)
                for part in (examples, examples, examples[:half], examples[half:])
            )
    finally:
        model.train()
    tolerance = _TOLERANCE if task.recipe.precision == "fp32" else _ROUNDED_TOLERANCE
    limit = tolerance * max(float(g.norm()) for g in (whole, first, second))
    if float((whole - again).norm()) <= limit < float((whole - first - second).norm()):
        return "loss"
    return "batch-norm" if batch_norm_layers(model) else None


def _gradient(task: Task, model: nn.Module, examples: list[Any], device: str) -> Tensor:
    """Gradient of the summed loss of a batch, flat: [D]."""
    model.zero_grad(set_to_none=True)
    forward_backward(
        task.loss,
        model,
        to_device(join(task, examples), device),
        num_examples=len(examples),
        divisor=1.0,
        constants=task.recipe,
        device=device,
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    flat = [(torch.zeros_like(p) if p.grad is None else p.grad.to_dense()).flatten() for p in trained]
    model.zero_grad(set_to_none=True)
    return torch.cat(flat)
