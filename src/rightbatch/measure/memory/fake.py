"""Trace two training steps without running them: fake tensors have shapes and storages, no bytes."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from rightbatch.core.samples import MemoryTrace, Owner, Phase
from rightbatch.measure.memory import compat
from rightbatch.measure.memory.options import AS_TODAY, StepOptions
from rightbatch.measure.memory.parallel import process_group
from rightbatch.measure.memory.steps import (
    Subject,
    build_subject,
    caller_untouched,
    finish_subject,
    read_batches,
    run_steps,
)
from rightbatch.measure.memory.stream import (
    Event,
    Stream,
    accumulate_in_place,
    order_deaths,
    to_trace,
)
from rightbatch.tasks.task import Task
from rightbatch.tasks.where import at, running_at

aten = torch.ops.aten

# Derivative formulas that write in place unless a dispatch mode or a tensor subclass is on.
_IN_PLACE_FORMULAS = {
    aten.scatter_add.default,
    aten.scatter.src,
    aten.scatter.value,
    aten.index_put.default,
    aten.index_add.default,
    aten.index_fill.int_Scalar,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.masked_scatter.default,
    aten.select_scatter.default,
    aten.slice_scatter.default,
    aten.diagonal_scatter.default,
}


def trace_memory(task: Task, micro_batch_size: int, *, options: StepOptions = AS_TODAY) -> MemoryTrace:
    """Trace the storages of two training steps under fake tensors.

    Nothing is computed and, beside one copy of model and batch, nothing is allocated. What a
    kernel allocates inside itself is invisible; ``trace_kernels`` sees that.

    Args:
        task: built afresh; the caller's random states and default dtype are given back.
        micro_batch_size: examples in each forward.
        options: what the steps do beside today's recipe.

    Returns:
        Events in order, with operator, phase and owner; ``caveats`` name every assumed value.
    """
    with caller_untouched():
        return trace_subject(task, build_subject(task, options), micro_batch_size, options)


def trace_subject(
    task: Task, subject: Subject, micro_batch_size: int, options: StepOptions = AS_TODAY
) -> MemoryTrace:
    """Trace steps of a fake copy of ``subject``, which stays as it is."""
    observer = StorageObserver()
    events, _ = observe(task, subject, micro_batch_size, options, observer)
    return to_trace(
        events,
        observer.stream.owners,
        micro_batch_size=micro_batch_size,
        source="fake",
        caveats=observer.caveats(),
    )


def observe(
    task: Task, subject: Subject, micro_batch_size: int, options: StepOptions, observer: StorageObserver
) -> tuple[list[Event], Subject]:
    """Run the steps of a fake copy of ``subject`` under an observer.

    Returns:
        The events of a plain run, which no observer changed, and the copy.
    """
    batches = read_batches(task, micro_batch_size, options)
    mode = compat.fake_mode()
    with process_group(options) as mesh, compat.foreach_accepts_fakes(), mode:

        def copy() -> tuple[Subject, list[Any], list[Tensor]]:
            (copied, fake_batches), fakes = compat.copy_as_fakes((subject, batches), mode)
            whole = {id(t) for t in (*copied.model.parameters(), *copied.average)}
            finish_subject(task, copied, options, mesh)
            # Weights that were whole are gone once they are sharded.
            kept = [t for t in fakes if id(t) not in whole] if mesh is not None else fakes
            return copied, fake_batches, kept

        if mesh is not None:  # at its first call, an operator works out on more tensors how it spreads
            first, fake_batches, _ = copy()
            with StorageObserver():
                run_steps(task, first, fake_batches, micro_batch_size, lambda phase: None, options)
        copied, fake_batches, fakes = copy()
        with compat.storages_tell_resizing(observer.resized), observer:
            observer.start(copied, fake_batches, fakes)
            run_steps(task, copied, fake_batches, micro_batch_size, observer.enter, options)
        events, became = accumulate_in_place(observer.stream.events, observer.accumulated)
        for storage, root in became.items():
            observer.stream.claim(root, observer.stream.owners.get(storage, "temporaries"))
    return order_deaths(events), copied


class StorageObserver(compat.DispatchMode):
    """Writes down every storage that an operator returns, when it is born and when it dies."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = Stream()
        self.accumulated: dict[int, int] = {}
        self._numbers: Any = WeakIdKeyDictionary()
        self._nodes: dict[int, int] = {}
        self._assumed: Counter[str] = Counter()
        self._subject: Subject | None = None

    def start(self, subject: Subject, batches: list[Any], tensors: list[Tensor]) -> None:
        """Count what exists before the first step: all of it was made for this run."""
        self._subject = subject
        for tensor in (*tensors, *(held for _, held in subject.holdings())):
            self._see(tensor, "setup")
        for tensor in tree_iter(batches):
            if isinstance(tensor, Tensor):
                self._claim(tensor, "inputs")
        self._claim_holdings()
        self.stream.claim_rest("buffers")  # tensors that a module keeps beside its buffers

    def enter(self, phase: Phase) -> None:
        """Attribute what the phase that ends has left alive, then begin the next."""
        if phase == "backward":
            self.stream.claim_activations()
        self._claim_holdings()
        self.stream.phase = phase

    def resized(self, storage: torch.UntypedStorage) -> None:
        """See a storage that changed its size without an operator, as sharded weights do."""
        if (number := self._numbers.get(storage)) is not None:
            self.stream.resized(number, storage.nbytes())

    def caveats(self) -> tuple[str, ...]:
        """Each data-dependent operator with what was assumed, and how often."""
        return tuple(f"{text} ({count} times)" for text, count in self._assumed.items())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and see the storages of its results."""
        if compat.is_distributed(types):
            return NotImplemented  # what it does to this device's share is seen
        operator = func.name().split(".")[0].replace("::", ".")
        first_new = len(self.stream.makers)
        try:
            result = func(*args, **(kwargs or {}))
        except compat.DATA_DEPENDENT as error:
            result = self._assume(func, args[0], error)
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                self._see(tensor, operator)
        if (node := compat.running_backward_node()) is not None:
            self._watch_accumulation(func, args, node, first_new)
        return result

    def _watch_accumulation(
        self, func: Any, args: tuple[Any, ...], node: compat.BackwardNode, first_new: int
    ) -> None:
        """Note a sum or a scatter that would have been in place without this observer."""
        born = range(first_new, len(self.stream.makers))
        self._nodes |= dict.fromkeys(born, node.sequence)
        if len(born) != 1 or not isinstance(args[0], Tensor) or args[0]._is_view():
            return  # the base of a view shares its memory, so the engine leaves it as it is
        old = self._number(args[0])
        if old is None:
            return
        # The engine adds what this node has just made to what another, or itself, has made before.
        if func is aten.add.Tensor and isinstance(args[1], Tensor):
            in_place = self._nodes.get(old) != node.sequence or node.feeds_twice()
        else:
            in_place = func in _IN_PLACE_FORMULAS and not node.is_custom
            in_place = in_place and self._nodes.get(old) == node.sequence
        if in_place:
            self.accumulated[first_new] = old

    def _assume(self, func: Any, tensor: Tensor, error: Exception) -> Any:
        """Stand in for a result that depends on data: every element selected, a true condition."""
        if func is aten._local_scalar_dense.default:
            value: Any = (
                True if tensor.dtype is torch.bool else 1.0 if tensor.is_floating_point() else 1
            )
            if self.stream.phase != "optimizer":  # the optimizers' own step counters are harmless
                read = f"a tensor's value was read (aten._local_scalar_dense) in {self.stream.phase}"
                self._assumed[f"{read}{_place()}: assumed {value}"] += 1
            return value
        if func is aten.nonzero.default:
            result = tensor.new_empty((tensor.numel(), tensor.dim()), dtype=torch.long)
        elif func is aten.masked_select.default:
            result = tensor.new_empty((tensor.numel(),))
        else:
            raise error
        name, place = func.name().replace("::", "."), _place()
        self._assumed[f"{name} keeps a part of its input{place}: assumed all"] += 1
        return result

    def _claim_holdings(self) -> None:
        assert self._subject is not None
        for owner, tensor in self._subject.holdings():
            self._claim(tensor, owner)

    def _claim(self, tensor: Tensor, owner: Owner) -> None:
        for plain in compat.plain_tensors(tensor):
            if (number := self._number(plain)) is not None:
                self.stream.claim(number, owner)

    def _number(self, tensor: Tensor) -> int | None:
        storage = _storage(tensor)
        return None if storage is None else self._numbers.get(storage)

    def _see(self, tensor: Tensor, operator: str) -> None:
        for plain in compat.plain_tensors(tensor):
            if (storage := _storage(plain)) is None:
                continue
            if (number := self._numbers.get(storage)) is None:
                number = self.stream.born(storage.nbytes(), operator)
                self._numbers[storage] = number
                weakref.finalize(storage, self.stream.died, number).atexit = False
            else:
                self.stream.resized(number, storage.nbytes())


def _place() -> str:
    """Where the user's code is now, in words."""
    return at(running_at(sys._getframe()))  # pyright: ignore[reportPrivateUsage]


def _storage(tensor: Tensor) -> torch.UntypedStorage | None:
    """The memory behind a tensor; a sparse one has none of its own."""
    return tensor.untyped_storage() if tensor.layout is torch.strided else None
