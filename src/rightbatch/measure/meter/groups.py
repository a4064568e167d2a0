"""Gradients of parts of one batch, from losses that the user's own code computes for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from rightbatch.core.errors import InvalidInputError
from rightbatch.measure.gradients import undisturbed
from rightbatch.measure.meter.leaves import MicroBatchNorms, Weights, norm, weighted_square
from rightbatch.measure.meter.window import Reduction


def measure_groups(
    model: nn.Module,
    losses: Iterable[Tensor],
    sizes_seen: Callable[[], list[int]],
    examples: float,
    weights: Weights | None,
    reduction: Reduction,
) -> tuple[list[float], list[MicroBatchNorms], MicroBatchNorms]:
    """Differentiate each loss by itself; ``.grad``, buffers and random numbers stay as they are.

    Args:
        model: whose trainable parameters the losses depend on.
        losses: one a group; taken one at a time, so that a generator holds one graph.
        sizes_seen: examples of the model's inputs since it was called last.
        examples: of all groups, shared evenly where the model's inputs do not tell.
        weights: of squares, or None.
        reduction: of the losses.

    Returns:
        Sizes; norms of each group's summed gradient; norms of their sum.

    Raises:
        InvalidInputError: fewer than 2 losses, or one without a gradient.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    sizes: list[list[int]] = []
    gradients: list[list[Tensor]] = []
    sizes_seen()
    with undisturbed(model):
        for loss in losses:
            if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
                found = f"a group's loss that is {loss!r}"
                hint = "groups=(loss_fn(model(x), y) for x, y in halves)"
                raise InvalidInputError(found, need="a scalar tensor with a gradient", hint=hint)
            parts = torch.autograd.grad(loss, parameters, allow_unused=True)
            sizes.append(sizes_seen())
            gradients.append([
                g if isinstance(g, Tensor) else torch.zeros_like(p)
                for p, g in zip(parameters, parts, strict=True)
            ])
    k = len(gradients)
    if k < 2:
        hint = "cut the batch in halves: zip(x.chunk(2), y.chunk(2))"
        raise InvalidInputError(f"{k} group(s)", need="at least 2", hint=hint)
    counts = [float(sum(seen)) for seen in sizes]
    if not all(counts):
        counts = [examples / k] * k
    whole = [torch.zeros_like(p) for p in parameters]
    micro: list[MicroBatchNorms] = []
    for count, parts in zip(counts, gradients, strict=True):
        factor = count if reduction == "mean" else 1.0
        summed = [(g.to_dense() if g.is_sparse else g) * factor for g in parts]
        micro.append(_norms(parameters, summed, weights))
        torch._foreach_add_(whole, summed)  # pyright: ignore - as torch.optim adds lists of tensors
    return counts, micro, _norms(parameters, whole, weights)


def _norms(
    parameters: list[nn.Parameter], gradients: list[Tensor], weights: Weights | None
) -> MicroBatchNorms:
    pairs = list(zip(parameters, gradients, strict=True))
    weighted = weights and {p: weighted_square(g, weights[p]) for p, g in pairs}
    return MicroBatchNorms(norms={p: norm(g) for p, g in pairs}, weighted=weighted, kept={})
