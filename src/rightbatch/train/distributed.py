"""The processes that train together: how gradients meet, and what else they tell each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rightbatch.core.errors import InvalidInputError, RightBatchError

Value = TypeVar("Value")
Sync = Callable[[bool], AbstractContextManager[Any]]
_PATIENCE = timedelta(hours=1)  # that one process waits for another, which may be evaluating


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that train one model."""

    rank: int = 0
    count: int = 1
    group: Any = None
    """None is every process."""

    @classmethod
    def current(cls) -> Ranks:
        """As torch.distributed has them, or one process alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return ALONE
        return cls(dist.get_rank(), dist.get_world_size())

    @classmethod
    def of(cls, model: nn.Module) -> Ranks:
        """Those that average the gradients of a model: more than one only under DDP."""
        if not isinstance(model, DistributedDataParallel):
            return ALONE
        group = model.process_group
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def is_first(self) -> bool:
        """Whether this process evaluates, prints and writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over all processes, in place."""
        if self.count > 1:
            dist.all_reduce(values, group=self.group)
        return values

    def first(self, act: Callable[[], Value]) -> Value:
        """What the first process gets by acting; its error, if it raises one of ours, is everybody's.

        Raises:
            RightBatchError: ``act`` did.
        """
        if self.count == 1:
            return act()
        found: list[Any] = [None]
        if self.is_first:
            try:
                found = [act()]
            except RightBatchError as error:
                found = [error]
        dist.broadcast_object_list(found, src=0, group=self.group)
        if isinstance(found[0], RightBatchError):
            raise found[0]
        return found[0]

    def gather(self, value: Value) -> list[Value]:
        """The value of every process, in order."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self.group)
        return found

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            dist.barrier(group=self.group)


ALONE = Ranks()


class LossModule(nn.Module):
    """Model and loss as one module, so that DDP sees everything that a loss does with the model."""

    def __init__(self, model: nn.Module, forward: Callable[[int, Any], Any]) -> None:
        super().__init__()
        self.model, self._run = model, forward

    def forward(self, size: int, batch: Any) -> Any:
        """The terms of one micro-batch's loss."""
        return self._run(size, batch)


def replicate(
    model: nn.Module, forward: Callable[[int, Any], Any], *, every_parameter_used: bool
) -> DistributedDataParallel:
    """Join the processes' copies of a model: the first one's weights, and averaged gradients.

    Args:
        model: this process's copy, on its device.
        forward: from a number of examples and a batch to the terms of its loss.
        every_parameter_used: whether every loss reaches every parameter; looking for those that it
            does not costs time.
    """
    return DistributedDataParallel(
        LossModule(model, forward), find_unused_parameters=not every_parameter_used
    )


def sync_of(model: nn.Module) -> Sync:
    """A context for forward and backward of a micro-batch: ``True`` where gradients are then complete.

    Under DDP that is where they are averaged, once per update.
    """
    if not isinstance(model, DistributedDataParallel):
        return lambda is_last: nullcontext()
    return lambda is_last: nullcontext() if is_last else model.no_sync()


def launched_count() -> int:
    """Processes that ``torchrun`` started for this job; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def restart_count() -> int:
    """How often ``torchrun`` has started this job again after one of its processes died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _meeting_place() -> dict[str, Any]:
    """Where the processes of this start leave their addresses, apart from those of earlier starts.

    On one machine torchrun keeps its store over a restart, and gloo would call the dead. On several,
    agents count restarts by themselves, so that the number cannot tell starts apart.
    """
    if restart_count() == 0 or os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]:
        return {}
    store, rank, count = next(dist.rendezvous("env://", timeout=_PATIENCE))
    store = dist.PrefixStore(f"restart-{restart_count()}", store)
    return {"store": store, "rank": rank, "world_size": count}


@contextmanager
def process_group(device: str) -> Generator[str]:
    """Join the processes that ``torchrun`` started, if it did, and leave them in order.

    Yields:
        The device of this process: its own GPU where the device is ``cuda``.

    Raises:
        InvalidInputError: there are more processes than GPUs here.
    """
    if launched_count() == 1:
        yield device
        return
    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            found, hint = f"process {local + 1} of this machine and {gpus} GPUs", "--nproc-per-node"
            raise InvalidInputError(found, need="a GPU for each process", hint=f"{hint} {gpus}")
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if is_cuda else "gloo", timeout=_PATIENCE, **_meeting_place())
    try:
        yield device
        dist.barrier()  # a process that leaves early takes the others' connections with it
    finally:
        dist.destroy_process_group()
