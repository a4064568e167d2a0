"""Trace a training step as CUDA would run it, on a machine without CUDA.

The step runs on fake CPU tensors, as ``fake`` does it, while everything that torch does otherwise on
CUDA is put in its place: dropout, attention, recurrent and normalisation kernels; which operators
autocast lowers; the multi-tensor form of optimizers and clipping; step counters that stay on the
host; ``cuda`` as the name of a device. What kernels allocate inside themselves is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from rightbatch.core.samples import MemoryTrace
from rightbatch.measure.memory.cuda_autocast import CudaAutocast
from rightbatch.measure.memory.cuda_dispatch import (
    AUTOCAST,
    AUTOGRAD,
    foreach_on_cpu,
    kernels,
    on_in_backward,
)
from rightbatch.measure.memory.cuda_operators import CudaOperators
from rightbatch.measure.memory.fake import StorageObserver, observe
from rightbatch.measure.memory.options import AS_TODAY, StepOptions
from rightbatch.measure.memory.steps import Subject, build_subject, caller_untouched
from rightbatch.measure.memory.stream import to_trace
from rightbatch.tasks.task import Task

_CONVOLUTION = "cuDNN's workspaces of convolutions are not traced: which algorithm it picks is unknown"


def trace_cuda(
    task: Task,
    micro_batch_size: int,
    *,
    options: StepOptions = AS_TODAY,
    capability: tuple[int, int] = (8, 0),
) -> MemoryTrace:
    """Trace the storages that two training steps would have on a CUDA device.

    Args:
        task: built afresh; the caller's random states and default dtype are given back.
        micro_batch_size: examples in each forward.
        options: what the steps do beside today's recipe.
        capability: compute capability of the device: it decides which attention kernel runs.

    Returns:
        Events in order, with the storage of each. Neither the CUDA context nor the workspaces of
        cuBLAS are among them; ``fit.cuda_memory`` adds both.
    """
    operators, observer = CudaOperators(capability), _DeviceObserver()
    with caller_untouched(), cuda_paths(operators):
        subject = build_subject(task, options)
        events, copied = observe(task, subject, micro_batch_size, options, observer)
        on_host = observer.storages(_step_counters(copied))
    events = [event for event in events if event.storage not in on_host]
    notes = [*observer.caveats(), *operators.notes]
    if any("convolution" in event.operator for event in events):
        notes.append(_CONVOLUTION)
    return to_trace(
        events,
        observer.stream.owners,
        micro_batch_size=micro_batch_size,
        source="fake cuda",
        caveats=notes,
        with_storages=True,
    )


@contextmanager
def cuda_paths(operators: CudaOperators) -> Generator[None]:
    """Inside, torch treats CPU tensors as it treats CUDA tensors, in this whole process."""
    autocast = CudaAutocast()
    clear_cache = torch.clear_autocast_cache

    def clear_both() -> None:
        autocast.forget()
        clear_cache()

    with ExitStack() as stack:
        stack.enter_context(kernels(AUTOGRAD, operators.kernels()))
        stack.enter_context(kernels(AUTOCAST, autocast.kernels()))
        stack.enter_context(foreach_on_cpu())
        stack.enter_context(patch.object(torch, "clear_autocast_cache", clear_both))
        stack.enter_context(
            patch.object(torch.autocast, "__init__", _autocast_on_cpu(torch.autocast.__init__))
        )
        stack.enter_context(names := _CudaNamesCpu())
        stack.enter_context(on_in_backward(names))
        yield


class _DeviceObserver(StorageObserver):
    def storages(self, tensors: Iterator[Tensor]) -> set[int | None]:
        """Numbers of the storages of tensors."""
        return {self._number(tensor) for tensor in tensors}


def _step_counters(subject: Subject) -> Iterator[Tensor]:
    """What ``torch.optim`` keeps on the host, unless it is fused or can be captured in a graph."""
    for group in subject.optimizer.param_groups:
        if group.get("capturable") or group.get("fused"):
            continue
        for parameter in group["params"]:
            step = subject.optimizer.state[parameter].get("step")
            if isinstance(step, Tensor):
                yield step


_MAY_NAME_A_DEVICE = (str, torch.device, list, tuple, dict)


class _CudaNamesCpu(TorchFunctionMode):
    """Tensors asked for on ``cuda`` are made on the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function with device names replaced."""
        if func is Tensor.cuda:
            return args[0]
        named = kwargs or {}
        if any(isinstance(value, _MAY_NAME_A_DEVICE) for value in (*args, *named.values())):
            args, named = tree_map(_on_cpu, (args, named))
        return func(*args, **named)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value.partition(":")[0] == "cuda" else value


def _autocast_on_cpu(original: Callable[..., None]) -> Callable[..., None]:
    def init(
        self: Any, device_type: str, dtype: torch.dtype | None = None, *args: Any, **kwargs: Any
    ) -> None:
        if device_type == "cuda":
            dtype = dtype or torch.get_autocast_dtype("cuda")
        original(self, _on_cpu(device_type), dtype, *args, **kwargs)

    return init
