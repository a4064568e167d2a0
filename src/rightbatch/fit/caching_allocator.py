"""CUDA's caching allocator, simulated: what a stream of allocations makes torch take from the driver.

Follows the native backend of torch 2.10 to 2.13 (c10/cuda/CUDACachingAllocator.cpp; constants in
c10/core/AllocatorConfig.h). The allocator takes *segments* from the driver, cuts them into *blocks*
and keeps what is freed. Three numbers are therefore different:

    requested <= allocated <= reserved

bytes that tensors asked for; bytes of the blocks that hold them (``max_memory_allocated``); bytes
of all segments (``max_memory_reserved``, what the driver has given away). Left out: private pools
of CUDA graphs, garbage collection by age, and blocks that wait for another stream's event.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rightbatch.core.errors import InvalidInputError
from rightbatch.fit.allocator_blocks import (
    LARGE_SEGMENT_BYTES,
    MIN_BLOCK_BYTES,
    SMALL_BYTES,
    Block,
    Pool,
    cut,
    expandable_bytes,
    free_stretch,
    merge,
    room_bytes,
    round_size,
    segment_bytes,
)

_ADDRESS_SPACE_BYTES = 1 << 44  # of an expandable segment: never used up


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatorOptions:
    """What ``PYTORCH_ALLOC_CONF`` sets, and the memory there is.

    Raises:
        InvalidInputError: a value that torch refuses.
    """

    expandable_segments: bool = False
    """One segment per pool and stream, grown page by page."""
    max_split_size_bytes: int | None = None
    """Blocks from here on are not split; None splits all. torch wants more than 20 MiB."""
    roundup_power2_divisions: int = 1
    """Steps between two powers of two to which requests are rounded; 1 rounds to 512 bytes."""
    capacity_bytes: int | None = None
    """What all segments together may take; None is no limit."""

    def __post_init__(self) -> None:
        """Refuse what torch refuses.

        Raises:
            InvalidInputError: see the class.
        """
        divisions, split = self.roundup_power2_divisions, self.max_split_size_bytes
        if divisions < 1 or divisions & (divisions - 1):
            found, need = f"roundup_power2_divisions = {divisions}", "a power of two"
            raise InvalidInputError(found, need=need, hint="use 1, 2, 4 or 8")
        if split is not None and split <= LARGE_SEGMENT_BYTES:
            found, need = f"max_split_size_bytes = {split:,}", f"more than {LARGE_SEGMENT_BYTES:,}"
            raise InvalidInputError(found, need=need, hint="leave it out to split every block")


class CachingAllocator:
    """One device's allocator.

    >>> allocator = CachingAllocator()
    >>> block = allocator.allocate(11 * 2**20 + 3)
    >>> allocator.requested_bytes, allocator.allocated_bytes, allocator.reserved_bytes
    (11534339, 12582912, 12582912)
    """

    def __init__(
        self,
        options: AllocatorOptions | None = None,
        place: Callable[[int], int] | None = None,
    ) -> None:
        """Start empty.

        Args:
            options: None takes torch's defaults.
            place: gives the address of a new segment of so many bytes; None counts upwards.
        """
        self.options = options or AllocatorOptions()
        self.requested_bytes = self.allocated_bytes = self.reserved_bytes = 0
        self.peak_requested_bytes = self.peak_allocated_bytes = self.peak_reserved_bytes = 0
        self.num_retries = 0
        self._pools: dict[tuple[int, bool], Pool] = {}
        self._place = place or self._next_address
        self._end = 1 << 40

    def allocate(self, num_bytes: int, stream: int = 0) -> Block | None:
        """Return a block for ``num_bytes`` > 0; None where memory does not suffice."""
        size = round_size(num_bytes, self.options.roundup_power2_divisions)
        pool = self._pool(stream, small=size <= SMALL_BYTES)
        block = self._best_fit(pool, size) or self._grow(pool, size)
        if block is None:
            self.num_retries += 1
            if self._release_oversize(pool, size):
                block = self._grow(pool, size)
            if block is None:
                self.empty_cache()
                block = self._grow(pool, size)
        if block is None:
            return None
        if self._splits(block, size):
            pool.insert(cut(block, size))
        block.in_use, block.requested_bytes = True, num_bytes
        self.requested_bytes += num_bytes
        self.allocated_bytes += block.size_bytes
        self.peak_requested_bytes = max(self.peak_requested_bytes, self.requested_bytes)
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return block

    def free(self, block: Block) -> None:
        """Cache a block, merged with its free neighbours."""
        assert block.in_use
        block.in_use = False
        self.requested_bytes -= block.requested_bytes
        self.allocated_bytes -= block.size_bytes
        self._settle(block)

    def empty_cache(self) -> None:
        """Return to the driver every segment, and every page, without a block in use."""
        for pool in self._pools.values():
            for block in list(pool.cached.values()):
                if self.options.expandable_segments:
                    self._unmap(block)
                elif block.previous is block.following is None:
                    self._release(block)

    def add_segment(
        self,
        address: int,
        size_bytes: int,
        used: Sequence[tuple[int, int, int]],
        *,
        small: bool,
        stream: int = 0,
    ) -> list[Block]:
        """Continue from a recorded state: add a segment and the blocks in use in it.

        Args:
            address: of the segment.
            size_bytes: of the segment.
            used: address, block bytes and requested bytes of each block, in order.
            small: whether it belongs to the small pool.
            stream: whose it is.

        Returns:
            The blocks in use.
        """
        pool = self._pool(stream, small=small)
        rest: Block | None = Block(address, size_bytes, pool)
        blocks: list[Block] = []
        for start, block_bytes, requested_bytes in used:
            assert rest is not None
            if start > rest.address:
                gap, rest = rest, cut(rest, start - rest.address)
                pool.insert(gap)
            block, end = rest, rest.address + rest.size_bytes
            rest = cut(block, block_bytes) if start + block_bytes < end else None
            block.in_use, block.requested_bytes = True, requested_bytes
            blocks.append(block)
        if rest is not None:
            pool.insert(rest)
        self._reserve(size_bytes)
        self.requested_bytes += sum(block.requested_bytes for block in blocks)
        self.allocated_bytes += sum(block.size_bytes for block in blocks)
        self.peak_requested_bytes = max(self.peak_requested_bytes, self.requested_bytes)
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return blocks

    def _pool(self, stream: int, *, small: bool) -> Pool:
        return self._pools.setdefault((stream, small), Pool(small))

    def _next_address(self, size_bytes: int) -> int:
        start, self._end = self._end, self._end + size_bytes
        return start

    def _fits(self, size_bytes: int) -> bool:
        capacity = self.options.capacity_bytes
        return capacity is None or self.reserved_bytes + size_bytes <= capacity

    def _reserve(self, size_bytes: int) -> None:
        self.reserved_bytes += size_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def _best_fit(self, pool: Pool, size: int) -> Block | None:
        """``get_free_block``: the smallest cached block that suffices, at the lowest address."""
        at = bisect_left(pool.by_size, (size, 0))
        if at == len(pool.by_size):
            return None
        block = pool.cached[pool.by_size[at][1]]
        if (
            self.options.expandable_segments
        ):  # a block that can still grow counts with what it can grow to
            for _, address in pool.by_size[at + 1 :]:
                if expandable_bytes(pool.cached[address]) >= expandable_bytes(block):
                    break
                block = pool.cached[address]
        limit = self.options.max_split_size_bytes
        if limit is not None and size < limit <= block.size_bytes:
            return None
        if limit is not None and size >= limit and block.size_bytes >= size + LARGE_SEGMENT_BYTES:
            return None
        pool.remove(block)
        return block

    def _splits(self, block: Block, size: int) -> bool:
        """``should_split``: whether what a request leaves of a block is worth keeping apart."""
        rest, limit = block.size_bytes - size, self.options.max_split_size_bytes
        if block.pool.small or self.options.expandable_segments:
            return rest >= MIN_BLOCK_BYTES
        return rest > SMALL_BYTES and (limit is None or size < limit)

    def _grow(self, pool: Pool, size: int) -> Block | None:
        """``alloc_block``: a block from the driver, None where it has no more."""
        if self.options.expandable_segments:
            return self._expand(pool, size)
        taken = segment_bytes(size)
        if not self._fits(taken):
            return None
        self._reserve(taken)
        return Block(self._place(taken), taken, pool)

    def _expand(self, pool: Pool, size: int) -> Block | None:
        """``try_allocate_expandable_block``: map pages in the first long enough stretch."""
        if not pool.unmapped:
            whole = _ADDRESS_SPACE_BYTES // pool.page_bytes * pool.page_bytes
            start = -(-self._place(whole) // pool.page_bytes) * pool.page_bytes
            pool.insert(Block(start, whole, pool, mapped=False))
        candidates = (free_stretch(pool.cached[address]) for address in pool.unmapped)
        block = next(b for b in candidates if room_bytes(b) >= size)
        while not block.mapped or block.size_bytes < size:
            missing = size - block.size_bytes if block.mapped else size
            grown = block.following if block.mapped else block
            assert grown is not None
            if not self._map(grown, missing):
                return None
            block = grown  # has taken in the free block before it
        pool.remove(block)
        return block

    def _map(self, block: Block, num_bytes: int) -> bool:
        """``map_block``: put pages behind the start of a block; False where memory does not suffice."""
        pool = block.pool
        size = -(-min(num_bytes, block.size_bytes) // pool.page_bytes) * pool.page_bytes
        if not self._fits(size):
            return False
        pool.remove(block)
        if size < block.size_bytes:
            pool.insert(cut(block, size))
        block.mapped = True
        self._reserve(size)
        self._settle(block)
        return True

    def _unmap(self, block: Block) -> None:
        """``unmap_block``: give back the whole pages inside a free block."""
        pool, page = block.pool, block.pool.page_bytes
        start = -(-block.address // page) * page
        end = (block.address + block.size_bytes) // page * page
        if not block.mapped or start >= end:
            return
        pool.remove(block)
        if end < block.address + block.size_bytes:
            pool.insert(cut(block, end - block.address))
        if start > block.address:
            front, block = block, cut(block, start - block.address)
            pool.insert(front)
        block.mapped = False
        self.reserved_bytes -= end - start
        self._settle(block)

    def _settle(self, block: Block) -> None:
        """Merge a block that is not in use with its neighbours of the same kind, and cache it."""
        merge(block, block.previous)
        merge(block, block.following)
        block.pool.insert(block)

    def _release(self, block: Block) -> None:
        """``release_block``: give a segment that is one free block back to the driver."""
        block.pool.remove(block)
        self.reserved_bytes -= block.size_bytes

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """``release_available_cached_blocks``: give back unsplittable blocks until ``size`` is free."""
        limit = self.options.max_split_size_bytes
        if limit is None or self.options.expandable_segments:
            return False
        wanted = max(size, limit)
        if (at := bisect_left(pool.by_size, (wanted, 0))) < len(pool.by_size):
            self._release(pool.cached[pool.by_size[at][1]])
            return True
        released = 0
        while released < wanted and pool.by_size and pool.by_size[-1][0] >= limit:
            released += pool.by_size[-1][0]
            self._release(pool.cached[pool.by_size[-1][1]])
        return released >= wanted
