"""Squared gradient norms at two batch sizes, from the micro-batches of one large batch.

Norms are summed in float64: |G|^2 is the small difference of two large numbers.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rightbatch.core.errors import MeasurementError
from rightbatch.core.samples import GradientSample
from rightbatch.tasks.build import collate, to_device
from rightbatch.tasks.step import forward_backward
from rightbatch.tasks.task import Task


def sample_gradients(
    task: Task,
    model: nn.Module,
    groups: Sequence[Sequence[int]],
    *,
    examples_seen: int,
    device: str = "cpu",
    preconditioner: Sequence[Tensor] | None = None,
) -> GradientSample:
    """Take one pair of squared norms at fixed parameters; the mean gradient stays in ``.grad``.

    Each group's gradient is that of its summed loss, so groups may hold different numbers of
    targets; norms refer to the mean per target of the whole batch.

    Args:
        task: gives loss and data.
        model: in train mode; its ``.grad`` is replaced.
        groups: indices of the examples of each micro-batch; at least 2 groups.
        examples_seen: training progress, for the record.
        device: of the model.
        preconditioner: per parameter, what each coordinate's square is multiplied by.

    Raises:
        MeasurementError: fewer than 2 groups, no counted target, or a gradient that is not finite.
    """
    if len(groups) < 2:
        found = f"{len(groups)} group(s) of examples"
        raise MeasurementError(found, need="at least 2", hint="use a batch of 2 examples or more")
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in parameters]
    num_examples = sum(len(group) for group in groups)
    count = 0.0
    small, small_weighted = [], []
    for group in groups:
        model.zero_grad(set_to_none=True)
        batch = to_device(collate(task, group), device)
        loss = forward_backward(
            task.loss,
            model,
            batch,
            num_examples=len(group),
            divisor=len(group),
            constants=task.recipe,
            device=device,
        )
        count += float(loss.count)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        small.append(_sq_norm(gradients, None))
        if preconditioner is not None:
            small_weighted.append(_sq_norm(gradients, preconditioner))
        # pyright: ignore - _foreach is how torch.optim itself adds lists of tensors
        torch._foreach_add_(total, gradients, alpha=len(group) / num_examples)  # pyright: ignore
    if count == 0:
        found = f"0 counted targets in {num_examples} examples"
        raise MeasurementError(found, need="at least 1", hint="use a larger batch")
    scale = num_examples / count  # from per example to per counted target
    torch._foreach_mul_(total, scale)  # pyright: ignore
    for parameter, gradient in zip(parameters, total, strict=True):
        parameter.grad = gradient
    big = float(_sq_norm(total, None))
    if not math.isfinite(big):
        found = f"a gradient with squared norm {big} after {examples_seen} examples"
        raise MeasurementError(
            found, need="finite gradients", hint="lower Recipe.lr: training diverges"
        )
    weighted = None if preconditioner is None else float(_sq_norm(total, preconditioner))
    return GradientSample(
        examples_seen=examples_seen,
        small_batch_size=len(groups) / sum(1 / len(group) for group in groups),
        big_batch_size=num_examples,
        small_sq_norm=float(torch.stack(small).mean()) * scale**2,
        big_sq_norm=big,
        preconditioned_small_sq_norm=float(torch.stack(small_weighted).mean()) * scale**2
        if small_weighted
        else None,
        preconditioned_big_sq_norm=weighted,
    )


def _sq_norm(gradients: Sequence[Tensor], weights: Sequence[Tensor] | None) -> Tensor:
    """Sum of squares over all tensors, each square weighted where weights are given; shape []."""
    if weights is None:
        norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]
        return torch.stack(norms).square().sum()
    terms = [(g.double().square() * w).sum() for g, w in zip(gradients, weights, strict=True)]
    return torch.stack(terms).sum()


def adam_preconditioner(model: nn.Module, optimizer: Optimizer) -> list[Tensor] | None:
    """1 / (sqrt(v) + eps) for each trainable parameter, frozen; None without second moments.

    ``v`` is bias-corrected as Adam does it (Kingma and Ba 2015, Algorithm 1).
    """
    weights: list[Tensor] = []
    options = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for parameter in (p for p in model.parameters() if p.requires_grad):
        state = optimizer.state.get(parameter, {})
        if "exp_avg_sq" not in state:
            return None
        group = options[id(parameter)]
        correction = 1 - group["betas"][1] ** float(state["step"])
        weights.append(1 / ((state["exp_avg_sq"].double() / correction).sqrt() + group["eps"]))
    return weights


@contextmanager
def undisturbed(model: nn.Module) -> Generator[None]:
    """Restore buffers (BatchNorm's running statistics) and the random state on leaving."""
    saved = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.random.fork_rng():
        try:
            yield
        finally:
            for name, buffer in model.named_buffers():
                buffer.data.copy_(saved[name])


def split_evenly(indices: Sequence[int], num_groups: int) -> list[list[int]]:
    """Cut indices into groups whose sizes differ by at most one.

    >>> split_evenly(range(7), 3)
    [[0, 1, 2], [3, 4], [5, 6]]
    """
    size, longer = divmod(len(indices), num_groups)
    groups: list[list[int]] = []
    start = 0
    for k in range(num_groups):
        stop = start + size + (k < longer)
        groups.append(list(indices[start:stop]))
        start = stop
    return groups


def draw_examples(num_examples: int, size: int, generator: torch.Generator) -> Any:
    """Indices drawn with replacement, so that the batch is an i.i.d. sample of the training data."""
    return torch.randint(num_examples, (size,), generator=generator).tolist()
