"""What data parallelism adds to a step's memory, on one device of many that are not there.

DistributedDataParallel keeps all gradients a second time, in buckets that are reduced while backward
runs (Li et al. 2020, arXiv:2006.15704, Section 3.2); its C++ part cannot run on fake tensors, so the
buckets are laid out here by its rule. ``fully_shard`` runs as it is, over a process group whose
collectives send nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import InvalidInputError
from rightbatch.measure.memory import compat
from rightbatch.measure.memory.options import StepOptions
from rightbatch.tasks.checkpointing import find_blocks

# torch's defaults: the first bucket is small, so that its reduction starts early.
_FIRST_BUCKET_BYTES, _BUCKET_BYTES = 1 << 20, 25 << 20


@dataclass(frozen=True, slots=True)
class Bucket:
    """One flat buffer for the gradients of some parameters."""

    flat: Tensor
    parameters: list[nn.Parameter]


@contextmanager
def process_group(options: StepOptions) -> Generator[Any]:
    """The mesh of devices that a sharded step runs on; None where nothing is sharded.

    Raises:
        InvalidInputError: this process is already one of a group.
    """
    if options.parallel != "fsdp":
        yield None
        return
    if torch.distributed.is_initialized():
        hint = "trace sharding in a process of its own"
        raise InvalidInputError("a process group is initialised", need="none", hint=hint)
    with compat.silent_group(options.world_size) as mesh:
        yield mesh


def shard(model: nn.Module, mesh: Any) -> None:
    """Shard each repeated block, then what is left of the model."""
    from torch.distributed.fsdp import fully_shard

    for block in find_blocks(model).values():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def make_buckets(model: nn.Module) -> list[Bucket]:
    """Flat buffers for all gradients, with the parameters of each: last layers first.

    A bucket is full once it reaches its size (``_compute_bucket_assignment_by_size``); types are kept
    apart.
    """
    groups: dict[torch.dtype, list[list[nn.Parameter]]] = {}
    for parameter in reversed([p for p in model.parameters() if p.requires_grad]):
        buckets = groups.setdefault(parameter.dtype, [[]])
        limit = _FIRST_BUCKET_BYTES if len(buckets) == 1 else _BUCKET_BYTES
        if sum(p.nbytes for p in buckets[-1]) >= limit:
            buckets.append([])
        buckets[-1].append(parameter)
    return [
        Bucket(bucket[0].detach().new_zeros(sum(p.numel() for p in bucket)), bucket)
        for buckets in groups.values()
        for bucket in buckets
    ]


def keep_gradients_in(buckets: list[Bucket]) -> None:
    """Replace each gradient, once it is complete, by a view of its bucket."""
    for bucket in buckets:
        views = bucket.flat.split([p.numel() for p in bucket.parameters])
        for parameter, view in zip(bucket.parameters, views, strict=True):
            parameter.register_post_accumulate_grad_hook(_Moved(view.view_as(parameter)))


class _Moved:
    def __init__(self, view: Tensor) -> None:
        self._view = view

    def __call__(self, parameter: Tensor) -> None:
        if parameter.grad is not self._view:
            assert parameter.grad is not None
            self._view.copy_(parameter.grad)
            parameter.grad = self._view
