"""Which examples make up each update: a function of the seed and the epoch, and of nothing else.

Every epoch's order is cut into windows of the global batch, one per update; the shorter last one is
kept. A window is cut into the fewest micro-batches of at most ``micro_batch_size``, as even as they
can be and as many on every process, which are dealt to the processes in turn. So the number of
processes changes neither the order of the examples nor the updates they belong to.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any, NamedTuple, Self, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from rightbatch.core.plan import BatchSchedule, Plan
from rightbatch.core.recipe import examples_in
from rightbatch.core.schedule import batch_size_at
from rightbatch.tasks.build import collate
from rightbatch.tasks.order import SamplerName, epoch_order
from rightbatch.tasks.task import Task
from rightbatch.train.distributed import ALONE, Ranks


class Window(NamedTuple):
    """The examples of one update, by their place in the epoch's order."""

    epoch: int
    start: int
    num_examples: int
    """Of the update, on all processes."""
    batch_size: int
    """The global batch at this point of the run; the last update of an epoch may be shorter."""
    pieces: tuple[tuple[int, int], ...]
    """Start and size of this process's micro-batches; a size of 0 only takes part."""
    ends_epoch: bool
    """Whether the epoch, or the run, ends with this update."""

    @property
    def micro_batch_sizes(self) -> tuple[int, ...]:
        """Of this process."""
        return tuple(size for _, size in self.pieces)


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Every update of a run; iterate it for the windows, in order."""

    num_train_examples: int
    global_batch_size: int
    micro_batch_size: int
    sampler: SamplerName
    seed: int
    total_examples: int
    """Of the run; its last window is cut to end there."""
    batch_schedule: BatchSchedule | None = None
    ranks: Ranks = ALONE
    first: int = 0
    """Examples already processed: where a resumed run goes on."""
    updates: int | None = None
    """Most updates from there; None is as many as the examples make."""

    @classmethod
    def of(
        cls,
        plan: Plan,
        num_train_examples: int,
        seed: int,
        max_updates: int | None = None,
        ranks: Ranks = ALONE,
    ) -> Self:
        """The windows of a plan's run, or of its first ``max_updates`` updates."""
        run = cls(
            num_train_examples=num_train_examples,
            global_batch_size=plan.global_batch_size,
            micro_batch_size=plan.micro_batch_size,
            sampler=plan.sampler,
            seed=seed,
            total_examples=0,
            batch_schedule=plan.batch_schedule,
            ranks=ranks,
            updates=max_updates,
        )
        if plan.epochs is not None:
            total = plan.total_examples(plan.global_batch_size, num_train_examples)
        else:
            assert plan.steps is not None
            total = run.examples_in(plan.steps)
        return replace(run, total_examples=total)

    def examples_in(self, updates: int) -> int:
        """Examples of the first updates, with no end to the run."""
        if self.batch_schedule is None:
            return examples_in(updates, self.global_batch_size, self.num_train_examples)
        return sum(size for _, size, _ in islice(self._spans(0), updates))

    @property
    def last_example(self) -> int:
        """Examples after the last update that will be made."""
        if self.updates is None:
            return self.total_examples
        spans = islice(self._spans(self.first), self.updates)
        return min(self.total_examples, self.first + sum(size for _, size, _ in spans))

    def _spans(self, first: int) -> Iterator[tuple[int, int, int]]:
        """Begin and size of every update from an example on, and its global batch, without an end."""
        while True:
            batch = batch_size_at(self.batch_schedule, self.global_batch_size, first)
            size = min(batch, self.num_train_examples - first % self.num_train_examples)
            yield first, size, batch
            first += size

    def __iter__(self) -> Iterator[Window]:
        """Yield one window per update."""
        num = self.num_train_examples
        for done, (begin, full, batch) in enumerate(self._spans(self.first), start=1):
            if begin >= self.total_examples or (self.updates is not None and done > self.updates):
                return
            epoch, start = divmod(begin, num)
            size = min(full, self.total_examples - begin)
            ends = start + size == num or begin + size == self.total_examples or done == self.updates
            yield Window(epoch, start, size, batch, self._pieces(start, size), ends)

    def _pieces(self, start: int, num_examples: int) -> tuple[tuple[int, int], ...]:
        """This process's micro-batches of a window."""
        found: list[tuple[int, int]] = []
        for size in split_evenly(num_examples, self.micro_batch_size, self.ranks.count):
            found.append((start, size))
            start += size
        return tuple(found[self.ranks.rank :: self.ranks.count])

    def order(self, epoch: int) -> np.ndarray:
        """Indices of an epoch's examples, in order: int64 [num_train_examples]."""
        return epoch_order(self.sampler, self.num_train_examples, seed=self.seed, epoch=epoch)


@cache
def split_evenly(num_examples: int, micro_batch_size: int, num_replicas: int = 1) -> tuple[int, ...]:
    """Cut a window into the fewest micro-batches that fit, as many for each replica.

    Sizes are at most 1 apart; some are 0 where there are fewer examples than micro-batches.

    >>> split_evenly(33, 32)
    (17, 16)
    >>> split_evenly(33, 32, num_replicas=4)
    (9, 8, 8, 8)
    """
    share = -(-num_examples // num_replicas)
    pieces = -(-share // micro_batch_size) * num_replicas
    size, larger = divmod(num_examples, pieces)
    return (size + 1,) * larger + (size,) * (pieces - larger)


def describe_split(global_batch_size: int, micro_batch_size: int, num_replicas: int) -> str:
    """An update in one line, as every run prints it; the micro-batch is the largest that is allowed.

    >>> describe_split(256, 16, 2)
    'global 256 = micro 16 x accumulation 8 x replicas 2'
    >>> describe_split(100, 16, 3)
    'global 100 = micro 11 to 12 x accumulation 3 x replicas 3'
    """
    sizes = split_evenly(global_batch_size, micro_batch_size, num_replicas)
    micro = str(sizes[0]) if sizes[0] == sizes[-1] else f"{sizes[-1]} to {sizes[0]}"
    accumulation = len(sizes) // num_replicas
    return (
        f"global {global_batch_size} = micro {micro} x accumulation {accumulation}"
        f" x replicas {num_replicas}"
    )


class MicroBatches(Sampler[list[int]]):
    """Batch sampler for a DataLoader: the indices of every micro-batch of this process, in order."""

    def __init__(self, windows: Windows, *, keyed: bool = False) -> None:
        """``keyed`` puts epoch and place before the indices, for ``_Seeded``."""
        self.windows, self._keyed = windows, keyed

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of one micro-batch after another, across epochs."""
        epoch, order = -1, np.empty(0, np.int64)
        for window in self.windows:
            if window.epoch != epoch:
                epoch, order = window.epoch, self.windows.order(window.epoch)
            for start, size in window.pieces:
                # Where there is no example left for a process, it takes part with the window's first.
                indices = (
                    order[start : start + size] if size else order[window.start : window.start + 1]
                )
                yield [epoch, start, *indices.tolist()] if self._keyed else indices.tolist()


class _Seeded(Dataset[Any]):
    """In a loader's worker, random augmentation is a function of seed, epoch and place."""

    def __init__(self, data: Any, seed: int) -> None:
        self._data, self._seed = data, seed

    def __getitems__(self, keyed: list[int]) -> list[Any]:
        epoch, start, *indices = keyed
        seed_everything(self._seed, 1, epoch, start)
        read = getattr(self._data, "__getitems__", None)
        if callable(read):
            return cast("list[Any]", read(indices))
        return [self._data[index] for index in indices]


def seed_everything(*key: int) -> None:
    """Seed torch, numpy and Python from a few numbers."""
    torch_seed, numpy_seed, python_seed = np.random.SeedSequence(key).generate_state(3)
    torch.manual_seed(int(torch_seed))
    np.random.seed(int(numpy_seed))
    random.seed(int(python_seed))


@dataclass(frozen=True, slots=True)
class _Reader:
    """What a DataLoader without workers does, without what it spends on a batch beside reading."""

    task: Task
    windows: Windows

    def __iter__(self) -> Iterator[Any]:
        return (collate(self.task, indices) for indices in MicroBatches(self.windows))


def train_loader(task: Task, windows: Windows, device: str) -> Iterable[Any]:
    """A loader of every micro-batch of the run; its workers start once, not once an epoch."""
    in_workers = task.loader.num_workers > 0
    if not in_workers and not _pins_memory(task, device):
        return _Reader(task, windows)
    return DataLoader(
        _Seeded(task.train_data, windows.seed) if in_workers else task.train_data,
        batch_sampler=MicroBatches(windows, keyed=in_workers),
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
        "pin_memory": _pins_memory(task, device),
        "persistent_workers": options.persistent_workers,
        "prefetch_factor": options.prefetch_factor,
        "collate_fn": cast(Any, task.collate),
        "generator": torch.Generator().manual_seed(seed),
    }


def _pins_memory(task: Task, device: str) -> bool:
    return task.loader.pin_memory and torch.device(device).type != "cpu"
