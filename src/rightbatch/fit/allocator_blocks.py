"""Sizes, blocks and pools of torch's caching allocator (constants of c10/core/AllocatorConfig.h)."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

MIB = 1 << 20
MIN_BLOCK_BYTES = 512  # kMinBlockSize: every block is a multiple of this
SMALL_BYTES = MIB  # kSmallSize: up to here a request goes to the small pool
SMALL_SEGMENT_BYTES = 2 * MIB  # kSmallBuffer
LARGE_SEGMENT_BYTES = 20 * MIB  # large_segment_size, for requests below MIN_LARGE_BYTES
MIN_LARGE_BYTES = 10 * MIB  # kMinLargeAlloc: from here a request gets a segment of its own
SEGMENT_ROUNDING_BYTES = 2 * MIB  # kRoundLarge, of such a segment


def round_size(num_bytes: int, divisions: int = 1) -> int:
    """Bytes that a request takes: whole steps of 512, or of a power of two cut in ``divisions``.

    >>> round_size(1), round_size(1200), round_size(1200 * 1024, divisions=4) // 1024
    (512, 1536, 1280)
    """
    step = MIN_BLOCK_BYTES
    if divisions > 1 and num_bytes > MIN_BLOCK_BYTES * divisions:
        step = (1 << (num_bytes.bit_length() - 1)) // divisions
    return -(-max(num_bytes, 1) // step) * step


def segment_bytes(size: int) -> int:
    """Bytes of the segment that a rounded request takes from the driver."""
    if size <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if size < MIN_LARGE_BYTES:
        return LARGE_SEGMENT_BYTES
    return -(-size // SEGMENT_ROUNDING_BYTES) * SEGMENT_ROUNDING_BYTES


@dataclass(slots=True, eq=False)
class Block:
    """A stretch of a segment, in a list with its neighbours."""

    address: int
    size_bytes: int
    pool: Pool
    previous: Block | None = None
    following: Block | None = None
    requested_bytes: int = 0
    in_use: bool = False
    mapped: bool = True
    """False: address space of an expandable segment without memory behind it."""


@dataclass(slots=True, eq=False)
class Pool:
    """The cached blocks of one stream, small or large."""

    small: bool
    cached: dict[int, Block] = field(default_factory=dict[int, Block])
    """Blocks that are not in use, by address."""
    by_size: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Size and address of the mapped ones, in order: the first that suffices is the best fit."""
    unmapped: list[int] = field(default_factory=list[int])
    """Addresses of the others, in order."""

    @property
    def page_bytes(self) -> int:
        """By how much an expandable segment grows."""
        return SMALL_SEGMENT_BYTES if self.small else LARGE_SEGMENT_BYTES

    def insert(self, block: Block) -> None:
        """Cache a block."""
        self.cached[block.address] = block
        if block.mapped:
            insort(self.by_size, (block.size_bytes, block.address))
        else:
            insort(self.unmapped, block.address)

    def remove(self, block: Block) -> None:
        """Take a block out of the cache."""
        del self.cached[block.address]
        if block.mapped:
            del self.by_size[bisect_left(self.by_size, (block.size_bytes, block.address))]
        else:
            del self.unmapped[bisect_left(self.unmapped, block.address)]


def cut(block: Block, size: int) -> Block:
    """Shorten a block to ``size`` and return the rest, its new neighbour."""
    rest = Block(
        block.address + size,
        block.size_bytes - size,
        block.pool,
        previous=block,
        following=block.following,
        mapped=block.mapped,
    )
    if block.following is not None:
        block.following.previous = rest
    block.following, block.size_bytes = rest, size
    return rest


def merge(block: Block, other: Block | None) -> None:
    """``try_merge_blocks``: take in a neighbour that is cached and of the same kind."""
    if other is None or other.in_use or other.mapped != block.mapped:
        return
    other.pool.remove(other)
    if other is block.previous:
        block.address, block.previous = other.address, other.previous
        if block.previous is not None:
            block.previous.following = block
    else:
        block.following = other.following
        if block.following is not None:
            block.following.previous = block
    block.size_bytes += other.size_bytes


def expandable_bytes(block: Block) -> int:
    """Its size, with the address space behind it that it can grow into."""
    after = block.following
    return block.size_bytes + (after.size_bytes if after is not None and not after.mapped else 0)


def free_stretch(unmapped: Block) -> Block:
    """Where the free stretch begins that an unmapped block is part of."""
    before = unmapped.previous
    return before if before is not None and not before.in_use else unmapped


def room_bytes(block: Block | None) -> int:
    """Bytes from a block to the next one in use."""
    total = 0
    while block is not None and not block.in_use:
        total, block = total + block.size_bytes, block.following
    return total
