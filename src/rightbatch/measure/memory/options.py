"""What a traced step does that no recipe says: each option changes its memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rightbatch.core.errors import InvalidInputError

Precision = Literal["fp32", "bf16", "fp16", "pure-bf16"]
OptimizerForm = Literal["for-loop", "foreach", "fused"]
Parallel = Literal["ddp", "ddp-bucket-view", "fsdp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """How a step is run; the defaults are the recipe's step on one device.

    Optimizer, clipping and averaged weights are the recipe's: replace them there.
    """

    checkpointing: bool = False
    """Recompute the activations of repeated blocks in backward (``tasks.checkpointing``)."""
    precision: Precision | None = None
    """``bf16`` and ``fp16`` are autocast, the latter with a scaled loss; ``pure-bf16`` holds weights,
    gradients, optimizer state and inputs in bf16; None is the recipe's."""
    optimizer_form: OptimizerForm | None = None
    """One parameter after another, all at once, or in one kernel; None lets torch choose."""
    accumulation_steps: int = 1
    """Micro-batches per optimizer step, all held from its start."""
    keep_gradients: bool = False
    """``zero_grad(set_to_none=False)``: gradients stay allocated between steps."""
    evaluation: bool = False
    """The two steps are followed by the task's evaluation of one batch of the same size."""
    parallel: Parallel | None = None
    """``ddp`` holds gradients a second time in buckets, ``ddp-bucket-view`` in buckets only; ``fsdp``
    (``fully_shard`` of each repeated block and of the whole) a share of everything per device."""
    world_size: int = 1
    """Devices that a parallel step runs on; the trace is of one of them."""

    def __post_init__(self) -> None:
        """Refuse counts below 1, and devices that nothing is spread over.

        Raises:
            InvalidInputError: as said.
        """
        if min(self.accumulation_steps, self.world_size) < 1:
            found = f"accumulation_steps {self.accumulation_steps}, world_size {self.world_size}"
            raise InvalidInputError(found, need="both at least 1", hint="leave out what is not used")
        if (self.world_size > 1) != (self.parallel is not None):
            found = f"world_size {self.world_size} with parallel {self.parallel}"
            hint = 'StepOptions(parallel="ddp", world_size=2)'
            raise InvalidInputError(found, need="both or none of the two", hint=hint)


AS_TODAY = StepOptions()
