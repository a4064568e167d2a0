"""Every way to assemble an update that is worth scoring, as columns of numbers.

A candidate is a global batch cut into replicas x accumulation x micro-batch, run in one mode
(precision, checkpointing). Micro-batches stay in the range that was timed in that mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.recipe import Precision, mode_name
from rightbatch.fit.cuda_model import CudaMemoryModel
from rightbatch.fit.memory_model import MemoryModel
from rightbatch.fit.mode_speed import ModeSpeed
from rightbatch.fit.roofline import Roofline
from rightbatch.fit.speed_model import SpeedModel

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A way to run a micro-batch, with the models that were fitted to it."""

    precision: Precision
    checkpointing: bool
    memory: MemoryModel | CudaMemoryModel
    speed: SpeedModel
    times: ModeSpeed | Roofline | None = None
    """What the error of ``speed`` hangs on: the first mode's times, or an accelerator's efficiency.
    None where each size was timed by itself."""

    def __str__(self) -> str:
        """As sentences name it."""
        return mode_name(self.precision, self.checkpointing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One candidate."""

    micro_batch_size: int
    accumulation_steps: int
    num_replicas: int = 1
    mode: int = 0
    """Index into the modes."""

    @property
    def global_batch_size(self) -> int:
        """Examples per optimizer step."""
        return self.micro_batch_size * self.accumulation_steps * self.num_replicas

    def leaves_one_alone(self, num_train_examples: int) -> bool:
        """Whether an epoch's last update, cut as evenly as it can be, has a micro-batch of 1.

        >>> Split(micro_batch_size=2, accumulation_steps=4).leaves_one_alone(11)  # 8 and 2 + 1
        True
        """
        tail = num_train_examples % self.global_batch_size
        for share in {tail // self.num_replicas, math.ceil(tail / self.num_replicas)} - {0}:
            if share // math.ceil(share / self.micro_batch_size) == 1:
                return True
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """Columns of equal length, one entry for each candidate, ordered by global batch."""

    micro_batch_size: Ints
    accumulation_steps: Ints
    num_replicas: Ints
    mode: Ints

    @classmethod
    def of(cls, splits: Sequence[Split]) -> Candidates:
        """Stack candidates, the smallest global batch first, the fewest devices and passes first."""
        ordered = sorted(
            splits, key=lambda s: (s.global_batch_size, s.num_replicas, s.accumulation_steps, s.mode)
        )
        rows = [(s.micro_batch_size, s.accumulation_steps, s.num_replicas, s.mode) for s in ordered]
        columns = np.array(rows, np.int64).reshape(-1, 4).T
        return cls(
            micro_batch_size=columns[0],
            accumulation_steps=columns[1],
            num_replicas=columns[2],
            mode=columns[3],
        )

    def __len__(self) -> int:
        return len(self.micro_batch_size)

    @property
    def global_batch_size(self) -> Ints:
        """Examples per optimizer step."""
        return self.micro_batch_size * self.accumulation_steps * self.num_replicas

    def take(self, index: Ints | NDArray[np.bool_] | slice) -> Candidates:
        """The candidates at some positions, in the order of these."""
        return Candidates(
            micro_batch_size=self.micro_batch_size[index],
            accumulation_steps=self.accumulation_steps[index],
            num_replicas=self.num_replicas[index],
            mode=self.mode[index],
        )

    def split(self, index: int) -> Split:
        """One of them."""
        return Split(
            micro_batch_size=int(self.micro_batch_size[index]),
            accumulation_steps=int(self.accumulation_steps[index]),
            num_replicas=int(self.num_replicas[index]),
            mode=int(self.mode[index]),
        )


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
    sizes = np.arange(min(largest, global_batch_size), max(smallest, 1) - 1, -1)
    for micro in sizes[global_batch_size % sizes == 0].tolist():
        yield Split(micro_batch_size=micro, accumulation_steps=global_batch_size // micro)


def replica_counts(largest: int) -> list[int]:
    """Numbers of devices worth considering: powers of 2, and all of them.

    >>> replica_counts(6)
    [1, 2, 4, 6]
    """
    return sorted({*(2**k for k in range(largest.bit_length())), largest})


def enumerate_candidates(
    modes: Sequence[Mode], *, largest_global: int, today: int, num_replicas: int = 1
) -> Candidates:
    """Every equal split of every batch of the grid, over the devices, in every mode.

    The grid holds the multiples of a size that was timed alone too, which no power of 2 may be.
    """
    found: list[Split] = []
    for index, mode in enumerate(modes):
        smallest, largest = mode.speed.valid_range
        sizes = set(batch_grid(largest_global, today))
        if smallest == largest:
            sizes |= {smallest * k for k in batch_grid(largest_global // smallest, 1)}
        for replicas in replica_counts(num_replicas):
            for size in sizes:
                share, rest = divmod(size, replicas)
                if rest == 0:
                    found += [
                        Split(
                            micro_batch_size=s.micro_batch_size,
                            accumulation_steps=s.accumulation_steps,
                            num_replicas=replicas,
                            mode=index,
                        )
                        for s in splits(share, smallest, largest)
                    ]
    return Candidates.of(found)
