"""Batches worth scoring and every way to cut each."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import known
from rightbatch.fit.models import fit_models
from rightbatch.plan.candidates import (
    Candidates,
    Mode,
    Split,
    batch_grid,
    enumerate_candidates,
    replica_counts,
    splits,
)


def modes(*sizes: tuple[int, ...]) -> tuple[Mode, ...]:
    """A mode for each tuple of timed sizes."""
    fitted = [fit_models(known.measurements(known.Laws(sizes=s))) for s in sizes]
    return tuple(
        Mode(precision="fp32", checkpointing=bool(i), memory=m.memory, speed=m.speed)
        for i, m in enumerate(fitted)
        if m.memory and m.speed
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


@pytest.mark.parametrize("most", [1, 2, 3, 8, 12])
def test_numbers_of_devices_are_powers_of_two_and_all_of_them(most: int) -> None:
    found = replica_counts(most)
    assert (found[0], found[-1]) == (1, most)
    assert all(b <= 2 * a for a, b in pairwise(found))


def test_candidates_are_every_split_over_devices_and_modes_in_order_of_batch() -> None:
    found = enumerate_candidates(modes((1, 2, 4), (1, 8)), largest_global=12, today=10, num_replicas=3)
    assert len(found) == len({
        (s.mode, s.micro_batch_size, s.accumulation_steps, s.num_replicas)
        for s in map(found.split, range(len(found)))
    })
    sizes = found.global_batch_size
    assert (np.diff(sizes) >= 0).all()
    assert set(sizes.tolist()) == {1, 2, 3, 4, 6, 8, 10, 12}
    twelve = {
        (s.micro_batch_size, s.accumulation_steps, s.num_replicas)
        for s in map(found.split, np.flatnonzero((sizes == 12) & (found.mode == 0)))
    }
    expected = {
        (b, 12 // r // b, r)
        for r in (1, 2, 3)
        for b in (1, 2, 3, 4)
        if 12 % r == 0 and 12 // r % b == 0
    }
    assert twelve == expected


def test_a_size_that_was_timed_alone_is_taken_in_multiples() -> None:
    found = enumerate_candidates(modes((24,)), largest_global=200, today=24)
    assert set(found.micro_batch_size.tolist()) == {24}
    assert {24, 48, 72, 96, 144, 192} <= set(found.global_batch_size.tolist())


def test_taking_keeps_the_columns_together() -> None:
    found = Candidates.of([
        Split(micro_batch_size=8, accumulation_steps=2, num_replicas=3, mode=0),
        Split(micro_batch_size=4, accumulation_steps=1),
    ])
    assert found.global_batch_size.tolist() == [4, 48]
    assert found.take(np.array([1])).split(0) == found.split(1)


@settings(deadline=None)
@given(
    micro=st.integers(1, 40),
    steps=st.integers(1, 8),
    replicas=st.integers(1, 4),
    num_train_examples=st.integers(1, 2000),
)
def test_a_lone_example_is_seen_where_an_epoch_cut_evenly_leaves_one(
    micro: int, steps: int, replicas: int, num_train_examples: int
) -> None:
    split = Split(micro_batch_size=micro, accumulation_steps=steps, num_replicas=replicas)
    tail = num_train_examples % split.global_batch_size
    sizes = [
        len(piece)
        for share in np.array_split(np.arange(tail), replicas)
        if len(share)
        for piece in np.array_split(share, -(-len(share) // micro))
    ]
    assert split.leaves_one_alone(num_train_examples) == (1 in sizes)
