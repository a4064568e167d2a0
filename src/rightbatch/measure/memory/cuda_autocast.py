"""CUDA's autocast lists (ATen/autocast_mode.h), applied to CPU tensors.

CPU and CUDA lower the same matrix products, but disagree on nearly everything else: CUDA computes
normalisations, exponentials, sums and losses in fp32, where CPU stays in the low precision, and
CPU raises cross entropy to fp32 as a whole where CUDA raises only its second half. Each difference
is a saved activation of another size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map

from rightbatch.measure.memory.cuda_dispatch import operators_at, overload, without_autocast


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# lower_precision_fp
LOWER = _names(
    """_convolution _convolution.deprecated conv1d conv2d conv3d conv_tbc conv_transpose1d
    conv_transpose2d.input conv_transpose3d.input convolution prelu addmm addmv addr matmul einsum mm
    mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot _thnn_fused_lstm_cell
    _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    _scaled_dot_product_flash_attention scaled_dot_product_attention cudnn_convolution
    cudnn_convolution_transpose"""
)
# fp32, and fp32_append_dtype for the two norms
RAISE = _names(
    """acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
    pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm
    frobenius_norm.dim nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss
    cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss kl_div l1_loss smooth_l1_loss
    huber_loss mse_loss margin_ranking_loss multilabel_margin_loss soft_margin_loss
    triplet_margin_loss multi_margin_loss binary_cross_entropy_with_logits dist pdist cdist renorm
    logsumexp upsample_nearest1d _upsample_nearest_exact1d upsample_nearest2d
    _upsample_nearest_exact2d upsample_nearest3d _upsample_nearest_exact3d upsample_linear1d
    upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d upsample_bicubic2d
    _upsample_bicubic2d_aa norm.Scalar norm.ScalarOpt_dim"""
)
# fp32_set_opt_dtype
RAISE_BY_DTYPE = _names(
    """prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm
    linalg_matrix_norm linalg_matrix_norm.str_ord sum sum.dim_IntList"""
)
# promote
PROMOTE = _names(
    "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add"
)
_PROMOTED_ANYWAY = frozenset({"cat", "stack", "index_copy"})  # by CPU's list, and on CUDA by the kernel


class CudaAutocast:
    """Kernels for autocast of CPU tensors that do what autocast of CUDA tensors does."""

    def __init__(self) -> None:
        """Start with no weight cast."""
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}

    def forget(self) -> None:
        """Drop the weights that were cast, as the end of the outermost autocast does."""
        self._casts.clear()

    def kernels(self) -> dict[str, Callable[..., Any]]:
        """One function for each operator that the two lists treat differently."""
        on_cpu, on_cuda = operators_at("AutocastCPU"), operators_at("AutocastCUDA")
        makers = {LOWER: self._lower, RAISE: _raise, RAISE_BY_DTYPE: _raise_by_dtype, PROMOTE: _promote}
        table = {
            name: make(overload(name))
            for names, make in makers.items()
            for name in names & (on_cuda - on_cpu)
        }
        for name in on_cpu - on_cuda - _PROMOTED_ANYWAY:
            table[name] = _pass_through(overload(name))
        return table

    def _lower(self, operator: Any) -> Callable[..., Any]:
        def kernel(*args: Any, **kwargs: Any) -> Any:
            with without_autocast():
                args, kwargs = tree_map(self._cast, (args, kwargs))
                return operator(*args, **kwargs)

        return kernel

    def _cast(self, value: Any) -> Any:
        """Lower a tensor's precision; a weight only once per autocast (``cached_cast``)."""
        low = torch.get_autocast_dtype("cpu")
        if not _castable(value) or value.dtype is low:
            return value
        weight = value.requires_grad and value.is_leaf and value.dtype is torch.float32
        if not (weight and torch.is_autocast_cache_enabled()) or value._is_view():  # pyright: ignore[reportPrivateUsage]
            return value.to(low)
        if id(value) not in self._casts:
            self._casts[id(value)] = value, value.to(low)
        return self._casts[id(value)][1]


def _castable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype is not torch.float64


def _to_fp32(value: Any) -> Any:
    return value.float() if _castable(value) else value


def _raise(operator: Any) -> Callable[..., Any]:
    """Compute in fp32, with copies of the inputs."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with without_autocast():
            args, kwargs = tree_map(_to_fp32, (args, kwargs))
            return operator(*args, **kwargs)

    return kernel


def _raise_by_dtype(operator: Any) -> Callable[..., Any]:
    """Ask the operator for an fp32 result, unless the caller asked for a type."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with without_autocast():
            given = {a.name: v for a, v in zip(operator._schema.arguments, args, strict=False)} | kwargs
            if given.get("dtype") is None and _castable(args[0]):
                given["dtype"] = torch.float32
            return operator(**given)

    return kernel


def _promote(operator: Any) -> Callable[..., Any]:
    """Raise all inputs to fp32 where one of them is."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        with without_autocast():
            if any(_castable(v) and v.dtype is torch.float32 for v in tree_iter((args, kwargs))):
                args, kwargs = tree_map(_to_fp32, (args, kwargs))
            return operator(*args, **kwargs)

    return kernel


def _pass_through(operator: Any) -> Callable[..., Any]:
    """Undo what only CPU's list does; what a composite operator calls is cast by itself."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        if (composed := operator.decompose(*args, **kwargs)) is not NotImplemented:
            return composed
        with without_autocast():
            return operator(*args, **kwargs)

    return kernel
