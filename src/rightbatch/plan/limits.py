"""What a plan must respect, and what it may use."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rightbatch.core.errors import InvalidInputError

DEFAULT_SLOWDOWN = 1.25
_COUNTS = {
    "memory_limit_bytes": "--memory-limit",
    "max_batch_size": "--max-batch",
    "num_replicas": "--replicas",
    "min_updates": "--min-updates",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on memory, batch size, devices and time."""

    memory_limit_bytes: int | None = None
    """Of each device; None is the measured device's memory."""
    headroom: float = 0.1
    """Share of the limit left free, for what no trace sees: fragmentation and other processes."""
    max_batch_size: int | None = None
    """Largest global batch; None is the number of training examples."""
    num_replicas: int = 1
    """Devices like the measured one that may be used; the plan may take fewer."""
    bandwidth_bytes_per_second: float | None = None
    """At which one device sends to another; None is assumed, with a wide interval."""
    training_seconds: float | None = None
    """Time for the whole run: the plan gets furthest within it instead of reaching a target."""
    slowdown: float = DEFAULT_SLOWDOWN
    """Longest expected time over the quickest candidate's, for the ``accuracy`` objective."""
    min_updates: int | None = None
    """Fewest optimizer steps of the whole run; None only warns below 100."""

    def __post_init__(self) -> None:
        """Refuse limits that nothing can satisfy.

        Raises:
            InvalidInputError: a bound is out of range.
        """
        if not 0 <= self.headroom < 1:
            found = f"headroom = {self.headroom}"
            raise InvalidInputError(
                found, need="a share of at least 0 and below 1", hint="--headroom 0.1"
            )
        if not 1 <= self.slowdown < math.inf:
            found, hint = f"slowdown = {self.slowdown}", f"--slowdown {DEFAULT_SLOWDOWN}"
            raise InvalidInputError(found, need="a number of 1 or more", hint=hint)
        for name, option in _COUNTS.items():
            value = getattr(self, name)
            if value is not None and value < 1:
                hint = f"change {name} ({option})"
                raise InvalidInputError(f"{name} = {value}", need="1 or more", hint=hint)
        for name in ("bandwidth_bytes_per_second", "training_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                hint = f"change {name}"
                raise InvalidInputError(f"{name} = {value}", need="a number above 0", hint=hint)
        if self.bandwidth_bytes_per_second is not None and self.num_replicas == 1:
            found = "a bandwidth between devices with one device"
            hint = "--replicas N, or leave --bandwidth out"
            raise InvalidInputError(found, need="2 or more replicas", hint=hint)
