"""How often to measure, so that measuring costs a stated share of the time."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

TARGET_OVERHEAD = 0.01
FIRST_PERIOD = 8
MOST = 10_000
WARM_UP = 2  # a first updates allocate and compile: their time says nothing
REMEMBERED = 32


class Period:
    """Every how many updates one is measured.

    A fixed period stays. Otherwise it follows from the median times of plain and of measured
    updates: extra / (period * plain) = 1 %. Medians, because a checkpoint or an evaluation between
    two updates is nobody's overhead.

    >>> period = Period(None)
    >>> for update in range(40):
    ...     measured = update % period.updates == 0
    ...     period.add(0.105 if measured else 0.100, measured=measured)
    ...     period.follow(period.extra_share)
    >>> period.updates
    5
    """

    def __init__(self, fixed: int | None) -> None:
        self._fixed = fixed
        self.updates = FIRST_PERIOD if fixed is None else fixed
        self._plain: deque[float] = deque(maxlen=REMEMBERED)
        self._measured: deque[float] = deque(maxlen=REMEMBERED)
        self._seen = 0

    @property
    def is_fixed(self) -> bool:
        """Whether the user chose it."""
        return self._fixed is not None

    def add(self, seconds: float, *, measured: bool) -> None:
        """Note the time of one update."""
        self._seen += 1
        if self._fixed is not None or self._seen <= WARM_UP:
            return
        (self._measured if measured else self._plain).append(seconds)

    def follow(self, share: float | None) -> None:
        """Adapt to a share that all replicas agreed on: they have to measure the same updates."""
        if self._fixed is None and share is not None and self._seen > WARM_UP:
            self.updates = max(2, min(MOST, math.ceil(share / TARGET_OVERHEAD - 1e-6)))

    @property
    def extra_share(self) -> float | None:
        """What measuring adds to an update, over the update; None before both were timed."""
        if not self._plain or not self._measured:
            return None
        plain = median(self._plain)
        return max(0.0, (median(self._measured) - plain) / plain) if plain > 0 else None
