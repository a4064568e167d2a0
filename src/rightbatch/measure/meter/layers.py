"""Per-example gradients of single layers, from what autograd hands them anyway.

Notation, for one call of a layer on a batch of N examples:
    x   the layer's input, [N, ...]
    d   gradient of the loss with respect to the layer's output, [N, ...]
    T   positions that share the weight: tokens, pixels; 1 without any
The gradient of the weight is a sum over examples of g_n = f(x_n, d_n). A squared norm is taken in
the cheaper of two exact ways: |g_n|^2 of the gradient itself, T D1 D2 operations, or of the two Gram
matrices, T^2 (D1 + D2) (Goodfellow 2015, arXiv:1510.01799; Li et al. 2022, arXiv:2110.05679).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rightbatch.measure.gradients import in_reals

Gradients = dict[str, Tensor]
"""By parameter name; per-example values, so the first dimension is N."""

SLICE_ELEMENTS = 2**22  # of per-example gradients held at once: 16 MiB in float32

_NORMALISATIONS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_KNOWN = (nn.Linear, nn.Embedding, *_CONVOLUTIONS, *_NORMALISATIONS)


def is_known(module: nn.Module) -> bool:
    """Whether the formulas of this file are those of the module's forward.

    A subclass counts only if it inherits the forward: its parameters may mean something else.
    """
    kind = next((kind for kind in _KNOWN if isinstance(module, kind)), None)
    if kind is None or type(module).forward is not kind.forward:
        return False
    if isinstance(module, nn.Embedding):
        return not module.scale_grad_by_freq  # counts words over the whole batch
    return not isinstance(module, _CONVOLUTIONS) or module.padding_mode == "zeros"


def is_normalisation(module: nn.Module) -> bool:
    """Whether the layer's parameters are one scale and one shift per channel or feature."""
    return isinstance(module, _NORMALISATIONS)


def gradients(module: nn.Module, x: Tensor, d: Tensor) -> Gradients:
    """Per-example gradients of a known layer's parameters, [N, *parameter.shape]."""
    if isinstance(module, nn.Linear):
        x, d = positions_last_but_one(x), positions_last_but_one(d)
        found = {"weight": torch.bmm(d.transpose(1, 2), x), "bias": d.sum(1)}
    elif isinstance(module, nn.Embedding):
        found = {"weight": _embedding_gradient(module, x, d)}
    elif isinstance(module, _NORMALISATIONS):
        found = _normalisation_gradients(module, x, d)
    else:
        conv = cast("nn.Conv1d | nn.Conv2d", module)
        windows, maps = convolution_matrices(conv, x, d)
        weight = torch.matmul(maps, windows.transpose(2, 3))
        found = {
            "weight": weight.reshape(len(x), *conv.weight.shape),
            "bias": maps.flatten(1, 2).sum(2),
        }
    return {name: found[name] for name, _ in trained_parameters(module)}


def squared_norms(module: nn.Module, x: Tensor, d: Tensor) -> Gradients:
    """Exact squared norms of the per-example gradients, [N] for each parameter."""
    if isinstance(module, nn.Linear):
        x, d = positions_last_but_one(x), positions_last_but_one(d)
        found = {"weight": _product_sq_norm(d.transpose(1, 2), x.transpose(1, 2))}
        if isinstance(module.bias, Tensor):
            found["bias"] = _sq(d.sum(1))
    elif isinstance(module, nn.Embedding):
        found = {"weight": _embedding_sq_norm(module, x, d)}
    elif isinstance(module, _NORMALISATIONS):
        found = {name: _sq(g) for name, g in _normalisation_gradients(module, x, d).items()}
    else:
        conv = cast("nn.Conv1d | nn.Conv2d", module)
        windows, maps = convolution_matrices(conv, x, d)
        per_group = _product_sq_norm(maps.flatten(0, 1), windows.flatten(0, 1))
        found = {"weight": per_group.view(len(x), -1).sum(1)}
        if conv.bias is not None:
            found["bias"] = _sq(maps.sum(3))
    return {name: found[name] for name, _ in trained_parameters(module)}


def weighted_sq_norms(
    module: nn.Module, x: Tensor, d: Tensor, weights: Mapping[nn.Parameter, Tensor]
) -> Gradients:
    """Squared norms with every coordinate's square multiplied by a weight of its own, [N].

    Args:
        module: a known layer.
        x: its input.
        d: gradient of its output.
        weights: per parameter, in the parameter's shape.
    """
    found: dict[str, list[Tensor]] = {}
    names = dict(trained_parameters(module))
    for rows in example_slices(len(d), sum(p.numel() for p in names.values())):
        for name, g in gradients(module, x[rows], d[rows]).items():
            found.setdefault(name, []).append(squares(g, weights[names[name]])[1])
    return {name: torch.cat(parts) for name, parts in found.items()}


def squares(gradients: Tensor, weights: Tensor | None) -> Tensor:
    """Plain squared norms of [N, ...] gradients and, with weights, weighted ones: [1 or 2, N]."""
    flat = in_reals(gradients).flatten(1).square()
    if weights is None:
        return flat.sum(1).unsqueeze(0)
    return torch.stack([flat.sum(1), flat @ weights.flatten().to(flat.dtype)])


def summed_gradients(module: nn.Module, x: Tensor, d: Tensor) -> Gradients:
    """The batch's gradient as the sum of its examples': what autograd should have found itself."""
    total: Gradients = {}
    size = sum(p.numel() for _, p in trained_parameters(module))
    for rows in example_slices(len(d), size):
        for name, g in gradients(module, x[rows], d[rows]).items():
            total[name] = total[name] + g.sum(0) if name in total else g.sum(0)
    return total


def trained_parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """A known layer's own parameters that training changes.

    By name, since ``named_parameters`` takes as long as a small layer's kernel.
    """
    found = ((name, getattr(module, name, None)) for name in ("weight", "bias"))
    return [(name, p) for name, p in found if isinstance(p, nn.Parameter) and p.requires_grad]


def example_slices(num_examples: int, elements: int) -> Iterator[slice]:
    """Slices of the batch whose per-example gradients of so many elements fit ``SLICE_ELEMENTS``."""
    step = max(1, SLICE_ELEMENTS // max(1, elements))
    return (slice(start, start + step) for start in range(0, num_examples, step))


def positions_last_but_one(tensor: Tensor) -> Tensor:
    """[N, ..., D] as [N, T, D]; T is 1 where there is no sequence."""
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])


def convolution_matrices(conv: nn.Conv1d | nn.Conv2d, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Input windows [N, G, Ci/G * K, T] and output gradients [N, G, Co/G, T] of a convolution."""
    geometry = Geometry(conv)
    windows = geometry.unfold(geometry.pad(as_images(x)))
    groups = conv.groups
    return (
        windows.view(len(x), groups, -1, windows.shape[-1]),
        d.reshape(len(d), groups, conv.out_channels // groups, -1),
    )


def as_images(x: Tensor) -> Tensor:
    """[N, C, L] as [N, C, 1, L]; images stay."""
    return x if x.dim() == 4 else x.unsqueeze(2)


class Geometry:
    """Kernel, stride and dilation of a convolution, in two dimensions whatever the layer's own."""

    def __init__(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        ones = (1,) * (2 - len(conv.kernel_size))
        self.kernel = (*ones, *conv.kernel_size)
        self.stride = (*ones, *conv.stride)
        self.dilation = (*ones, *conv.dilation)
        if conv.padding == "same":  # the odd element goes to the right, as in the layer itself
            spans = [d * (k - 1) for k, d in zip(self.kernel, self.dilation, strict=True)]
            self.padding = tuple((span // 2, span - span // 2) for span in spans)
        elif conv.padding == "valid":
            self.padding = ((0, 0), (0, 0))
        else:
            zeros = (0,) * (2 - len(conv.kernel_size))
            self.padding = tuple((p, p) for p in (*zeros, *cast("tuple[int, ...]", conv.padding)))

    def pad(self, images: Tensor) -> Tensor:
        """Zeros around the last two dimensions."""
        (top, bottom), (left, right) = self.padding
        return F.pad(images, (left, right, top, bottom)) if any((top, bottom, left, right)) else images

    def unfold(self, padded: Tensor, stride: tuple[int, ...] | None = None) -> Tensor:
        """The inputs under the kernel at every output position, [N, C * K, T].

        A strided view and one copy: several times faster than ``F.unfold`` on the CPU.

        Args:
            padded: [N, C, H, W].
            stride: in place of the layer's own.
        """
        padded, stride = padded.contiguous(), stride or self.stride
        steps = padded.stride()
        spans = [d * (k - 1) for k, d in zip(self.kernel, self.dilation, strict=True)]
        places = [
            (length - span - 1) // s + 1
            for length, span, s in zip(padded.shape[2:], spans, stride, strict=True)
        ]
        kernel_steps = [d * step for d, step in zip(self.dilation, steps[2:], strict=True)]
        place_steps = [s * step for s, step in zip(stride, steps[2:], strict=True)]
        view = padded.as_strided(
            (*padded.shape[:2], *self.kernel, *places), (*steps[:2], *kernel_steps, *place_steps)
        )
        return view.reshape(len(padded), -1, math.prod(places))


def _product_sq_norm(a: Tensor, b: Tensor) -> Tensor:
    """Squared norms of a_n b_n^T, [N]; a is [N, D2, T] and b is [N, D1, T]."""
    (n, rows, length), columns = a.shape, b.shape[1]
    if length == 1:
        return _sq(a) * _sq(b)
    if length * (rows + columns) < rows * columns:
        return (torch.bmm(a.transpose(1, 2), a) * torch.bmm(b.transpose(1, 2), b)).sum((1, 2))
    slices = example_slices(n, rows * columns)
    return torch.cat([_sq(torch.bmm(a[s], b[s].transpose(1, 2))) for s in slices])


def _embedding_gradient(module: nn.Embedding, ids: Tensor, d: Tensor) -> Tensor:
    ids, d = _embedding_calls(module, ids, d)
    n = len(ids)
    rows = ids + module.num_embeddings * torch.arange(n, device=ids.device).unsqueeze(1)
    dense = d.new_zeros(n * module.num_embeddings, module.embedding_dim)
    dense.index_add_(0, rows.flatten(), d.flatten(0, 1))
    return dense.view(n, module.num_embeddings, module.embedding_dim)


def _embedding_sq_norm(module: nn.Embedding, ids: Tensor, d: Tensor) -> Tensor:
    """Only rows that occur in an example are summed: [T, D] numbers an example, not [V, D]."""
    ids, d = _embedding_calls(module, ids, d)
    n = len(ids)
    keys = ids + module.num_embeddings * torch.arange(n, device=ids.device).unsqueeze(1)
    found, place = torch.unique(keys, return_inverse=True)
    sums = d.new_zeros(len(found), module.embedding_dim)
    sums.index_add_(0, place.flatten(), d.flatten(0, 1))
    example = torch.div(found, module.num_embeddings, rounding_mode="floor")
    return d.new_zeros(n).index_add_(0, example, sums.square().sum(1))


def _embedding_calls(module: nn.Embedding, ids: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """[N, T] ids and [N, T, D] gradients; the padding word has none."""
    ids, d = ids.reshape(len(ids), -1), positions_last_but_one(d)
    if module.padding_idx is not None:
        d = d * (ids != module.padding_idx).unsqueeze(2)
    return ids, d


def _normalisation_gradients(module: nn.Module, x: Tensor, d: Tensor) -> Gradients:
    """The scale's gradient is the sum of d times the normalised input, the shift's that of d."""
    if isinstance(module, nn.GroupNorm):
        shape = (len(d), module.num_channels, -1)
        normal = F.group_norm(x, module.num_groups, None, None, module.eps).reshape(shape)
        d = d.reshape(shape)
        found = {"weight": torch.linalg.vecdot(d, normal), "bias": d.sum(2)}
    else:
        layer = cast("nn.LayerNorm | nn.RMSNorm", module)
        dims = list(layer.normalized_shape)
        if isinstance(layer, nn.LayerNorm):
            normal = F.layer_norm(x, dims, None, None, layer.eps)
        else:
            normal = F.rms_norm(x, dims, None, layer.eps)
        d = d.reshape(len(d), -1, math.prod(dims))
        found = {"weight": (d * normal.reshape(d.shape)).sum(1), "bias": d.sum(1)}
    return {name: found[name].view(len(d), *p.shape) for name, p in trained_parameters(module)}


def _sq(tensor: Tensor) -> Tensor:
    """Sum of squares over all but the first dimension."""
    return torch.linalg.vector_norm(tensor.flatten(1), dim=1).square()


def max_single(dtype: torch.dtype) -> torch.dtype:
    """Half precision cannot hold squares: at least single."""
    return torch.float32 if dtype in {torch.float16, torch.bfloat16} else dtype
