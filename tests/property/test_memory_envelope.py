"""The fitted law is the maximum over every instant of every stream, to the byte."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rightbatch.core.samples import MemoryTrace
from rightbatch.fit.memory_law import fit_law
from rightbatch.fit.memory_model import fit_memory_model

Storage = tuple[int, int, int, int]
SIZES = (1, 2, 3, 5, 7, 16, 17, 100, 999, 4096, 100_003)


def streams(degree: int) -> st.SearchStrategy[list[tuple[Storage, bool]]]:
    """Storages of size c0 + c1 b + c2 b^2 + c3 b^3, each freed at once or never."""
    square, cube = (st.integers(0, 9) if degree >= power else st.just(0) for power in (2, 3))
    storage = st.tuples(st.integers(0, 5000), st.integers(0, 300), square, cube)
    return st.lists(st.tuples(storage, st.booleans()), min_size=1, max_size=30)


def write(stream: list[tuple[Storage, bool]], size: int) -> MemoryTrace:
    """Births in order; the storages that die do so one step late, so that lives overlap."""
    deltas: list[int] = []
    waiting = 0
    for (c0, c1, c2, c3), dies in stream:
        nbytes = c0 + c1 * size + c2 * size**2 + c3 * size**3
        deltas += [nbytes, -waiting]
        waiting = nbytes if dies else 0
    n = len(deltas)
    return MemoryTrace(
        micro_batch_size=size,
        source="kernels",
        delta_bytes=tuple(deltas),
        operator=(0,) * n,
        phase=(0,) * n,
        owner=tuple(i % 4 // 2 for i in range(n)),
        operators=("op",),
        phases=("forward",),
        owners=("temporaries", "inputs"),
    )


def brute_force_peak(stream: list[tuple[Storage, bool]], size: int) -> int:
    live = peak = 0
    for delta in write(stream, size).delta_bytes:
        live += delta
        peak = max(peak, live)
    return peak


@settings(deadline=None)
@given(stream=streams(degree=1))
def test_two_sizes_give_the_peak_of_every_other(stream: list[tuple[Storage, bool]]) -> None:
    law = fit_law([write(stream, 2), write(stream, 3)])
    assert [law.peak_bytes(b) for b in SIZES] == [brute_force_peak(stream, b) for b in SIZES]


@settings(deadline=None)
@given(stream=streams(degree=2))
def test_four_sizes_give_the_peak_of_a_quadratic_step(stream: list[tuple[Storage, bool]]) -> None:
    law = fit_law([write(stream, b) for b in (2, 3, 4, 16)])
    expected = [brute_force_peak(stream, b) for b in SIZES]
    assert [law.peak_bytes(b) for b in SIZES] == expected
    assert law.peaks_bytes(np.array(SIZES)).tolist() == expected


@settings(deadline=None)
@given(stream=streams(degree=3))
def test_five_sizes_give_the_peak_of_a_cubic_step(stream: list[tuple[Storage, bool]]) -> None:
    law = fit_law([write(stream, b) for b in (2, 3, 4, 5, 64)])
    expected = [brute_force_peak(stream, b) for b in SIZES]
    assert [law.peak_bytes(b) for b in SIZES] == expected
    assert law.peaks_bytes(np.array(SIZES)).tolist() == expected


@settings(deadline=None)
@given(stream=streams(degree=2), size=st.integers(1, 10_000))
def test_the_breakdown_sums_to_the_peak(stream: list[tuple[Storage, bool]], size: int) -> None:
    model = fit_memory_model([write(stream, b) for b in (2, 3, 4, 16)])
    assert sum(model.breakdown(size).values()) == model.peak_bytes(size)


@settings(deadline=None)
@given(stream=streams(degree=1), limit=st.integers(1, 10**8))
def test_the_largest_micro_batch_fits_and_the_next_does_not(
    stream: list[tuple[Storage, bool]], limit: int
) -> None:
    model = fit_memory_model([write(stream, b) for b in (2, 3, 16)])
    limit += model.high_bytes(1)
    largest = model.max_micro_batch(limit)
    assert model.high_bytes(largest) <= limit
    assert largest == model.valid_range[1] or model.high_bytes(largest + 1) > limit
