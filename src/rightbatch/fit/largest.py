"""The largest size that fits, where every smaller one fits, too."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

from rightbatch.fit.memory_law import LARGEST_SIZE


def largest_size(fits: Callable[[int], bool], most: int = LARGEST_SIZE) -> int:
    """Find the largest size from 1 to ``most`` that fits; 0 where not even 1 does.

    >>> largest_size(lambda size: size <= 300), largest_size(lambda size: False)
    (300, 0)
    """
    # The first size that fails lies above a power of two that fits, and at most at the next.
    low = 1
    while low < most and fits(min(2 * low, most)):
        low = min(2 * low, most)
    if low == 1 and not fits(1):
        return 0
    above = range(low + 1, min(2 * low, most) + 1)
    return low + bisect_left(above, True, key=lambda size: not fits(size))
