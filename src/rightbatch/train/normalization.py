"""BatchNorm as the plan wants it: over all replicas, over ghost batches, or replaced by GroupNorm.

What BatchNorm normalises over is part of the model: a plan that changes it changes the objective
(Hoffer et al. 2017, arXiv:1705.08741, Section 4.1; Wu and He 2018, arXiv:1803.08494).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.tasks.build import build_model
from rightbatch.tasks.task import Task

_MOST_GROUPS = 32  # of GroupNorm's authors


def planned_model(task: Task, plan: Plan, device: str, seed: int = 0) -> nn.Module:
    """A fresh model with its BatchNorm as the plan wants it.

    Raises:
        InvalidInputError: there is no BatchNorm to change, or it cannot be done on this device.
        InvalidTaskError: the model cannot be built.
    """
    model = build_model(task, device, seed)
    if plan.batch_norm is None:
        return model
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        found, hint = f"batch_norm = {plan.batch_norm!r} for a model without BatchNorm", "remove it"
        raise InvalidInputError(found, need="a BatchNorm layer", hint=f"{hint} from the plan")
    if plan.batch_norm == "ghost":
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.forward = _Ghost(module, cast(int, plan.ghost_batch_size))
        return model
    if plan.batch_norm == "group":
        return _with_group_norm(model)
    if torch.device(device).type == "cpu":
        found, hint = "batch_norm = 'sync' on the CPU", "use ghost or group, or train on GPUs"
        raise InvalidInputError(found, need="GPUs, where torch can do it", hint=hint)
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


@dataclass(frozen=True, slots=True)
class _Ghost:
    """The forward of a BatchNorm layer that normalises groups of examples by themselves.

    As many groups as bring their size nearest to the wanted one; running statistics take in one
    after the other. Evaluation is that of BatchNorm.
    """

    norm: _BatchNorm
    size: int

    def __call__(self, input: Tensor) -> Tensor:  # named as in torch
        plain = type(self.norm).forward
        groups = max(1, round(len(input) / self.size))
        if not self.norm.training or groups == 1:
            return plain(self.norm, input)
        return torch.cat([plain(self.norm, part) for part in input.tensor_split(groups)])


def _with_group_norm(module: nn.Module) -> nn.Module:
    """Put GroupNorm with the same weights in the place of every BatchNorm."""
    if isinstance(module, _BatchNorm):
        return _group_norm(module)
    for name, child in module.named_children():
        setattr(module, name, _with_group_norm(child))
    return module


def _group_norm(norm: _BatchNorm) -> nn.GroupNorm:
    """Of features without positions one group; of maps up to 32, with two channels or more in each."""
    channels = norm.num_features
    most = 1 if isinstance(norm, nn.BatchNorm1d) else min(_MOST_GROUPS, max(1, channels // 2))
    groups = max(n for n in range(1, most + 1) if channels % n == 0)
    weight = cast(Any, norm).weight
    made = nn.GroupNorm(groups, channels, eps=norm.eps, affine=weight is not None)
    if weight is not None:
        made.weight, made.bias = norm.weight, norm.bias
    return made
