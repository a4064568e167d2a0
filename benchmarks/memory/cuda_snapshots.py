"""Replay recorded event streams of real GPUs through the allocator simulation.

Each recording is an .npz of plain arrays made from ``torch.cuda.memory._snapshot()``: ``action``,
``addr``, ``size`` and ``stream`` of every event (codes below; sizes are the bytes asked for), and
the state at the end, ``segments`` [address, bytes, small] and ``blocks`` [segment, address, bytes,
requested bytes, in use]. The state at the start follows by undoing the events. Only the addresses
of new segments, which the driver chooses, are taken from the recording.

    python benchmarks/memory/cuda_snapshots.py FOLDER_OR_FILE...
"""

from __future__ import annotations

import sys
from collections import deque
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from rightbatch.fit.allocator_blocks import (
    MIN_BLOCK_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    Block,
    round_size,
)
from rightbatch.fit.caching_allocator import CachingAllocator

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import save

ALLOC, FREE_REQUESTED, FREE_COMPLETED, SEGMENT_ALLOC, SEGMENT_FREE, SNAPSHOT = range(6)
DEFAULT = Path(__file__).parents[2] / ".." / "shared" / "cuda_snapshots"


class Start:
    """Segments and blocks in use before the first event."""

    def __init__(self, data: Any) -> None:
        self.segments = {int(a): (int(size), bool(small)) for a, size, small in data["segments"]}
        self.live = {
            int(a): (int(size), int(asked)) for _, a, size, asked, used in data["blocks"] if used
        }
        events = list(
            zip(data["action"].tolist(), data["addr"].tolist(), data["size"].tolist(), strict=True)
        )
        for action, address, size in reversed(events):
            if action == ALLOC:
                self.live.pop(address, None)
            elif action == FREE_COMPLETED:
                self.live[address] = (0, size)  # how long the block was is not recorded
            elif action == SEGMENT_ALLOC:
                self.segments.pop(address)
            elif action == SEGMENT_FREE:
                self.segments[address] = (size, False)
        self.events = events

    def build(self, allocator: CachingAllocator) -> dict[int, Block]:
        """Put the state into an allocator; returns the blocks in use by address."""
        blocks: dict[int, Block] = {}
        for start, (size, known_small) in sorted(self.segments.items()):
            used = sorted(a for a in self.live if start <= a < start + size)
            small = known_small or (
                size == SMALL_SEGMENT_BYTES and all(self.live[a][1] <= SMALL_BYTES for a in used)
            )
            ends = [*used[1:], start + size][: len(used)]
            lengths = [self.length(a, end, small=small) for a, end in zip(used, ends, strict=True)]
            rows = [(a, n, self.live[a][1]) for a, n in zip(used, lengths, strict=True)]
            made = allocator.add_segment(start, size, rows, small=small)
            blocks |= {block.address: block for block in made}
        return blocks

    def length(self, address: int, end: int, *, small: bool) -> int:
        """Bytes of a block: recorded, or what was asked for with a rest too short to split off."""
        recorded, asked = self.live[address]
        size = round_size(asked)
        keep = MIN_BLOCK_BYTES if small else SMALL_BYTES + 1
        return recorded or (size if end - address - size >= keep else end - address)


def replay(path: Path) -> dict[str, Any]:
    start = Start(np.load(path, allow_pickle=False))
    new_segments: deque[int] = deque()

    def place(size: int) -> int:
        # A segment that was not recorded gets an address of its own, far away.
        return new_segments.popleft() if new_segments else (1 << 50) + 2 * allocator.reserved_bytes

    allocator = CachingAllocator(place=place)
    blocks = start.build(allocator)
    recorded_reserved = recorded_peak = allocator.reserved_bytes
    assert recorded_reserved == sum(size for size, _ in start.segments.values())
    same = total = reserved_differs = 0
    largest_difference = 0
    for action, run in groupby(start.events, key=lambda event: event[0]):
        for _, address, size in run:
            if action == SEGMENT_ALLOC:
                new_segments.append(address)
                recorded_reserved += size
                recorded_peak = max(recorded_peak, recorded_reserved)
            elif action == SEGMENT_FREE:
                recorded_reserved -= size
            elif action == ALLOC:
                total += 1
                block = allocator.allocate(size)
                assert block is not None
                same += block.address == address
                blocks[address] = block
                difference = allocator.reserved_bytes - recorded_reserved
                reserved_differs += difference != 0
                largest_difference = max(largest_difference, abs(difference))
            elif action == FREE_COMPLETED:
                allocator.free(blocks.pop(address))
        if action == SEGMENT_FREE:  # the run was one call of empty_cache
            allocator.empty_cache()
    return {
        "allocations": total,
        "new_segments": int((np.array([e[0] for e in start.events]) == SEGMENT_ALLOC).sum()),
        "same_address": same,
        "same_address_share": same / total,
        "reserved_peak_recorded_bytes": recorded_peak,
        "reserved_peak_simulated_bytes": allocator.peak_reserved_bytes,
        "reserved_end_recorded_bytes": recorded_reserved,
        "reserved_end_simulated_bytes": allocator.reserved_bytes,
        "allocations_with_other_reserved_bytes": reserved_differs,
        "largest_reserved_difference_bytes": largest_difference,
        "requested_peak_bytes": allocator.peak_requested_bytes,
        "allocated_peak_bytes": allocator.peak_allocated_bytes,
    }


if __name__ == "__main__":
    given = [Path(text) for text in sys.argv[1:]] or [DEFAULT]
    files = sorted(file for path in given for file in (path.glob("*.npz") if path.is_dir() else [path]))
    if not files:
        raise SystemExit(f"no recordings (*.npz) in {', '.join(map(str, given))}")
    save("cuda_snapshots", {"recordings": {file.stem: replay(file) for file in files}})
