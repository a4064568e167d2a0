"""Behaviour of torch's CUDA allocator that its source and documentation fix."""

from __future__ import annotations

from typing import Any

import pytest

from rightbatch.core.errors import InvalidInputError
from rightbatch.fit.allocator_blocks import MIB, Block, round_size, segment_bytes
from rightbatch.fit.caching_allocator import AllocatorOptions, CachingAllocator


def allocator(**options: Any) -> CachingAllocator:
    return CachingAllocator(AllocatorOptions(**options))


def take(source: CachingAllocator, num_bytes: int, stream: int = 0) -> Block:
    block = source.allocate(num_bytes, stream)
    assert block is not None
    return block


@pytest.mark.parametrize(
    ("asked", "rounded", "segment"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
    ],
)
def test_requests_round_to_512_and_segments_to_their_class(
    asked: int, rounded: int, segment: int
) -> None:
    assert round_size(asked) == rounded
    assert segment_bytes(rounded) == segment


@pytest.mark.parametrize(
    ("asked_kib", "rounded_kib"), [(1200, 1280), (1024, 1024), (1025, 1280), (1793, 2048), (1.6, 2)]
)
def test_divisions_round_up_between_powers_of_two(asked_kib: float, rounded_kib: int) -> None:
    assert round_size(int(asked_kib * 1024), 4) == rounded_kib * 1024


def test_a_large_rest_up_to_one_mebibyte_stays_with_its_block() -> None:
    kept, cut = allocator(), allocator()
    take(kept, 11 * MIB)
    take(cut, 10 * MIB + 512)
    assert (kept.allocated_bytes, kept.reserved_bytes) == (12 * MIB, 12 * MIB)
    assert (cut.allocated_bytes, cut.reserved_bytes) == (10 * MIB + 512, 12 * MIB)


def test_small_requests_share_a_segment_and_large_ones_another() -> None:
    source = allocator()
    first, second, third = take(source, 100), take(source, 600), take(source, 2 * MIB)
    assert second.address == first.address + 512
    assert source.reserved_bytes == 22 * MIB
    assert abs(third.address - first.address) >= 2 * MIB


def test_the_smallest_block_that_suffices_is_taken_at_the_lowest_address() -> None:
    source = allocator()
    blocks = [take(source, size * MIB) for size in (14, 12, 12, 16)]
    for block in (blocks[3], blocks[2], blocks[1], blocks[0]):
        source.free(block)
    assert take(source, 12 * MIB).address == blocks[1].address
    assert take(source, 12 * MIB).address == blocks[2].address
    assert take(source, 12 * MIB).address == blocks[0].address


def test_neighbours_merge_so_that_the_whole_segment_can_be_taken_again() -> None:
    source = allocator()
    parts = [take(source, 5 * MIB) for _ in range(4)]
    for index in (0, 2, 1, 3):
        source.free(parts[index])
    take(source, 20 * MIB)
    assert source.reserved_bytes == 20 * MIB


def test_streams_do_not_share_cached_blocks() -> None:
    source = allocator()
    source.free(take(source, 12 * MIB, stream=0))
    take(source, 12 * MIB, stream=1)
    assert source.reserved_bytes == 24 * MIB


def test_a_full_device_is_tried_again_with_an_empty_cache() -> None:
    source = allocator(capacity_bytes=30 * MIB)
    source.free(take(source, 20 * MIB))
    take(source, 24 * MIB)
    assert (source.num_retries, source.reserved_bytes) == (1, 24 * MIB)
    assert source.allocate(10 * MIB) is None


def test_segments_with_a_block_in_use_cannot_be_given_back() -> None:
    source = allocator(capacity_bytes=24 * MIB)
    kept = take(source, 2 * MIB)
    source.free(take(source, 12 * MIB))
    assert source.allocate(20 * MIB) is None
    source.free(kept)
    take(source, 20 * MIB)


def test_blocks_beyond_the_split_limit_serve_only_requests_of_nearly_their_size() -> None:
    source = allocator(max_split_size_bytes=32 * MIB)
    source.free(take(source, 64 * MIB))
    take(source, 8 * MIB)
    assert source.reserved_bytes == 64 * MIB + 20 * MIB
    take(source, 40 * MIB)
    assert source.reserved_bytes == 64 * MIB + 20 * MIB + 40 * MIB
    whole = take(source, 48 * MIB)
    assert whole.size_bytes == 64 * MIB


def test_oversize_blocks_are_given_back_before_the_rest_of_the_cache() -> None:
    source = allocator(max_split_size_bytes=32 * MIB, capacity_bytes=100 * MIB)
    source.free(take(source, 12 * MIB))
    source.free(take(source, 64 * MIB))
    take(source, 40 * MIB)  # 64 would waste too much
    assert source.reserved_bytes == 12 * MIB + 40 * MIB


def test_an_expandable_segment_grows_by_pages_and_leaves_no_rest() -> None:
    source = allocator(expandable_segments=True)
    first = take(source, 11 * MIB + 3)
    assert (source.allocated_bytes, source.reserved_bytes) == (11 * MIB + 512, 20 * MIB)
    second = take(source, 30 * MIB)
    assert second.address == first.address + first.size_bytes
    assert source.reserved_bytes == 60 * MIB


def test_pages_of_an_expandable_segment_are_given_back_one_by_one() -> None:
    source = allocator(expandable_segments=True, capacity_bytes=60 * MIB)
    first, hole, last = take(source, 10 * MIB), take(source, 30 * MIB), take(source, 20 * MIB)
    source.free(hole)
    source.empty_cache()
    assert source.reserved_bytes == 40 * MIB  # one whole page lies inside the hole
    again = take(source, 20 * MIB)  # what is left of it, 10 MiB, grows by a page
    assert again.address == first.address + 10 * MIB
    assert source.reserved_bytes == 60 * MIB
    for block in (first, last, again):
        source.free(block)
    source.empty_cache()
    assert (source.reserved_bytes, source.allocated_bytes) == (0, 0)


def test_a_recorded_state_is_continued_where_it_stood() -> None:
    source = CachingAllocator()
    used = [(1000 * MIB + 4 * MIB, 2 * MIB, 2 * MIB - 7)]
    (block,) = source.add_segment(1000 * MIB, 20 * MIB, used, small=False)
    assert (source.requested_bytes, source.allocated_bytes) == (2 * MIB - 7, 2 * MIB)
    assert take(source, 2 * MIB).address == 1000 * MIB
    source.free(block)
    assert take(source, 14 * MIB).address == 1000 * MIB + 2 * MIB
    assert source.reserved_bytes == 20 * MIB


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"roundup_power2_divisions": 3}, "roundup_power2_divisions = 3"),
        ({"max_split_size_bytes": 20 * MIB}, "max_split_size_bytes = 20,971,520"),
    ],
)
def test_options_that_torch_refuses_are_refused(options: dict[str, Any], found: str) -> None:
    with pytest.raises(InvalidInputError, match=found):
        AllocatorOptions(**options)
