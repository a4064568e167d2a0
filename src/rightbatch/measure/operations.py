"""Count what a training step computes and moves, without running it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from contextlib import nullcontext
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from rightbatch.core.samples import Phase
from rightbatch.core.work import OperatorWork, StepWork
from rightbatch.measure.memory.cuda_operators import CudaOperators
from rightbatch.measure.memory.cuda_proxy import cuda_paths
from rightbatch.measure.memory.fake import StorageObserver, observe
from rightbatch.measure.memory.options import AS_TODAY, StepOptions
from rightbatch.measure.memory.steps import build_subject, caller_untouched
from rightbatch.tasks.task import Task


def trace_work(
    task: Task,
    micro_batch_size: int,
    *,
    options: StepOptions = AS_TODAY,
    capability: tuple[int, int] | None = None,
    phases: Collection[str] = get_args(Phase),
) -> StepWork:
    """Count operations and bytes of one optimizer step under fake tensors.

    The second step is counted, when the optimizer's state exists. Operators that return a view of
    their input move nothing.

    Args:
        task: built afresh.
        micro_batch_size: examples in each forward.
        options: what the step does beside today's recipe.
        capability: compute capability of the CUDA device whose operators are wanted; None counts
            those of the CPU.
        phases: of the step that are counted; all of it unless some are named.
    """
    counter = _WorkCounter(phases)
    paths = nullcontext() if capability is None else cuda_paths(CudaOperators(capability))
    with caller_untouched(), paths:
        observe(task, build_subject(task, options), micro_batch_size, options, counter)
    return StepWork(
        micro_batch_size=micro_batch_size,
        operators=tuple(
            OperatorWork(operator=operator, dtype=dtype, calls=calls, flops=flops, moved_bytes=moved)
            for (operator, dtype), (calls, flops, moved) in counter.work.items()
        ),
    )


class _WorkCounter(StorageObserver):
    """Adds up the work of every operator from the second step on."""

    def __init__(self, phases: Collection[str]) -> None:
        super().__init__()
        self.phases = phases
        self.work: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
        self._counting = False

    def enter(self, phase: Phase) -> None:
        """Begin to count where the second step begins."""
        self._counting |= phase == "forward" and self.stream.phase == "optimizer"
        super().enter(phase)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, then count it."""
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self._counting and self.stream.phase in self.phases and not _is_view(func):
            self._count(func, args, kwargs or {}, result)
        return result

    def _count(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        if not func._schema.is_mutable and not any(isinstance(t, Tensor) for t in tree_iter(result)):
            return  # a question about a tensor, such as its device
        tensors = [t for t in tree_iter((args, kwargs, result)) if isinstance(t, Tensor)]
        # What is written in place is both argument and result, and is counted as both.
        moved = sum(
            min(t.nbytes, t.untyped_storage().nbytes()) for t in tensors if t.layout is torch.strided
        )
        formula = flop_registry.get(func._overloadpacket)
        flops = int(formula(*args, **kwargs, out_val=result)) if formula else 0
        dtype = next((str(t.dtype) for t in tensors if t.is_floating_point()), "torch.int64")
        name = func.name().split(".")[0].replace("::", ".")
        entry = self.work[name, dtype.removeprefix("torch.")]
        entry[0] += 1
        entry[1] += flops
        entry[2] += moved


def _is_view(func: Any) -> bool:
    """Whether results share the memory of an argument that is not written to."""
    returned = [value.alias_info for value in func._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)
