"""An ordered stream of storages that are born and die, and its form as a record.

Streams of two batch sizes can be compared event by event only if they are written the same way
each time: accumulation is in place, as it is without an observer, and storages that die together
are listed in the order in which they were born.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from rightbatch.core.samples import MemoryTrace, Owner, Phase

# The strongest claim names the owner: a gradient that becomes optimizer state is optimizer state.
_OWNERS: tuple[Owner, ...] = (
    "temporaries",
    "activations",
    "gradients",
    "optimizer_state",
    "inputs",
    "buffers",
    "parameters",
)
_PHASES: tuple[Phase, ...] = ("setup", "forward", "backward", "optimizer")


@dataclass(frozen=True, slots=True)
class Event:
    """A storage changes its size, from or to nothing as a rule."""

    storage: int
    """Order of birth."""
    delta_bytes: int
    operator: str
    """Who made the storage."""
    phase: Phase


@dataclass(slots=True)
class Stream:
    """Events as they come, and who owns which storage."""

    events: list[Event] = field(default_factory=list[Event])
    owners: dict[int, Owner] = field(default_factory=dict[int, Owner])
    live_bytes: dict[int, int] = field(default_factory=dict[int, int])
    makers: dict[int, str] = field(default_factory=dict[int, str])
    born_in: dict[int, Phase] = field(default_factory=dict[int, Phase])
    phase: Phase = "setup"

    def born(self, nbytes: int, operator: str) -> int:
        """Add a storage and return its number."""
        storage = len(self.makers)
        self.makers[storage], self.born_in[storage] = operator, self.phase
        self.live_bytes[storage] = nbytes
        self.events.append(Event(storage, nbytes, operator, self.phase))
        return storage

    def resized(self, storage: int, nbytes: int) -> None:
        """Change the size of a living storage."""
        if (delta := nbytes - self.live_bytes[storage]) != 0:
            self.live_bytes[storage] = nbytes
            self.events.append(Event(storage, delta, self.makers[storage], self.phase))

    def died(self, storage: int) -> None:
        """Remove a storage with the size it has now."""
        nbytes = self.live_bytes.pop(storage)
        self.events.append(Event(storage, -nbytes, self.makers[storage], self.phase))

    def claim(self, storage: int, owner: Owner) -> None:
        """Say what a storage holds; the strongest claim stays."""
        held = self.owners.get(storage, "temporaries")
        if _OWNERS.index(owner) > _OWNERS.index(held):
            self.owners[storage] = owner

    def claim_rest(self, owner: Owner) -> None:
        """Say what every living storage holds that nobody has claimed."""
        for storage in self.live_bytes:
            self.owners.setdefault(storage, owner)

    def claim_activations(self) -> None:
        """Forward has ended: what it made and left alive is kept for backward."""
        for storage in self.live_bytes:
            if self.born_in[storage] == "forward":
                self.claim(storage, "activations")


def accumulate_in_place(
    events: Sequence[Event], accumulated: Mapping[int, int]
) -> tuple[list[Event], dict[int, int]]:
    """Undo what an observer changes: ``new = old + x; del old`` becomes ``old += x``.

    Args:
        events: as observed.
        accumulated: new storage to the old one that a plain run would have written into.

    Returns:
        The events of a plain run, and which storage each dissolved one became.
    """
    became: dict[int, int] = {}
    dropped: set[int] = set()

    def root(storage: int) -> int:
        while storage in became:
            storage = became[storage]
        return storage

    for start, event in enumerate(events):
        if event.storage not in accumulated or event.delta_bytes <= 0:
            continue
        old = root(accumulated[event.storage])
        for later in range(start + 1, len(events)):
            if events[later].delta_bytes > 0:
                break
            if root(events[later].storage) == old and events[later].delta_bytes == -event.delta_bytes:
                dropped |= {start, later}
                became[event.storage] = old
                break
    kept = [
        Event(root(e.storage), e.delta_bytes, e.operator, e.phase)
        for index, e in enumerate(events)
        if index not in dropped
    ]
    return kept, {storage: root(storage) for storage in became}


def order_deaths(events: Sequence[Event]) -> list[Event]:
    """Sort each run of deaths by birth: their order is that of hash tables, and no peak lies within."""
    ordered: list[Event] = []
    for (shrinks, _), run in groupby(events, key=lambda e: (e.delta_bytes < 0, e.phase)):
        block = list(run)
        ordered += sorted(block, key=lambda e: e.storage) if shrinks else block
    return ordered


def to_trace(
    events: Sequence[Event],
    owners: Mapping[int, Owner],
    *,
    micro_batch_size: int,
    source: Literal["fake", "kernels", "fake cuda"],
    caveats: Sequence[str] = (),
    with_storages: bool = False,
) -> MemoryTrace:
    """Write events as the columns of a record, with the number of each storage where asked."""
    operators = {name: index for index, name in enumerate(dict.fromkeys(e.operator for e in events))}
    return MemoryTrace(
        micro_batch_size=micro_batch_size,
        source=source,
        delta_bytes=tuple(e.delta_bytes for e in events),
        operator=tuple(operators[e.operator] for e in events),
        phase=tuple(_PHASES.index(e.phase) for e in events),
        owner=tuple(_OWNERS.index(owners.get(e.storage, "temporaries")) for e in events),
        operators=tuple(operators),
        phases=_PHASES,
        owners=_OWNERS,
        storage=tuple(e.storage for e in events) if with_storages else (),
        caveats=tuple(caveats),
    )
