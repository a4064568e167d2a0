"""What one training step computes and moves, operator by operator."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorWork:
    """All calls of one operator on one type of number, in one step."""

    operator: str
    dtype: str
    """As torch names it: ``float32``, ``bfloat16``."""
    calls: int
    flops: int
    """Of matrix products, convolutions and attention, a multiplication with its addition counted as
    two; 0 elsewhere."""
    moved_bytes: int
    """Read from and written to memory, each tensor once per call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """One optimizer step of ``micro_batch_size`` examples."""

    micro_batch_size: int
    operators: tuple[OperatorWork, ...]

    @property
    def flops(self) -> int:
        """Of the whole step."""
        return sum(work.flops for work in self.operators)

    @property
    def moved_bytes(self) -> int:
        """Of the whole step."""
        return sum(work.moved_bytes for work in self.operators)
