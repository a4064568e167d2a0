"""Every global batch worth scoring, each with the split that makes its update quickest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.samples import Measurements
from rightbatch.fit.loader_model import LoaderModel
from rightbatch.fit.memory_model import MemoryModel
from rightbatch.fit.speed_model import SpeedModel
from rightbatch.plan.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A global batch cut into equal micro-batches."""

    micro_batch_size: int
    accumulation_steps: int

    @property
    def global_batch_size(self) -> int:
        """Examples per optimizer step."""
        return self.micro_batch_size * self.accumulation_steps

    def leaves_one_alone(self, num_train_examples: int) -> bool:
        """Whether an epoch's last update, cut as evenly as it can be, has a micro-batch of 1.

        >>> Split(micro_batch_size=2, accumulation_steps=4).leaves_one_alone(11)  # 8 and 2 + 1
        True
        """
        tail = num_train_examples % self.global_batch_size
        return tail > 0 and tail // math.ceil(tail / self.micro_batch_size) == 1


def largest_micro_batch(
    measurements: Measurements, memory: MemoryModel, speed: SpeedModel, limits: Limits
) -> int:
    """Largest micro-batch that fits the memory limit and was timed.

    Raises:
        InfeasibleError: not even one example fits; the error says how many bytes are missing.
    """
    limit = limits.memory_limit_bytes or measurements.environment.memory_bytes
    return min(memory.max_micro_batch(limit, limits.headroom), speed.valid_range[1])


def batch_grid(largest: int, today: int) -> list[int]:
    """Powers of 2, three quarters of them, and today's batch: steps of at most a half.

    >>> batch_grid(20, 10)
    [1, 2, 3, 4, 6, 8, 10, 12, 16]
    """
    powers = [2**k for k in range(largest.bit_length())]
    grid = {*powers, *(3 * p // 4 for p in powers if p >= 4), *(3 * p // 2 for p in powers), today}
    return sorted(size for size in grid if size <= largest)


def splits(global_batch_size: int, smallest: int, largest: int) -> Iterator[Split]:
    """Every equal split with micro-batches in the allowed range, fewest steps first."""
    for steps in range(1, global_batch_size // max(smallest, 1) + 1):
        micro, rest = divmod(global_batch_size, steps)
        if rest == 0 and smallest <= micro <= largest:
            yield Split(micro_batch_size=micro, accumulation_steps=steps)


def update_seconds(
    split: Split,
    step_seconds: NDArray[np.float64] | float,
    optimizer_seconds: float,
    loader: LoaderModel,
) -> NDArray[np.float64] | float:
    """Seconds of one update: k forward and backward passes, one optimizer step, and the loading.

    Loading adds where it shares the process with the step; worker processes load beside it, and
    then the slower of the two sets the pace.
    """
    computing = split.accumulation_steps * step_seconds + optimizer_seconds
    loading = split.accumulation_steps * loader.load_seconds(split.micro_batch_size)
    return np.maximum(computing, loading) if loader.overlaps else computing + loading


def quickest_splits(
    speed: SpeedModel, loader: LoaderModel, *, largest_micro: int, largest_global: int, today: int
) -> list[Split]:
    """For each global batch of the grid the split with the quickest update."""
    smallest = speed.valid_range[0]

    def seconds(split: Split) -> float:
        step = speed.step_seconds(split.micro_batch_size)
        return float(update_seconds(split, step, speed.optimizer_seconds, loader))

    chosen = (
        min(splits(size, smallest, largest_micro), key=seconds, default=None)
        for size in batch_grid(largest_global, today)
    )
    return [split for split in chosen if split is not None]
