"""Per-example gradients projected on one random row, where exact norms are dear.

For signs v of +-1 with independent entries, E|v^T g|^2 = |g|_F^2: one row instead of the whole
gradient matrix g = d^T x, and v^T g = (v^T d^T) x reads d and x once instead of multiplying them
(Hutchinson 1990). Unbiased; its variance, at most 2 |g|^4, is far below that of |G|^2 over a batch.
A sketch is linear in the gradient: uses of one parameter are added before squaring, if all are
projected with the same signs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rightbatch.measure.meter.layers import (
    Geometry,
    Gradients,
    as_images,
    positions_last_but_one,
    trained_parameters,
)

FEW_POSITIONS = 16  # up to so many, exact norms cost no more than the sketch

Signs = Callable[[Tensor, int], Tensor]
"""Signs for a parameter whose projected side has so many entries, [N, entries]; the same each time."""


def is_dear(module: nn.Module, x: Tensor, d: Tensor) -> bool:
    """Whether exact norms cost noticeably more than a sketch of this call would."""
    if isinstance(module, nn.Linear):
        return d[0].numel() > FEW_POSITIONS * d.shape[-1]
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return d[0, 0].numel() > FEW_POSITIONS
    return False


def sketches(module: nn.Module, x: Tensor, d: Tensor, signs: Signs) -> Gradients:
    """Random projections [N, K] of the per-example gradients of a known layer's parameters.

    Args:
        module: Linear, Embedding or a convolution.
        x: its input.
        d: gradient of its output.
        signs: gives the projection.
    """
    if isinstance(module, nn.Linear):
        x, d = positions_last_but_one(x), positions_last_but_one(d)
        row = torch.linalg.vecdot(d, signs(module.weight, d.shape[2]).unsqueeze(1))  # [N, T]
        found = {"weight": torch.bmm(row.unsqueeze(1), x)[:, 0], "bias": row.sum(1, keepdim=True)}
    elif isinstance(module, nn.Embedding):
        ids, d = x.reshape(len(x), -1), positions_last_but_one(d)
        row = signs(module.weight, module.num_embeddings).gather(1, ids)
        if module.padding_idx is not None:
            row = row * (ids != module.padding_idx)
        found = {"weight": torch.bmm(row.unsqueeze(1), d)[:, 0]}
    else:
        weight, bias = _convolution_sketch(cast("nn.Conv1d | nn.Conv2d", module), x, d, signs)
        found = {"weight": weight, "bias": bias}
    return {name: found[name] for name, _ in trained_parameters(module)}


def _convolution_sketch(
    conv: nn.Conv1d | nn.Conv2d, x: Tensor, d: Tensor, signs: Signs
) -> tuple[Tensor, Tensor]:
    """Project the side with fewer channels to one, then multiply with the other side's maps.

    With one channel a group on that side the sign cancels in the square: the norm is exact. The
    bias's gradient falls out of the same product, as the weight of an input that is always 1, or out
    of the projected outputs.
    """
    geometry, groups = Geometry(conv), conv.groups
    n, incoming, outgoing = len(x), conv.in_channels // groups, conv.out_channels // groups
    rows = n * groups
    x, d = as_images(x), as_images(d)
    if incoming <= outgoing:
        v = signs(conv.weight, conv.in_channels).reshape(rows, 1, incoming)
        one = torch.bmm(v, x.reshape(rows, incoming, -1)).view(rows, 1, *x.shape[2:])
        windows = F.pad(geometry.unfold(geometry.pad(one)), (0, 0, 0, 1), value=1.0)
        product = torch.bmm(windows, d.reshape(rows, outgoing, -1).transpose(1, 2))
        return product[:, :-1].reshape(n, -1), product[:, -1].reshape(n, -1)
    v = signs(conv.weight, conv.out_channels).reshape(rows, 1, outgoing)
    one = torch.bmm(v, d.reshape(rows, outgoing, -1)).view(rows, 1, *d.shape[2:])
    windows = _windows_of_output(geometry, one, (x.shape[2], x.shape[3]))
    product = torch.bmm(windows, x.reshape(rows, incoming, -1).transpose(1, 2))
    return product.view(n, -1), one.view(n, groups, -1).sum(2)


def _windows_of_output(geometry: Geometry, one: Tensor, size: tuple[int, int]) -> Tensor:
    """For each input position the outputs it reached, by kernel element from last to first.

    Input l and kernel element k meet output (l + padding - k * dilation) / stride, so the map is
    spread by the stride, shifted by the padding, and unfolded with the layer's own dilation.
    """
    spread = [(length - 1) * s + 1 for length, s in zip(one.shape[2:], geometry.stride, strict=True)]
    if any(s > 1 for s in geometry.stride):
        wide = one.new_zeros(len(one), 1, *spread)
        wide[:, :, :: geometry.stride[0], :: geometry.stride[1]] = one
        one = wide
    margins: list[int] = []
    for axis in (1, 0):  # F.pad wants the last dimension first
        span = geometry.dilation[axis] * (geometry.kernel[axis] - 1)
        before = span - geometry.padding[axis][0]
        margins += [before, size[axis] + span - before - spread[axis]]
    return geometry.unfold(F.pad(one, margins), stride=(1, 1))
