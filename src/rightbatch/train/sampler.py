"""Which examples make up each update: a function of the seed and the epoch, and of nothing else.

Every epoch's order is cut into windows of ``global_batch_size`` examples, one per update; the
shorter last one is kept. A window is cut into the fewest micro-batches of at most
``micro_batch_size``, as even as they can be, so that none is left with a lone example.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from rightbatch.core.plan import Plan
from rightbatch.core.recipe import examples_in
from rightbatch.tasks.task import Task


class Window(NamedTuple):
    """The examples of one update, by their place in the epoch's order."""

    epoch: int
    start: int
    micro_batch_sizes: tuple[int, ...]
    ends_epoch: bool
    """Whether the epoch, or the run, ends with this update."""

    @property
    def num_examples(self) -> int:
        """Examples of the update."""
        return sum(self.micro_batch_sizes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Every update of a run; iterate it for the windows, in order."""

    num_train_examples: int
    global_batch_size: int
    micro_batch_size: int
    sampler: Literal["shuffle", "sequential", "replacement"]
    seed: int
    total_examples: int
    """Examples of the run; its last window is cut to end there."""

    @classmethod
    def of(cls, plan: Plan, num_train_examples: int, seed: int, max_updates: int | None = None) -> Self:
        """The windows of a plan's run, or of its first ``max_updates`` updates."""
        batch = plan.global_batch_size
        steps = [count for count in (plan.steps, max_updates) if count is not None]
        totals = [examples_in(count, batch, num_train_examples) for count in steps]
        if plan.epochs is not None:
            totals.append(plan.total_examples(batch, num_train_examples))
        return cls(
            num_train_examples=num_train_examples,
            global_batch_size=batch,
            micro_batch_size=plan.micro_batch_size,
            sampler=plan.sampler,
            seed=seed,
            total_examples=min(totals),
        )

    def __iter__(self) -> Iterator[Window]:
        """Yield one window per update."""
        for epoch in range(-(-self.total_examples // self.num_train_examples)):
            length = min(self.num_train_examples, self.total_examples - epoch * self.num_train_examples)
            for start in range(0, length, self.global_batch_size):
                stop = min(start + self.global_batch_size, length)
                sizes = split_evenly(stop - start, self.micro_batch_size)
                yield Window(epoch, start, sizes, stop == length)

    def order(self, epoch: int) -> np.ndarray:
        """Indices of an epoch's examples, in order: int64 [num_train_examples]."""
        if self.sampler == "sequential":
            return np.arange(self.num_train_examples)
        generator = np.random.default_rng((self.seed, epoch))
        if self.sampler == "shuffle":
            return generator.permutation(self.num_train_examples)
        return generator.integers(self.num_train_examples, size=self.num_train_examples)


def split_evenly(num_examples: int, micro_batch_size: int) -> tuple[int, ...]:
    """Cut a window into the fewest micro-batches that fit, their sizes at most 1 apart.

    >>> split_evenly(33, 32)
    (17, 16)
    """
    pieces = -(-num_examples // micro_batch_size)
    size, larger = divmod(num_examples, pieces)
    return (size + 1,) * larger + (size,) * (pieces - larger)


class MicroBatches(Sampler[list[int]]):
    """Batch sampler for a DataLoader: the indices of every micro-batch of a run, in order."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of one micro-batch after another, across epochs."""
        epoch, order = -1, np.empty(0, np.int64)
        for window in self.windows:
            if window.epoch != epoch:
                epoch, order = window.epoch, self.windows.order(window.epoch)
            start = window.start
            for size in window.micro_batch_sizes:
                yield order[start : start + size].tolist()
                start += size


def train_loader(task: Task, windows: Windows, device: str) -> DataLoader[Any]:
    """A loader of every micro-batch of the run; its workers start once, not once an epoch."""
    return DataLoader(
        task.train_data,
        batch_sampler=MicroBatches(windows),
        **_loader_options(task, windows.seed, device),
    )


def valid_loader(task: Task, windows: Windows, device: str) -> DataLoader[Any] | None:
    """The validation data in its own order and in micro-batches, which are known to fit in memory."""
    if task.valid_data is None:
        return None
    options = _loader_options(task, windows.seed, device)
    return DataLoader(task.valid_data, batch_size=windows.micro_batch_size, **options)


def _loader_options(task: Task, seed: int, device: str) -> dict[str, Any]:
    """The task's options, and a generator that keeps loading out of the model's random numbers."""
    options = task.loader
    return {
        "num_workers": options.num_workers,
        "pin_memory": options.pin_memory and torch.device(device).type != "cpu",
        "persistent_workers": options.persistent_workers,
        "prefetch_factor": options.prefetch_factor,
        "collate_fn": cast(Any, task.collate),
        "generator": torch.Generator().manual_seed(seed),
    }
