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
from rightbatch.measure.memory import compat
from rightbatch.measure.memory.cuda_autocast import CudaAutocast
from rightbatch.measure.memory.cuda_dispatch import (
    AUTOCAST,
    AUTOGRAD,
    foreach_on_cpu,
    kernels,
    on_in_backward,
)
from rightbatch.measure.memory.cuda_operators import CudaOperators
from rightbatch.measure.memory.fake import StorageObserver
from rightbatch.measure.memory.steps import (
    Subject,
    build_subject,
    caller_untouched,
    read_batches,
    run_steps,
)
from rightbatch.measure.memory.stream import accumulate_in_place, order_deaths, to_trace
from rightbatch.tasks.task import Task

_CONVOLUTION = "cuDNN's workspaces of convolutions are not traced: which algorithm it picks is unknown"


def trace_cuda(
    task: Task,
    micro_batch_size: int,
    *,
    accumulation_steps: int = 1,
    capability: tuple[int, int] = (8, 0),
) -> MemoryTrace:
    """Trace the storages that two of today's training steps would have on a CUDA device.

    Args:
        task: built afresh; the caller's random states and default dtype are given back.
        micro_batch_size: examples in each forward.
        accumulation_steps: micro-batches per optimizer step, all held from its start.
        capability: compute capability of the device: it decides which attention kernel runs.

    Returns:
        Events in order, with the storage of each. Neither the CUDA context nor the workspaces of
        cuBLAS are among them; ``fit.cuda_memory`` adds both.
    """
    operators = CudaOperators(capability)
    with caller_untouched(), cuda_paths(operators):
        subject = build_subject(task)
        batches = read_batches(task, micro_batch_size, accumulation_steps)
        mode = compat.fake_mode()
        with compat.foreach_accepts_fakes(), mode:
            (fake_subject, fake_batches), fakes = compat.copy_as_fakes((subject, batches), mode)
            with _DeviceObserver() as observer:
                observer.start(fake_subject, fake_batches, fakes)
                run_steps(task, fake_subject, fake_batches, micro_batch_size, observer.enter)
            stream = observer.stream
            on_host = observer.storages(_step_counters(fake_subject))
            events, became = accumulate_in_place(stream.events, observer.accumulated)
            for storage, root in became.items():
                stream.claim(root, stream.owners.get(storage, "temporaries"))
    events = [event for event in order_deaths(events) if event.storage not in on_host]
    notes = [*observer.caveats(), *operators.notes]
    if any("convolution" in event.operator for event in events):
        notes.append(_CONVOLUTION)
    trace = to_trace(
        events, stream.owners, micro_batch_size=micro_batch_size, source="fake", caveats=notes
    )
    storages = tuple(event.storage for event in events)
    return trace.model_copy(update={"source": "fake cuda", "storage": storages})


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


class _CudaNamesCpu(TorchFunctionMode):
    """Tensors asked for on ``cuda`` are made on the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function with device names replaced."""
        if func is Tensor.cuda:
            return args[0]
        args, named = tree_map(_on_cpu, (args, kwargs or {}))
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
