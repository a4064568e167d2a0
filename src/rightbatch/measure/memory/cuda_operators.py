"""Operators that CUDA runs another way than CPU, as functions for fake CPU tensors.

Only what is saved for backward and what is alive beside it matters here; nothing is computed. The
rules follow torch 2.13 (ATen/native/transformers/cuda/sdp_utils.cpp, ATen/native/cudnn/RNN.cpp).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rightbatch.measure.memory.cuda_dispatch import overload

aten = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)
Attention = Literal["flash", "efficient", "math"]


@dataclass(slots=True)
class CudaOperators:
    """Kernels for one compute capability, and what they had to assume."""

    capability: tuple[int, int]
    notes: dict[str, None] = field(default_factory=dict[str, None])
    """In words, each once, in order."""

    def kernels(self) -> dict[str, Callable[..., Any]]:
        """Functions by operator."""
        return {
            "dropout": _dropout,
            "rms_norm": _rms_norm,
            "scaled_dot_product_attention": self.attention,
            "lstm.input": self.lstm,
            "gru.input": self._rnn_of(3),
            "rnn_tanh.input": self._rnn_of(1),
            "rnn_relu.input": self._rnn_of(1),
        }

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Scaled dot-product attention by the kernel that CUDA would choose."""
        qkv = (query, key, value)
        chosen = choose_attention(
            qkv, attn_mask, dropout_p, is_causal, capability=self.capability, enable_gqa=enable_gqa
        )
        if self.capability in {(9, 0), (10, 0)} and query.dtype in _HALF:
            self.notes["attention by cuDNN, which this device prefers, is counted as flash"] = None
        if chosen == "flash":
            width = query.shape[-1]
            padded = [F.pad(t, (0, -width % 8)) if width % 8 else t for t in qkv]
            scale = scale or width**-0.5
            flash = aten._scaled_dot_product_flash_attention
            return flash(*padded, dropout_p, is_causal, False, scale=scale)[0][..., :width]
        if chosen == "efficient":
            needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in qkv)
            efficient = aten._scaled_dot_product_efficient_attention
            bias = None if attn_mask is None else _bias(attn_mask, query, key)
            return efficient(*qkv, bias, needs_grad, dropout_p, is_causal, scale=scale)[0]
        math = aten._scaled_dot_product_attention_math
        options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
        return math(*qkv, attn_mask, dropout_p, is_causal, None, **options)[0]

    def lstm(self, x: Tensor, hx: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
        """LSTM of cuDNN; with ``proj_size`` the output is narrower than the cell."""
        return self._rnn(4, x, hx[0], hx[1].shape[-1], rest)

    def _rnn_of(self, num_gates: int) -> Callable[..., tuple[Tensor, Tensor]]:
        def kernel(x: Tensor, hx: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
            return self._rnn(num_gates, x, hx, hx.shape[-1], rest)[:2]

        return kernel

    def _rnn(
        self, num_gates: int, x: Tensor, hidden: Tensor, width: int, rest: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights, _, num_layers, dropout, train, bidirectional, batch_first = rest
        if torch.is_autocast_enabled("cpu"):
            x, hidden = (t.to(torch.get_autocast_dtype("cpu")) for t in (x, hidden))
        directions = 2 if bidirectional else 1
        per_step = num_layers * directions * width * (num_gates + 2)
        if dropout and train:
            per_step += (num_layers - 1) * directions * width
        steps = x.shape[0] * x.shape[1]
        self.notes["what cuDNN saves of a recurrent layer is assumed: gates, state and its tanh"] = None
        plan = _RnnPlan(per_step * steps, batch_first, directions, width)
        return _CudnnRNN.apply(x, hidden, plan, *weights)


def choose_attention(
    qkv: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    *,
    capability: tuple[int, int],
    enable_gqa: bool,
) -> Attention:
    """Which kernel ``scaled_dot_product_attention`` runs on a device (``select_sdp_backend``).

    Args:
        qkv: query [B, H, T, E], key [B, H', S, E], value [B, H', S, E'].
        mask: boolean or additive, None for none.
        dropout_p: probability.
        is_causal: whether a causal mask is implied.
        capability: compute capability.
        enable_gqa: whether heads of key and value may be fewer.
    """
    query, key, value = qkv
    width, half = query.shape[-1], query.dtype in _HALF
    same_heads = query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    dense = all(t.dim() == 4 and t.stride(-1) == 1 and t.shape[-2] > 0 for t in qkv)
    same_width = width == key.shape[-1] == value.shape[-1]
    training = torch.is_grad_enabled() and any(t.requires_grad for t in qkv)
    wide = 192 < width <= 224 or (width > 224 and dropout_p > 0)
    too_wide = training and wide and (capability in {(8, 6), (8, 9)} or capability >= (12, 0))
    flash = half and mask is None and same_width and width <= 256 and capability >= (8, 0)
    flash = flash and not too_wide and not (is_causal and query.shape[-2] != key.shape[-2])
    if torch.backends.cuda.flash_sdp_enabled() and dense and flash and (same_heads or enable_gqa):
        return "flash"
    alignment = 8 if half else 4 if capability >= (8, 0) else 1
    efficient = dense and same_heads and width == key.shape[-1]
    efficient = efficient and width % alignment == 0 and value.shape[-1] % alignment == 0
    efficient = efficient and (capability >= (8, 0) or query.dtype is not torch.bfloat16)
    if torch.backends.cuda.mem_efficient_sdp_enabled() and efficient:
        return "efficient"
    return "math"


def _bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """The mask as the efficient kernel wants it: additive, rows of whole 16 elements, expanded."""
    if mask.dtype is torch.bool:
        minus_infinity = torch.full((), float("-inf"), dtype=query.dtype)
        mask = torch.where(mask, torch.zeros((), dtype=query.dtype), minus_infinity)
    width = mask.shape[-1]
    if width % 16:
        mask = F.pad(mask, (0, -width % 16))[..., :width]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """One fused kernel that saves a boolean mask."""
    if train and 0 < p < 1:
        return torch.native_dropout(x, p, True)[0]
    return overload("dropout").decompose(x, p, train)


def _rms_norm(
    x: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """One fused kernel that saves its input and one number per row."""
    if weight is not None and weight.dtype is not x.dtype:
        return overload("rms_norm").decompose(x, shape, weight, eps)
    return _FusedRmsNorm.apply(x, weight, len(shape))


class _FusedRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, num_dims: int) -> Tensor:
        rows = x.shape[: x.dim() - num_dims]
        ctx.save_for_backward(x, weight, x.new_empty(rows, dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight), None


class _RnnPlan(NamedTuple):
    """How a recurrent layer runs."""

    reserve_elements: int
    """What forward saves for backward."""
    batch_first: bool
    directions: int
    width: int
    """Of the cell."""


class _CudnnRNN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, hidden: Tensor, plan: _RnnPlan, *weights: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        steps_first = x.transpose(0, 1).contiguous() if plan.batch_first else x
        output = x.new_empty((*steps_first.shape[:2], hidden.shape[-1] * plan.directions))
        last, cell = torch.empty_like(hidden), hidden.new_empty((*hidden.shape[:2], plan.width))
        reserve = x.new_empty(plan.reserve_elements)
        same_type = all(weight.dtype is x.dtype for weight in weights)
        flat = None if same_type else x.new_empty(sum(weight.numel() for weight in weights))
        ctx.batch_first = plan.batch_first
        ctx.save_for_backward(x, hidden, output, reserve, flat, *weights)
        return output.transpose(0, 1) if plan.batch_first else output, last, cell

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, _, _, _, *weights = ctx.saved_tensors
        inputs = [t.transpose(0, 1).contiguous() if ctx.batch_first else t for t in (x, gradients[0])]
        gradient = torch.empty_like(inputs[0])
        flat = x.new_empty(
            sum(weight.numel() for weight in weights)
        )  # all weights' gradients are views
        pieces = flat.split([weight.numel() for weight in weights])
        views = (p.view(w.shape).to(w.dtype) for p, w in zip(pieces, weights, strict=True))
        along = gradient.transpose(0, 1) if ctx.batch_first else gradient
        return along, torch.empty_like(hidden), None, *views
