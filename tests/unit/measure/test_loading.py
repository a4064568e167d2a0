"""Loading times: which sizes, how many batches, and that the first ones are dropped."""

import time
from typing import Any

from torch.utils.data import Dataset

import tiny
from rightbatch.core.recipe import LoaderOptions
from rightbatch.measure.budget import Budget
from rightbatch.measure.loading import (
    BATCHES_PER_SIZE,
    MIN_BATCHES,
    LoaderSamples,
    measure_loader,
)


class Slow(Dataset[Any]):
    """Waits at every example, and longer at the very first."""

    def __init__(self, seconds: float, first: float = 0.0) -> None:
        self.seconds, self.first, self.reads = seconds, first, 0
        self.data = tiny.data()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.seconds if self.reads else self.first)
        self.reads += 1
        return self.data[index]


def test_every_size_is_timed_and_reported() -> None:
    samples = LoaderSamples(0)
    task = tiny.task()
    messages = list(measure_loader(task, samples, [2, 8], budget=Budget(seconds=60)))
    assert messages == ["loader at micro-batch 2", "loader at micro-batch 8"]
    timings = samples.timings()
    assert [t.micro_batch_size for t in timings] == [2, 8]
    assert {len(t.seconds) for t in timings} == {BATCHES_PER_SIZE}
    assert all(s > 0 for t in timings for s in t.seconds)


def test_times_are_those_of_a_batch_without_the_first() -> None:
    samples = LoaderSamples(0)
    data = Slow(1e-3, first=0.5)
    list(measure_loader(tiny.task(train_data=data), samples, [2], budget=Budget(seconds=60)))
    assert max(samples.seconds[2]) < 0.5
    assert min(samples.seconds[2]) >= 2e-3


def test_a_spent_budget_leaves_a_few_batches_of_every_size() -> None:
    samples = LoaderSamples(0)
    task = tiny.task(train_data=Slow(1e-3))
    list(measure_loader(task, samples, [1, 2], budget=Budget(seconds=1e-9)))
    assert {len(s) for s in samples.seconds.values()} == {MIN_BATCHES}


def test_sizes_already_there_are_not_timed_again() -> None:
    samples = LoaderSamples(0, {2: [0.5]})
    messages = list(measure_loader(tiny.task(), samples, [2, 4], budget=Budget(seconds=60)))
    assert messages == ["loader at micro-batch 4"]
    assert samples.seconds[2] == [0.5]


def test_the_tasks_own_collate_reads_the_batches() -> None:
    sizes: list[int] = []

    def collate(examples: list[Any]) -> int:
        sizes.append(len(examples))
        return 0

    samples = LoaderSamples(0)
    list(measure_loader(tiny.task(collate=collate), samples, [3], budget=Budget(seconds=60)))
    assert set(sizes) == {3}


def test_workers_are_started_and_their_pace_is_timed() -> None:
    task = tiny.task(loader=LoaderOptions(num_workers=1))
    samples = LoaderSamples(1)
    list(measure_loader(task, samples, [4], budget=Budget(seconds=60)))
    (timing,) = samples.timings()
    assert (timing.num_workers, len(timing.seconds)) == (1, BATCHES_PER_SIZE)
