"""The private torch API with which operators of CPU tensors are answered as CUDA would.

A Python function registered at a dispatch key replaces torch's own kernel there, however the
operator is reached: from Python, from a composite operator in C++, or in backward. Written against
torch 2.10 to 2.13; beside ``compat`` nothing else in rightbatch touches these names.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.library import Library
from torch.overrides import TorchFunctionMode

AUTOCAST, AUTOGRAD = "AutocastCPU", "AutogradCPU"


@contextmanager
def kernels(key: str, table: Mapping[str, Callable[..., Any]]) -> Generator[None]:
    """Answer operators such as ``softmax.int`` by functions at a dispatch key, for a while."""
    library = Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            # Some replace a kernel of torch's own, which is the intention.
            warnings.filterwarnings("ignore", message="Warning only once for all operators")
            for name, kernel in table.items():
                library.impl(name, kernel, key)
        yield
    finally:
        library._destroy()  # pyright: ignore[reportPrivateUsage]


def operators_at(key: str) -> frozenset[str]:
    """Names of the ``aten`` operators that have a kernel at a dispatch key."""
    dispatch: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    return frozenset(
        name.removeprefix("aten::")
        for name in dispatch._dispatch_get_all_op_names()
        if name.startswith("aten::") and dispatch._dispatch_has_kernel_for_dispatch_key(name, key)
    )


def overload(name: str) -> Any:
    """The operator of a name such as ``softmax.int`` or ``exp``."""
    packet, _, variant = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), variant or "default")


def without_autocast() -> AbstractContextManager[Any]:
    """Leave autocast out of every operator called inside."""
    dispatch: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    return dispatch._ExcludeDispatchKeyGuard(dispatch.DispatchKeySet(dispatch.DispatchKey.AutocastCPU))


@contextmanager
def foreach_on_cpu() -> Generator[None]:
    """Let optimizers and clipping choose their multi-tensor form, CUDA's default, on CPU tensors."""
    import torch.optim.optimizer as optimizers
    import torch.utils._foreach_utils as utilities

    name = "_get_foreach_kernels_supported_devices"
    devices = ["cuda", "cpu"]
    with (
        patch.object(optimizers, name, lambda: devices),
        patch.object(utilities, name, lambda: devices),
    ):
        yield


@contextmanager
def on_in_backward(mode: TorchFunctionMode) -> Generator[None]:
    """Keep a mode on while gradients are computed, for what is recomputed there.

    ``backward`` is a torch function, and a mode is off inside the functions that it handles.
    """
    name = "_engine_run_backward"
    run = getattr(torch.autograd, name)

    def run_with_mode(*args: Any, **kwargs: Any) -> Any:
        with mode:
            return run(*args, **kwargs)

    with patch.object(torch.autograd, name, run_with_mode):
        yield
