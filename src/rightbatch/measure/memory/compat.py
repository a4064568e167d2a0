"""Every private torch API that memory tracing needs, each with what it does and why.

Written against torch 2.10 to 2.13. Nothing else in rightbatch touches these names.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.autograd import profiler
from torch.optim.optimizer import (
    _foreach_supported_types as optimizer_types,  # pyright: ignore[reportPrivateUsage]
)
from torch.utils._foreach_utils import (
    _foreach_supported_types as utility_types,  # pyright: ignore[reportPrivateUsage]
)
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

# Sets a mark in the allocator's log.
Mark = Callable[[str], None]

# Sees every operator below autograd, on real and on fake tensors.
DispatchMode = TorchDispatchMode

# What fake tensors raise where a result's value or shape depends on data.
DATA_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException)


def fake_mode() -> FakeTensorMode:
    """Operators compute shapes and storages only; real constants that a loss holds are taken along."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@contextmanager
def foreach_accepts_fakes() -> Generator[None]:
    """Let fake tensors take the multi-tensor path that real ones take.

    torch chooses it by exact type, so clipping fake gradients would allocate otherwise.
    """
    lists: list[list[Any]] = [optimizer_types, utility_types]
    for types in lists:
        types.append(FakeTensor)
    try:
        yield
    finally:
        for types in lists:
            types.remove(FakeTensor)


def copy_as_fakes(objects: Any, mode: FakeTensorMode) -> tuple[Any, list[Tensor]]:
    """Deep-copy an object graph, turning every tensor in it into a fake one; no bytes are copied.

    Tied weights and the optimizer's references to parameters survive, because it is one copy.

    Returns:
        The copy, and the fake of every tensor met.
    """
    fakes: list[Tensor] = []

    def as_fake(self: Tensor, memo: dict[int, Any]) -> Tensor:
        if id(self) in memo:
            return memo[id(self)]
        source = self.detach() if self.grad_fn is not None else self
        if source.is_meta:  # stands for weights on the CPU that were too large to build
            source = torch.empty_strided(
                source.size(), source.stride(), dtype=source.dtype, device="cpu"
            )
        fake: Tensor = mode.from_tensor(source, static_shapes=True)
        if isinstance(self, nn.Parameter) and not isinstance(fake, nn.Parameter):
            fake = nn.Parameter(fake, self.requires_grad)
        memo[id(self)] = fake
        fakes.append(fake)
        return fake

    originals = [(kind, kind.__dict__["__deepcopy__"]) for kind in (Tensor, nn.Parameter)]
    for kind, _ in originals:
        kind.__deepcopy__ = as_fake
    try:
        return copy.deepcopy(objects), fakes
    finally:
        for kind, original in originals:
            kind.__deepcopy__ = original


@contextmanager
def storages_tell_resizing(tell: Callable[[torch.UntypedStorage], None]) -> Generator[None]:
    """Call back whenever a storage was resized from Python, which no dispatch mode sees."""
    original = torch.UntypedStorage.resize_

    def resize(self: torch.UntypedStorage, size: int) -> Any:
        result = original(self, size)
        tell(self)
        return result

    with patch.object(torch.UntypedStorage, "resize_", resize):
        yield


def is_distributed(types: Iterable[type]) -> bool:
    """Whether an operator has a tensor that is spread over devices, and opens it into plain ones."""
    return any(kind.__module__.startswith("torch.distributed") for kind in types)


@contextmanager
def silent_group(world_size: int) -> Generator[Any]:
    """A mesh of CPU devices in a process group that sends nothing; this process is the first of it."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield init_device_mesh("cpu", (world_size,))
    finally:
        distributed.destroy_process_group()


def plain_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that own memory: a wrapper subclass is opened, a plain tensor is itself."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        if isinstance(inner := getattr(tensor, name), Tensor):
            yield from plain_tensors(inner)


@dataclass(frozen=True, slots=True)
class BackwardNode:
    """The node of the autograd graph that is running."""

    sequence: int
    is_custom: bool
    """A user's autograd.Function, whose backward is Python rather than a derivative formula."""
    raw: Any

    def feeds_twice(self) -> bool:
        """Whether two of its gradients go to one place, as those of ``h * h`` do."""
        targets = [(id(node), index) for node, index in self.raw.next_functions if node is not None]
        return len(set(targets)) < len(targets)


def running_backward_node() -> BackwardNode | None:
    """Which node the autograd engine is evaluating, None outside backward."""
    if torch._C._current_graph_task_id() == -1:  # pyright: ignore[reportPrivateUsage]
        return None
    node: Any = torch._C._current_autograd_node()  # pyright: ignore[reportPrivateUsage]
    if node is None:
        return None
    custom = isinstance(node, torch.autograd.function.BackwardCFunction)
    return BackwardNode(int(node._sequence_nr()), custom, node)


@dataclass(frozen=True, slots=True)
class AllocatorEvent:
    """One entry of the CPU allocator's log, or a mark that the step set in it."""

    kind: Literal["memory", "mark"]
    name: str
    """Operator that allocated or freed; or the mark's text."""
    call: int = 0
    """Number of the operator's call."""
    address: int = 0
    delta_bytes: int = 0


# Operators that only pass on an allocation which somebody else wanted.
_ALLOCATING = frozenset({
    "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::resize_",
    "aten::zeros", "aten::zeros_like", "aten::ones_like", "aten::full_like",
    "aten::clone", "aten::contiguous", "aten::copy_", "aten::to", "aten::_to_copy",
})  # fmt: skip


def record_allocator(run: Callable[[Mark], None], prefix: str) -> list[AllocatorEvent]:
    """Run ``run(mark)`` under the profiler and return the CPU allocator's events in order.

    Blocks that are older than the call are not reported when they are freed.

    Args:
        run: what to record; calling ``mark(text)`` sets a mark between two events.
        prefix: what tells a mark from an operator.
    """

    def mark(text: str) -> None:
        with profiler.record_function(prefix + text):
            pass

    session = profiler.profile(profile_memory=True, use_kineto=True)
    with _silent_stderr():
        session.__enter__()
    try:
        run(mark)
    finally:
        with _silent_stderr():
            session.__exit__(None, None, None)
    results: Any = session.kineto_results
    return _in_time_order(results.experimental_event_tree(), prefix)


def _in_time_order(roots: Iterable[Any], prefix: str) -> list[AllocatorEvent]:
    """Flatten the profiler's tree into allocations and marks; the tree gives addresses and callers."""
    found: list[tuple[int, AllocatorEvent]] = []
    calls = count(1)
    stack = [(root, "python", 0) for root in roots]
    while stack:
        node, caller, call = stack.pop()
        name: str = node.name
        if node.tag.name == "Allocation":
            fields = node.extra_fields
            event = AllocatorEvent("memory", caller, call, fields.ptr, fields.alloc_size)
            found.append((node.start_time_ns, event))
        elif name.startswith(prefix):
            found.append((node.start_time_ns, AllocatorEvent("mark", name.removeprefix(prefix))))
        elif name not in _ALLOCATING:
            caller, call = name.replace("::", "."), next(calls)
        stack.extend((child, caller, call) for child in node.children)
    return [event for _, event in sorted(found, key=lambda pair: pair[0])]


@contextmanager
def _silent_stderr() -> Generator[None]:
    """Drop the lines that the profiler's C++ side prints when it starts and stops."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as void:
        os.dup2(void.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
