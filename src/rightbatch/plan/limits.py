"""What a plan must respect."""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch.core.errors import InvalidInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on memory and batch size."""

    memory_limit_bytes: int | None = None
    """None is the measured device's memory."""
    headroom: float = 0.1
    """Share of the limit left free, for what no trace sees: fragmentation and other processes."""
    max_batch_size: int | None = None
    """Largest global batch; None is the number of training examples."""

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
        for name in ("memory_limit_bytes", "max_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InvalidInputError(f"{name} = {value}", need="1 or more", hint=f"change {name}")
