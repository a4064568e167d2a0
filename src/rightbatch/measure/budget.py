"""Time to spend, and a clock that tests can replace."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A deadline on a clock; parts of it are budgets of their own."""

    seconds: float
    clock: Clock = time.perf_counter
    started: float = field(default=-1.0)

    def __post_init__(self) -> None:
        """Start now unless told otherwise."""
        if self.started < 0:
            object.__setattr__(self, "started", self.clock())

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.started

    @property
    def left(self) -> float:
        """Seconds to the deadline; negative once it has passed."""
        return self.seconds - self.elapsed

    def allows(self, seconds: float) -> bool:
        """Whether something that takes this long would end in time."""
        return seconds <= self.left

    def part(self, share: float) -> Budget:
        """A budget that starts now and has a share of what is left."""
        return Budget(seconds=max(self.left, 0.0) * share, clock=self.clock)
