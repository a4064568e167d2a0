"""Batches worth scoring and the quickest way to cut each."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import known
from rightbatch.core.errors import InfeasibleError
from rightbatch.core.samples import StepTiming
from rightbatch.fit.loader_model import LoaderModel
from rightbatch.fit.models import fit_models
from rightbatch.fit.speed_model import SpeedModel, fit_speed
from rightbatch.plan.candidates import (
    Split,
    batch_grid,
    largest_micro_batch,
    quickest_splits,
    splits,
    update_seconds,
)
from rightbatch.plan.limits import Limits


def speed(seconds: dict[int, float], optimizer: float = 0.0) -> SpeedModel:
    timings = [StepTiming(micro_batch_size=b, seconds=(s,) * 3) for b, s in seconds.items()]
    return fit_speed(timings, (optimizer,) * 3)


def loader(batch: float = 0.0, example: float = 0.0, workers: int = 0) -> LoaderModel:
    return LoaderModel(
        num_workers=workers,
        batch_seconds=batch,
        example_seconds=example,
        residual=0.0,
        valid_range=(8, 512),
    )


@settings(deadline=None)
@given(largest=st.integers(1, 100_000), today=st.integers(1, 100_000))
def test_the_grid_is_fine_bounded_and_holds_todays_batch(largest: int, today: int) -> None:
    grid = batch_grid(largest, today)
    assert grid == sorted(set(grid))
    assert (grid[0], grid[-1] <= largest) == (1, True)
    assert (today in grid) == (today <= largest)
    steps = [b / a for a, b in pairwise(grid) if a > 1]
    assert max(steps, default=1.0) <= 1.5
    assert largest / grid[-1] < 1.5


@settings(deadline=None)
@given(size=st.integers(1, 3000), smallest=st.integers(1, 8), largest=st.integers(1, 3000))
def test_splits_multiply_to_the_batch_and_begin_with_the_fewest_steps(
    size: int, smallest: int, largest: int
) -> None:
    found = list(splits(size, smallest, largest))
    expected = [b for b in range(size, 0, -1) if size % b == 0 and smallest <= b <= largest]
    assert [split.micro_batch_size for split in found] == expected
    assert {split.global_batch_size for split in found} <= {size}


def test_loading_adds_in_the_same_process_and_hides_behind_computing_in_others() -> None:
    split = Split(micro_batch_size=8, accumulation_steps=4)
    computing, loading = 4 * 1.0 + 0.5, 4 * (0.1 + 8 * 0.2)
    assert update_seconds(split, 1.0, 0.5, loader(0.1, 0.2)) == pytest.approx(computing + loading)
    assert update_seconds(split, 1.0, 0.5, loader(0.1, 0.2, workers=2)) == pytest.approx(loading)
    assert update_seconds(split, 1.0, 0.5, loader(0.1, 0.0, workers=2)) == pytest.approx(computing)


def test_update_seconds_works_on_draws() -> None:
    split = Split(micro_batch_size=8, accumulation_steps=2)
    draws = update_seconds(split, np.array([1.0, 2.0]), 0.5, loader(0.25))
    assert draws == pytest.approx([3.0, 5.0])


def test_one_pass_is_quickest_where_throughput_grows() -> None:
    grows = speed({1: 1.0, 64: 2.0})
    found = quickest_splits(grows, loader(), largest_micro=64, largest_global=64, today=48)
    assert {split.accumulation_steps for split in found} == {1}
    assert [split.global_batch_size for split in found] == batch_grid(64, 48)


def test_accumulation_is_quickest_where_throughput_falls_again() -> None:
    falls = speed({1: 1.0, 16: 1.6, 64: 64.0})  # 10 examples per second at 16, 1 at 64
    found = quickest_splits(falls, loader(), largest_micro=64, largest_global=64, today=64)
    assert found[-1] == Split(micro_batch_size=16, accumulation_steps=4)


def test_batches_beyond_the_largest_micro_batch_are_cut() -> None:
    found = quickest_splits(
        speed({2: 1.0, 64: 2.0}), loader(), largest_micro=20, largest_global=100, today=50
    )
    by_size = {split.global_batch_size: split for split in found}
    assert by_size[64] == Split(micro_batch_size=16, accumulation_steps=4)
    assert by_size[50] == Split(micro_batch_size=10, accumulation_steps=5)
    assert 1 not in by_size  # below the smallest size that was timed
    assert max(split.micro_batch_size for split in found) <= 20


def test_the_largest_micro_batch_is_bounded_by_memory_and_by_what_was_timed() -> None:
    measured = known.measurements()  # 1,000,000 bytes and 1,000 an example
    models = fit_models(measured)
    assert models.memory is not None
    assert models.speed is not None
    limits = Limits(memory_limit_bytes=1_100_000, headroom=0.0)
    assert largest_micro_batch(measured, models.memory, models.speed, limits) == 100
    limits = Limits(memory_limit_bytes=1_100_000, headroom=0.05)
    assert largest_micro_batch(measured, models.memory, models.speed, limits) == 45
    assert largest_micro_batch(measured, models.memory, models.speed, Limits()) == 1024
    small = measured.replace(environment=known.environment(memory_bytes=1_200_000))
    assert largest_micro_batch(small, models.memory, models.speed, Limits(headroom=0)) == 200
    with pytest.raises(InfeasibleError, match="one example needs"):
        largest_micro_batch(measured, models.memory, models.speed, Limits(memory_limit_bytes=10))


@settings(deadline=None)
@given(micro=st.integers(1, 40), steps=st.integers(1, 8), num_train_examples=st.integers(1, 2000))
def test_a_lone_example_is_seen_where_an_epoch_cut_evenly_leaves_one(
    micro: int, steps: int, num_train_examples: int
) -> None:
    split = Split(micro_batch_size=micro, accumulation_steps=steps)
    sizes = [
        len(piece)
        for start in range(0, num_train_examples, split.global_batch_size)
        for window in [range(start, min(start + split.global_batch_size, num_train_examples))]
        for piece in np.array_split(window, -(-len(window) // micro))
    ]
    tail_has_one = num_train_examples % split.global_batch_size > 0 and sizes[-1] == 1
    assert split.leaves_one_alone(num_train_examples) == tail_has_one
