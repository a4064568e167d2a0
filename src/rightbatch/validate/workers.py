"""Who does the jobs of a study: this process, forks of it, or a Ray cluster.

A fork has the task as it stands, whatever it was built from, and one thread of its own. It ends with
the process that started it, however that ends: it holds the reading end of a pipe whose writing end
only its parent has, and kills itself, with the loaders it has started, once that is closed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Thread
from typing import Literal, cast

import torch

from rightbatch.core.errors import (
    InvalidInputError,
    InvalidTaskError,
    MeasurementError,
    RightBatchError,
)
from rightbatch.core.record import Record
from rightbatch.tasks.task import Task
from rightbatch.tasks.where import raised
from rightbatch.train.signals import StopRequests
from rightbatch.validate.ledger import StudyStoppedError
from rightbatch.validate.work import Board, Do, Job, Tell, Workers

HowMany = int | Literal["ray"]
_POLL_SECONDS = 0.1
_SAVING_SECONDS = 60.0
"""For runs to save where they stand, once a stop is asked for."""
_MOST_DEATHS = 2
"""Of processes over one job, before it is taken for the cause."""


@contextmanager
def workers_for(
    how_many: HowMany, do: Do, board: Board, *, task: Task, device: str, folder: Path
) -> Generator[Workers]:
    """Workers that are ready, and are gone afterwards.

    Args:
        how_many: processes on this machine; 1 is this process itself; ``ray`` is a Ray cluster.
        do: a job.
        board: is told how far jobs are.
        task: that ``do`` trains.
        device: where the jobs run.
        folder: of the study, as a stopped one names it.

    Raises:
        InvalidInputError: fewer than one, or several on a device that forks cannot share.
        MissingPackageError: Ray is asked for and not installed.
    """
    if how_many == "ray":
        from rightbatch.validate.ray_workers import ray_workers

        with ray_workers(do, task, device) as cluster:
            yield cluster
    elif how_many == 1:
        yield InThisProcess(do, board)
    elif how_many < 1:
        found = f"{how_many} workers"
        raise InvalidInputError(found, need="1 or more, or a Ray cluster", hint="--workers 2")
    elif torch.device(device).type != "cpu":
        found, hint = f"{how_many} workers on {device}", "--workers ray: each run has a GPU of its own"
        raise InvalidInputError(found, need="the CPU, which forks can share", hint=hint)
    else:
        with ExitStack() as stack:
            yield Forks(how_many, do, board, folder, stack)


def answer(do: Do, job: Job, tell: Tell) -> Record | RightBatchError:
    """What a job gave, or why it gave nothing, as something that travels."""
    try:
        return do(job, tell)
    except RightBatchError as error:
        return error
    except Exception as error:
        need, hint = "a task that trains", "call its loss and its evaluate in Python"
        told = InvalidTaskError(*raised(job.key, error, need, hint))
        told.__cause__ = error
        return told


class InThisProcess:
    """One job at a time."""

    def __init__(self, do: Do, board: Board) -> None:
        """Take jobs for ``do``."""
        self._do, self._board = do, board
        self._job: Job | None = None

    @property
    def has_room(self) -> bool:
        """Whether no job waits."""
        return self._job is None

    def submit(self, job: Job) -> None:
        """Keep it until it is waited for."""
        self._job = job

    def wait(self) -> Iterator[tuple[Job, Record]]:
        """Do it.

        Raises:
            RightBatchError: the job raised it.
        """
        job, self._job = self._job, None
        assert job is not None
        found = answer(self._do, job, lambda share, text: self._board.moved(job.key, share, text))
        if isinstance(found, RightBatchError):
            raise found
        yield job, found


@dataclass(slots=True)
class _Fork:
    process: BaseProcess
    connection: Connection
    job: Job | None = None

    def kill(self) -> None:
        """With the loaders that it has started, which are in its process group."""
        with suppress(ProcessLookupError):
            os.killpg(cast(int, self.process.pid), signal.SIGKILL)
        self.process.kill()  # where it has no group yet
        self.process.join()
        self.connection.close()


class Forks:
    """Several processes, each a copy of this one; one that dies is replaced, and its job done again."""

    def __init__(self, count: int, do: Do, board: Board, folder: Path, stack: ExitStack) -> None:
        """Listen for Ctrl-C and SIGTERM until ``stack`` is unwound, which kills what is left."""
        self._count, self._do, self._board, self._folder = count, do, board, folder
        self._forks: list[_Fork] = []
        self._deaths: dict[str, int] = {}
        self._lifeline = os.pipe()
        for end in self._lifeline:
            stack.callback(os.close, end)
        self._stop = StopRequests()
        stack.enter_context(self._stop.listening())
        stack.callback(self._kill)

    @property
    def has_room(self) -> bool:
        """Whether fewer jobs are at work than there may be processes."""
        return sum(fork.job is not None for fork in self._forks) < self._count

    def submit(self, job: Job) -> None:
        """Send it to an idle process, or to a new one."""
        fork = next((fork for fork in self._forks if fork.job is None), None) or self._start()
        fork.job = job
        with suppress(BrokenPipeError, ConnectionResetError):  # it died while idle: ``wait`` sees that
            fork.connection.send(job)

    def wait(self) -> Iterator[tuple[Job, Record]]:
        """Take what comes, and replace what has died, until a job is done.

        Raises:
            StudyStoppedError: Ctrl-C or SIGTERM; the runs at work have saved where they stand.
            MeasurementError: a job ended its process twice.
            RightBatchError: a job raised it.
        """
        has_heard = False
        while not has_heard:
            if self._stop.interrupted or self._stop.terminated:
                self._save()
            busy = [fork for fork in self._forks if fork.job is not None]
            wait([fork.connection for fork in busy], _POLL_SECONDS)
            for fork in busy:
                is_alive = fork.process.is_alive()  # asked before the pipe, which may hold last words
                for done in self._hear(fork):
                    has_heard = True
                    yield done
                if not is_alive and fork.job is not None:
                    self._replace(fork, fork.job)

    def _start(self) -> _Fork:
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_serve, args=(self._do, theirs, ours, self._lifeline))
        process.start()
        theirs.close()
        self._forks.append(_Fork(process, ours))
        return self._forks[-1]

    def _hear(self, fork: _Fork) -> Iterator[tuple[Job, Record]]:
        with suppress(EOFError, ConnectionResetError):
            while fork.job is not None and fork.connection.poll():
                heard = fork.connection.recv()
                if isinstance(heard, tuple):
                    self._board.moved(fork.job.key, *heard)
                elif isinstance(heard, RightBatchError):
                    raise heard
                else:
                    job, fork.job = fork.job, None
                    yield job, heard

    def _replace(self, fork: _Fork, job: Job) -> None:
        code = fork.process.exitcode or 0
        fork.kill()
        self._forks.remove(fork)
        deaths = self._deaths[job.key] = self._deaths.get(job.key, 0) + 1
        if deaths == _MOST_DEATHS:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            found = f"{job.key} ended its process {how}, twice"
            need = f"memory for {self._count} runs at a time, where that is the cause"
            raise MeasurementError(found, need=need, hint="fewer --workers; --workers 1 shows more")
        self.submit(job)

    def _save(self) -> None:
        """Let the runs at work save where they stand.

        Raises:
            StudyStoppedError: always.
        """
        busy = [fork for fork in self._forks if fork.job is not None]
        for fork in busy:
            with suppress(ProcessLookupError):
                os.kill(cast(int, fork.process.pid), signal.SIGTERM)
        until = time.monotonic() + _SAVING_SECONDS
        for fork in busy:
            while fork.process.is_alive() and time.monotonic() < until:
                with suppress(EOFError, ConnectionResetError):
                    if fork.connection.poll(_POLL_SECONDS) and not isinstance(
                        fork.connection.recv(), tuple
                    ):
                        break
        where = f"with {len(busy)} run(s) at work"
        stopped = StudyStoppedError.at(where, self._folder, terminated=self._stop.terminated)
        raise stopped

    def _kill(self) -> None:
        for fork in self._forks:
            fork.kill()


def _serve(do: Do, connection: Connection, parents: Connection, lifeline: tuple[int, int]) -> None:
    """Do jobs until there is no parent any more."""
    os.setpgrp()  # Ctrl-C in a terminal reaches the parent alone, which asks in its own way
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    parents.close()
    reading, writing = lifeline
    os.close(writing)
    Thread(target=_die_with_parent, args=(reading,), daemon=True).start()
    torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # nobody listens any more
        while True:
            job = connection.recv()
            connection.send(answer(do, job, lambda share, text: connection.send((share, text))))


def _die_with_parent(reading: int) -> None:
    os.read(reading, 1)  # returns once nobody can write any more
    os.killpg(0, signal.SIGKILL)
