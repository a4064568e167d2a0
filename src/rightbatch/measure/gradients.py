"""Squared gradient norms at two batch sizes, from the groups that one large batch is cut into.

Norms are summed in float64: |G|^2 is the small difference of two large numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rightbatch.core.errors import MeasurementError
from rightbatch.core.samples import Coupling, GradientSample, SparseNorms
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
    coupling: Coupling | None = None,
) -> GradientSample:
    """Take one pair of squared norms at fixed parameters; the mean gradient stays in ``.grad``.

    Each group's gradient is that of its summed loss, so groups may hold different numbers of
    targets; norms refer to the mean per target of the whole batch. The large batch's gradient is
    the mean of its groups', which for a loss that couples examples is not that of their union.

    Args:
        task: gives loss and data.
        model: in train mode; its ``.grad`` is replaced.
        groups: indices of the examples of each group; at least 2 groups.
        examples_seen: training progress, for the record.
        device: of the model.
        preconditioner: per parameter, what each coordinate's square is multiplied by.
        coupling: what makes examples depend on their group, for the record.

    Raises:
        MeasurementError: fewer than 2 groups, no counted target, no trainable parameter, or a
            gradient that is not finite.
    """
    if len(groups) < 2:
        found = f"{len(groups)} group(s) of examples"
        raise MeasurementError(found, need="at least 2", hint="use a batch of 2 examples or more")
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        found = "0 trainable parameters"
        raise MeasurementError(found, need="a gradient", hint="set requires_grad on what is trained")
    start = time.perf_counter()
    num_examples = sum(len(group) for group in groups)
    whole, weighted, positive, negative = (_SquaredNorms() for _ in range(4))
    count = num_positives = 0.0
    for group in groups:
        batch = to_device(collate(task, group), device)
        share = len(group) / num_examples
        # The same random numbers twice, so that dropout is the same in the part as in the whole.
        with torch.random.fork_rng(enabled=task.positive_loss is not None):
            gradients, targets = _gradients(task, task.loss, model, batch, len(group), device)
        count += targets
        whole.add(gradients, share)
        if preconditioner is not None:
            roots = [g * w.sqrt() for g, w in zip(gradients, preconditioner, strict=True)]
            weighted.add(roots, share)
        if task.positive_loss is not None:
            part, targets = _gradients(task, task.positive_loss, model, batch, len(group), device)
            num_positives += targets
            positive.add(part, share)
            negative.add([g - p for g, p in zip(gradients, part, strict=True)], share)
    if count == 0:
        found = f"0 counted targets in {num_examples} examples"
        raise MeasurementError(found, need="at least 1", hint="use a larger batch")
    scale = num_examples / count  # from per example to per counted target
    small, big = whole.finish(scale)
    if not math.isfinite(big):
        found = f"a gradient with squared norm {big} after {examples_seen} examples"
        raise MeasurementError(
            found, need="finite gradients", hint="lower Recipe.lr: training diverges"
        )
    for parameter, total in zip(parameters, whole.total, strict=True):
        gradient = torch.view_as_complex(total) if parameter.is_complex() else total
        # Some optimizers take sparse gradients only.
        is_sparse = parameter.grad is not None and parameter.grad.is_sparse
        parameter.grad = gradient.to_sparse(1) if is_sparse else gradient
    small_weighted, big_weighted = (
        weighted.finish(scale) if preconditioner is not None else (None, None)
    )
    sample = GradientSample(
        examples_seen=examples_seen,
        small_batch_size=len(groups) / sum(1 / len(group) for group in groups),
        big_batch_size=num_examples,
        small_sq_norm=small,
        big_sq_norm=big,
        preconditioned_small_sq_norm=small_weighted,
        preconditioned_big_sq_norm=big_weighted,
        source="groups",
        num_small_batches=len(groups),
        coupling=coupling,
        targets_per_example=count / num_examples,
        seconds=time.perf_counter() - start,
    )
    if task.positive_loss is None:
        return sample
    return sample.replace(
        positives=_sparse_norms(positive, negative, scale, num_positives / num_examples)
    )


def _gradients(
    task: Task, loss: Any, model: nn.Module, batch: Any, size: int, device: str
) -> tuple[list[Tensor], float]:
    """A group's gradients, over its number of examples, and its count of targets."""
    model.zero_grad(set_to_none=True)
    found = forward_backward(
        loss,
        model,
        batch,
        num_examples=size,
        divisor=size,
        constants=task.recipe,
        device=device,
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in trained]
    return [in_reals(g) for g in gradients], float(found.count)


class _SquaredNorms:
    """Adds up groups' gradients, and keeps each one's squared norm."""

    def __init__(self) -> None:
        self.total: list[Tensor] = []
        self._small: list[Tensor] = []

    def add(self, gradients: Sequence[Tensor], share: float) -> None:
        """Add a group's gradients, which make up this share of the mean."""
        self._small.append(_sq_norm(gradients))
        if not self.total:
            self.total = [torch.zeros_like(g) for g in gradients]
        # pyright: ignore - _foreach is how torch.optim itself adds lists of tensors
        torch._foreach_add_(self.total, list(gradients), alpha=share)  # pyright: ignore

    def finish(self, scale: float) -> tuple[float, float]:
        """Mean square of the groups and square of the mean, gradients multiplied by a factor."""
        torch._foreach_mul_(self.total, scale)  # pyright: ignore
        return float(torch.stack(self._small).mean()) * scale**2, float(_sq_norm(self.total))


def _sparse_norms(
    positive: _SquaredNorms, negative: _SquaredNorms, scale: float, positives_per_example: float
) -> SparseNorms:
    (positive_small, positive_big), (negative_small, negative_big) = (
        part.finish(scale) for part in (positive, negative)
    )
    return SparseNorms(
        positive_small_sq_norm=positive_small,
        positive_big_sq_norm=positive_big,
        negative_small_sq_norm=negative_small,
        negative_big_sq_norm=negative_big,
        positives_per_example=positives_per_example,
    )


def in_reals(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, [..., 2]; a real one as it is."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _sq_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Sum of squares over all tensors, in float64; shape []."""
    norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients]
    return torch.stack(norms).square().sum()


def adam_preconditioner(model: nn.Module, optimizer: Optimizer) -> list[Tensor] | None:
    """1 / (sqrt(v) + eps) for each trainable parameter, frozen; None without second moments.

    ``v`` is bias-corrected as Adam does it (Kingma and Ba 2015, Algorithm 1). A parameter that never
    had a gradient, such as a head that the loss does not use, has no ``v`` yet and is left out, by 0.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    options = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    states = [optimizer.state.get(p, {}) for p in trained]
    moved = [state for state in states if state]
    if not moved or any("exp_avg_sq" not in state for state in moved):
        return None
    if any(id(p) not in options for p in trained):
        return None  # what another optimizer does with it is not known
    weights: list[Tensor] = []
    for parameter, state in zip(trained, states, strict=True):
        if not state:
            weights.append(torch.zeros_like(in_reals(parameter), dtype=torch.float64))
            continue
        group = options[id(parameter)]
        correction = 1 - group["betas"][1] ** float(state["step"])
        moments = in_reals(state["exp_avg_sq"]).double() / correction
        weights.append(1 / (moments.sqrt() + group["eps"]))
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
