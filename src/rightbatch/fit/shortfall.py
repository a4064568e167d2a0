"""What to say where not one example fits: the missing bytes, and what would save some."""

from __future__ import annotations

from collections.abc import Mapping

from rightbatch.core.samples import Owner
from rightbatch.core.units import format_bytes

# What makes a part smaller, beside a smaller model.
_SAVES: dict[Owner, str] = {
    "optimizer_state": "sgd keeps none, and sharding over devices (FSDP) divides it",
    "gradients": "sharding over devices (FSDP) divides them",
    "parameters": "sharding over devices (FSDP) divides them",
    "activations": "activation checkpointing and bf16 autocast keep fewer bytes of them",
    "temporaries": "an optimizer in its for-loop form (foreach=False) takes one tensor at a time",
    "inputs": "shorter or smaller examples",
    "buffers": "what modules register beside their parameters",
}


def shortfall(needed_bytes: int, usable_bytes: int, parts: Mapping[Owner, int]) -> tuple[str, str, str]:
    """The three parts of the error for a limit below the memory of one example.

    Args:
        needed_bytes: of one example, at the upper end of its interval.
        usable_bytes: what the limit leaves after headroom.
        parts: bytes by owner at the peak of one example.
    """
    largest = max(parts, key=lambda owner: parts[owner])
    needed, usable = f"{needed_bytes:,} bytes ({format_bytes(needed_bytes)})", f"{usable_bytes:,}"
    hint = f"raise the limit, or shrink {largest}, at {format_bytes(parts[largest])} the largest part"
    return (
        f"one example needs {needed}, usable are {usable}",
        f"{needed_bytes - usable_bytes:,} bytes more",
        f"{hint}: {_SAVES[largest]}",
    )
