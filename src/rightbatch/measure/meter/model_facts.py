"""What about a model decides how its noise can be measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.samples import Coupling
from rightbatch.tasks.build import batch_norm_layers

MIN_COVERED = 0.9  # share of the parameters; a noise scale of fewer is another number


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Seen once, when the meter is made."""

    compiled: bool
    """Module hooks are not seen by compiled code."""
    replicas: int
    """Processes that average their gradients; 1 without data-parallel training."""


def look_at(model: nn.Module) -> ModelFacts:
    """Collect the facts, and refuse what cannot be metered.

    Raises:
        InvalidInputError: no trainable parameter, or parameters sharded over devices.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        hint = "set requires_grad on what is trained"
        raise InvalidInputError("0 trainable parameters", need="at least 1", hint=hint)
    if any(isinstance(p, DTensor) for p in parameters):
        found, need = "parameters sharded over devices (DTensor)", "whole parameters on every process"
        hint = "measure the noise scale with DistributedDataParallel or on one device"
        raise InvalidInputError(found, need=need, hint=hint)
    compiled = any(
        hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) is not None
        for m in model.modules()
    )
    wrapped = isinstance(model, DistributedDataParallel)
    return ModelFacts(
        compiled=compiled,
        replicas=torch.distributed.get_world_size(model.process_group) if wrapped else 1,
    )


def coupling_of(model: nn.Module) -> Coupling | None:
    """What makes an example's gradient depend on the others of its batch, at present."""
    return "batch-norm" if batch_norm_layers(model) else None


def why_not_per_example(model: nn.Module, facts: ModelFacts, covered: float) -> str | None:
    """Why single examples' gradients cannot be had from hooks on the layers; None where they can.

    Args:
        model: in its present mode.
        facts: about it.
        covered: share of the parameters whose per-example norms were confirmed.
    """
    if coupling_of(model) is not None:
        return "BatchNorm in training: an example's gradient depends on the others of its batch"
    if facts.compiled:
        return "a compiled model, whose layers cannot be listened to"
    if covered < MIN_COVERED:
        return f"per-example gradients confirmed for only {covered:.0%} of the parameters"
    return None
