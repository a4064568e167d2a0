"""Whatever is asked of the allocator, no two blocks overlap and no byte is lost."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from rightbatch.fit.allocator_blocks import MIB, Block
from rightbatch.fit.caching_allocator import AllocatorOptions, CachingAllocator
from rightbatch.fit.cuda_memory import Change, replay

OPTIONS = st.builds(
    AllocatorOptions,
    expandable_segments=st.booleans(),
    max_split_size_bytes=st.sampled_from([None, 24 * MIB, 40 * MIB]),
    roundup_power2_divisions=st.sampled_from([1, 4]),
    capacity_bytes=st.sampled_from([None, 100 * MIB, 300 * MIB]),
)
SIZES = st.one_of(st.integers(1, 4 * MIB), st.integers(1, 64).map(lambda n: n * MIB + 77))
# Allocate so many bytes on a stream, free the i-th living block, or empty the cache.
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), SIZES, st.integers(0, 1)),
        st.tuples(st.just("free"), st.integers(0, 1000), st.just(0)),
        st.tuples(st.just("empty"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


def run(options: AllocatorOptions, steps: list[tuple[str, int, int]]) -> list[int]:
    """Carry the steps out, checking after each; returns all addresses."""
    allocator = CachingAllocator(options)
    live: list[Block] = []
    addresses: list[int] = []
    for action, number, stream in steps:
        if action == "take":
            if (block := allocator.allocate(number, stream)) is not None:
                live.append(block)
                addresses.append(block.address)
        elif action == "free" and live:
            allocator.free(live.pop(number % len(live)))
        elif action == "empty":
            allocator.empty_cache()
        check(allocator, live)
    for block in live:
        allocator.free(block)
    allocator.empty_cache()
    assert allocator.requested_bytes == allocator.allocated_bytes == allocator.reserved_bytes == 0
    return addresses


def check(allocator: CachingAllocator, live: list[Block]) -> None:
    assert allocator.requested_bytes == sum(block.requested_bytes for block in live)
    assert allocator.allocated_bytes == sum(block.size_bytes for block in live)
    assert allocator.requested_bytes <= allocator.allocated_bytes <= allocator.reserved_bytes
    assert all(block.size_bytes >= block.requested_bytes for block in live)
    capacity = allocator.options.capacity_bytes
    assert capacity is None or allocator.reserved_bytes <= capacity
    spans = sorted((block.address, block.address + block.size_bytes) for block in live)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@settings(deadline=None)
@given(options=OPTIONS, steps=STEPS)
def test_blocks_never_overlap_and_all_bytes_come_back(
    options: AllocatorOptions, steps: list[tuple[str, int, int]]
) -> None:
    assert run(options, steps) == run(options, steps)


@settings(deadline=None)
@given(sizes=st.lists(SIZES, min_size=1, max_size=30), options=OPTIONS)
def test_a_replay_reports_the_peaks_of_the_stream(sizes: list[int], options: AllocatorOptions) -> None:
    births = [Change(index, size) for index, size in enumerate(sizes)]
    deaths = [Change(index, -size) for index, size in enumerate(sizes)]
    result = replay([*births, *deaths, *births], options)
    assert result.requested_bytes <= result.allocated_bytes <= result.reserved_bytes
    if result.failed_at is None:
        assert result.requested_bytes == sum(sizes)
        assert len(result.addresses) == 2 * len(sizes)
    else:
        assert options.capacity_bytes is not None
