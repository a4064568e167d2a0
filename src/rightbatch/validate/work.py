"""A study as chains of jobs: each job is done once and kept, some at the same time as others.

A chain yields one job after the other and is sent what each gave; it returns the chains that may
begin now that it has ended. What a chain asks for depends on its own answers alone, so that a study
asks for the same jobs whatever number of workers does them, and in whatever order they end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Protocol

from rightbatch.core.progress import OnProgress, Progress
from rightbatch.core.record import Record
from rightbatch.validate.ledger import AnyRecord, Ledger


class Job(Protocol):
    """What a worker is told; it travels to other processes."""

    @property
    def key(self) -> str:
        """Its name in the ledger."""
        ...


Tell = Callable[[float, str], None]
"""How far a job has come, 0 to 1, and what it sees there, in a few words."""
Do = Callable[[Job, Tell], Record]
Chain = Generator[Job, Record, "Sequence[Chain]"]


def once(job: Job) -> Chain:
    """A chain of one job."""
    yield job
    return []


class Workers(Protocol):
    """Where jobs are done."""

    @property
    def has_room(self) -> bool:
        """Whether a job may be handed over now."""
        ...

    def submit(self, job: Job) -> None:
        """Hand a job over."""
        ...

    def wait(self) -> Iterator[tuple[Job, Record]]:
        """Jobs that have been done; waits until there is one."""
        ...


class Board:
    """How far all jobs are, and how long the rest may take at the pace of this call."""

    def __init__(self, stage: str, expected: int, on_progress: OnProgress | None) -> None:
        """Begin the clock; what an earlier call has done takes no time of this one."""
        self.expected = expected
        self._stage, self._on_progress = stage, on_progress
        self._begun = time.monotonic()
        self._kept = self._made = 0
        self._running: dict[str, float] = {}

    def moved(self, key: str, share: float, message: str) -> None:
        """A job has come as far as ``share``."""
        self._running[key] = share
        self._show(f"{key}, {message}")

    def done(self, key: str, *, kept: bool) -> None:
        """A job is finished, now or by an earlier call."""
        self._running.pop(key, None)
        self._kept, self._made = self._kept + kept, self._made + (not kept)
        self._show(key)

    def _show(self, message: str) -> None:
        if self._on_progress is None:
            return
        fresh = self._made + sum(self._running.values())
        rest = max(self.expected - self._kept - fresh, 0.0)
        left = (time.monotonic() - self._begun) * rest / fresh if fresh > 0 else None
        share = 1 - rest / max(self.expected, 1)
        self._on_progress(
            Progress(stage=self._stage, fraction=share, seconds_left=left, message=message)
        )


def run_chains(
    chains: Iterable[Chain],
    kind: type[AnyRecord],
    *,
    workers: Workers,
    ledger: Ledger,
    board: Board,
    may_start: Callable[[], bool] = lambda: True,
) -> Iterator[tuple[Job, AnyRecord]]:
    """Yield every job and what it gave, as they end, those of earlier calls as they are asked for.

    Args:
        chains: of jobs.
        kind: of what the jobs give.
        workers: do the jobs.
        ledger: keeps what they gave.
        board: is told.
        may_start: asked before each new job; once it says no, that job's chain ends.
    """
    waiting: deque[tuple[Chain, Record | None]] = deque((chain, None) for chain in chains)
    at_work: dict[str, Chain] = {}
    while True:
        while waiting and workers.has_room:
            chain, answer = waiting.popleft()
            try:
                job = chain.send(answer)  # type: ignore[arg-type] - the first of a chain is None
            except StopIteration as end:
                waiting.extendleft((follower, None) for follower in reversed(end.value))
                continue
            kept = ledger.get(job.key, kind)
            if kept is not None:
                board.done(job.key, kept=True)
                yield job, kept
                waiting.appendleft((chain, kept))
            elif may_start():
                workers.submit(job)
                at_work[job.key] = chain
        if not at_work:
            return
        for job, found in workers.wait():
            assert isinstance(found, kind)
            ledger.append(job.key, found)
            board.done(job.key, kept=False)
            yield job, found
            waiting.appendleft((at_work.pop(job.key), found))
