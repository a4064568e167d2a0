"""Weights, gradients and optimizer state in shards, one for each process: FSDP2 under the exact step.

``fully_shard`` (Zhao et al. 2023, arXiv:2304.11277) of every repeated block, and of the rest with the
loss, so that whatever a loss does with the model beside its forward finds whole weights. What is saved
and evaluated is put together again on the first process.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rightbatch.core.errors import InvalidInputError, InvalidTaskError
from rightbatch.core.plan import Plan
from rightbatch.tasks.checkpointing import find_blocks
from rightbatch.tasks.task import Loss
from rightbatch.train.distributed import LossModule, Ranks
from rightbatch.train.state import Tensors

Forward = Callable[[int, Any], dict[str, Loss]]


def check_sharding(plan: Plan, ranks: Ranks, *, has_meter: bool) -> None:
    """Refuse a run that cannot be sharded.

    Raises:
        InvalidInputError: there is one process, or something needs whole weights or gradients.
    """
    found, hint = "", "leave out --shard (shard=False)"
    if ranks.count == 1:
        found, hint = "sharding over 1 process", f"start more with torchrun, or {hint}"
    elif plan.ema_decay is not None:
        found = f"sharding with ema_decay = {plan.ema_decay:g}"
    elif has_meter:
        found = "sharding with a meter of the gradient noise"
    if found:
        need = "2 processes or more, no average of the weights and no meter"
        raise InvalidInputError(found, need=need, hint=hint)


class Sharded:
    """Owns a model whose parameters this process holds a part of."""

    def __init__(self, model: nn.Module, forward: Forward, ranks: Ranks, device: str) -> None:
        """Shard a model in place, with the values that it has on the first process.

        Raises:
            InvalidTaskError: FSDP cannot shard it.
        """
        self._model, self._ranks, self._device = model, ranks, device
        for value in (*model.parameters(), *model.buffers()):
            dist.broadcast(value.detach(), src=0, group=ranks.group)
        self._plain = deepcopy(model).cpu() if ranks.is_first else model
        blocks = find_blocks(model)
        _check_model(model, blocks)
        mesh = init_device_mesh(torch.device(device).type, (ranks.count,))
        for block in blocks.values():
            fully_shard(block, mesh=mesh)
        self._root = LossModule(model, lambda size, batch: _plain_terms(forward(size, batch)))
        fully_shard(self._root, mesh=mesh)

    def forward(self, size: int, batch: Any) -> dict[str, Loss]:
        """The terms of one micro-batch's loss."""
        return {name: Loss(*term) for name, term in self._root(size, batch).items()}

    def sync(self, is_last: bool) -> AbstractContextManager[Any]:
        """Let the backward of an update's last micro-batch, and no other, reduce the gradients."""
        cast(FSDPModule, self._root).set_requires_gradient_sync(is_last)
        return nullcontext()

    def share_buffers(self) -> None:
        """Give every process the first one's buffers, as DDP does."""
        for buffer in self._model.buffers():
            dist.broadcast(buffer, src=0, group=self._ranks.group)

    def gather(self, tensors: Tensors) -> Tensors:
        """Put tensors together on the first process, one at a time; nothing on the others."""
        found: Tensors = {}
        for name, value in tensors.items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            if self._ranks.is_first:
                found[name] = whole.detach().cpu()
        return found

    def whole_model(self) -> nn.Module:
        """A copy of the model with whole weights, on the first process; every process must ask."""
        weights = self.gather(self._model.state_dict())
        if not self._ranks.is_first:
            return self._model
        whole = deepcopy(self._plain)
        whole.load_state_dict(weights)
        return whole.to(self._device)


def split_like(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor, cut as another of its shape is; as it is where that is whole."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    placed = whole.to(like.device)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


def _plain_terms(terms: dict[str, Loss]) -> dict[str, tuple[Tensor, int | Tensor]]:
    """As tuples, in which FSDP finds the tensors that its backward begins at."""
    return {name: (term.total, term.count) for name, term in terms.items()}


def _check_model(model: nn.Module, blocks: dict[str, nn.Module]) -> None:
    """Refuse parameters that FSDP cannot cut, or would cut twice, and gradients that it cannot add.

    Raises:
        InvalidTaskError: one has no dimension, belongs to two of the parts, or has sparse gradients.
    """
    for name, module in model.named_modules():
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.sparse:
            hint = "build it with sparse=False, or train without --shard (shard=False)"
            raise InvalidTaskError(f"{name} has sparse gradients", need="dense ones", hint=hint)
    owners: dict[nn.Parameter, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = next((block for block in blocks if name.startswith(f"{block}.")), "")
        found = ""
        if parameter.dim() == 0:
            found = f"parameter {name!r} has no dimension to shard along"
        elif owners.setdefault(parameter, owner) != owner:
            found = f"parameter {name!r} is shared between parts of the model that are sharded apart"
        if found:
            need = "parameters of one dimension or more, each in one block or in none"
            raise InvalidTaskError(found, need=need, hint="train it without --shard (shard=False)")
