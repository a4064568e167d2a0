"""How fast the task's own loader gives batches, with nothing else running."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from rightbatch.core.samples import LoaderTiming
from rightbatch.measure.budget import Budget
from rightbatch.tasks.build import collate
from rightbatch.tasks.task import Task

BATCHES_PER_SIZE = 25
MIN_BATCHES = 4


@dataclass(slots=True)
class LoaderSamples:
    """What has been timed so far, by micro-batch size."""

    num_workers: int
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def timings(self) -> tuple[LoaderTiming, ...]:
        """As records, by size."""
        return tuple(
            LoaderTiming(micro_batch_size=b, num_workers=self.num_workers, seconds=tuple(s))
            for b, s in sorted(self.seconds.items())
            if s
        )


def measure_loader(
    task: Task, samples: LoaderSamples, sizes: Sequence[int], *, budget: Budget, seed: int = 0
) -> Iterator[str]:
    """Time batches of examples drawn at random at each size, within the budget.

    The first batches are dropped: workers start and fill their queues then. With workers, the
    time between two batches of a full queue is the loader's pace.

    Args:
        task: gives data, collate and loader options.
        samples: added to in place; sizes already there are skipped.
        sizes: micro-batch sizes to time.
        budget: time to spend.
        seed: of the examples drawn.

    Yields:
        What was just done, after every size.
    """
    for size in sizes:
        if size in samples.seconds:
            continue
        share = budget.part(1 / max(1, len(sizes) - len(samples.seconds)))
        samples.seconds[size] = _time_batches(task, size, share, seed)
        yield f"loader at micro-batch {size}"


def _time_batches(task: Task, size: int, budget: Budget, seed: int) -> list[float]:
    options = task.loader
    warmup = 1 if options.num_workers == 0 else options.num_workers * (options.prefetch_factor or 2)
    count = warmup + BATCHES_PER_SIZE
    generator = torch.Generator().manual_seed(seed)
    batches = [
        torch.randint(task.num_train_examples, (size,), generator=generator).tolist()
        for _ in range(count)
    ]
    loader: Iterable[Any] = (collate(task, batch) for batch in batches)
    if options.num_workers > 0 or options.pin_memory:
        loader = DataLoader(
            cast(Any, task.train_data),
            batch_sampler=batches,
            collate_fn=task.collate,
            num_workers=options.num_workers,
            pin_memory=options.pin_memory,
            prefetch_factor=options.prefetch_factor,
        )
    stamps = [time.perf_counter()]
    for _ in loader:
        stamps.append(time.perf_counter())
        if len(stamps) > warmup + MIN_BATCHES and not budget.allows(0.0):
            break
    return [
        after - before for before, after in zip(stamps[warmup:], stamps[warmup + 1 :], strict=False)
    ]
