"""A folder that remembers what was asked and every finished piece of work, and has one owner.

A piece is finished when the ledger holds it, and an entry appears whole: a kill loses at most the
pieces in flight, and nothing is done twice. That a piece is being worked on is written nowhere, so no
kill can leave one behind that seems to run. The owner's lock goes with its process and those it
started, however they end.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from rightbatch.core.errors import EXIT_FINDING, EXIT_INTERRUPTED, InvalidInputError, RightBatchError
from rightbatch.core.record import SCHEMA_VERSION, Record
from rightbatch.core.store import check_schema, read_json, read_record, write_record

LEDGER = "ledger.sqlite"
AnyRecord = TypeVar("AnyRecord", bound=Record)
_SIGTERM_EXIT = 143  # 128 + SIGTERM
_PATIENCE_SECONDS = 30.0
"""For others that write to the same ledger; an entry takes them milliseconds."""
_DYING_SECONDS = 1.0
"""For the processes of an owner that was killed, which end themselves at once."""
_TABLE = f"""
PRAGMA journal_mode = WAL;
CREATE TABLE entries (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, document TEXT NOT NULL);
CREATE TRIGGER unchanged BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER undeleted BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'append only'); END;
PRAGMA user_version = {SCHEMA_VERSION};
"""


class StudyStoppedError(RightBatchError):
    """A study was stopped from outside; what was finished is kept."""

    exit_code = EXIT_INTERRUPTED

    @classmethod
    def at(cls, where: str, folder: Path, *, terminated: bool) -> StudyStoppedError:
        """Stopped by SIGTERM or else by Ctrl-C, and what to do to go on."""
        error = cls(
            f"stopped by {'SIGTERM' if terminated else 'Ctrl-C'} {where}",
            need="time for the runs that are left",
            hint=f"give the same command again: {folder} keeps every finished run",
        )
        if terminated:
            error.exit_code = _SIGTERM_EXIT
        return error


class BudgetEndedError(RightBatchError):
    """The budget of a call ended before its study; what was finished is kept."""

    exit_code = EXIT_FINDING


@dataclass(frozen=True, slots=True)
class Ledger:
    """Finished work by key, in one SQLite file to which entries are only ever added."""

    path: Path
    _connection: sqlite3.Connection

    def append(self, key: str, record: Record) -> bool:
        """Add an entry for good; False where the key is taken, and what was there first stays.

        Raises:
            InvalidInputError: the file cannot be written, such as on a full disk.
        """
        with _in_words(self.path):
            entry = "INSERT INTO entries (key, document) VALUES (?, ?) ON CONFLICT DO NOTHING"
            return self._connection.execute(entry, (key, record.model_dump_json())).rowcount == 1

    def get(self, key: str, kind: type[AnyRecord]) -> AnyRecord | None:
        """The entry of a key, or None.

        Raises:
            InvalidInputError: the file cannot be read, or the entry is of another version.
        """
        with _in_words(self.path):
            entry = "SELECT document FROM entries WHERE key = ?"
            row = self._connection.execute(entry, (key,)).fetchone()
        if row is None:
            return None
        values = json.loads(row[0])
        check_schema(values.get("schema_version"), f"{key} in {self.path}")
        return kind(**values)

    def keys(self) -> list[str]:
        """Of all entries, in the order in which they were added."""
        with _in_words(self.path):
            rows = self._connection.execute("SELECT key FROM entries ORDER BY number")
            return [key for (key,) in rows]


@contextmanager
def open_ledger(path: Path) -> Generator[Ledger]:
    """A ledger that is there, or a new one; others may have it open, too.

    Raises:
        InvalidInputError: it cannot be made, is no ledger, or another version of rightbatch wrote it.
    """
    with _in_words(path):
        if not path.exists():
            _make(path)
        connection = sqlite3.connect(path, timeout=_PATIENCE_SECONDS, isolation_level=None)
    with closing(connection):
        with _in_words(path):
            (version,) = connection.execute("PRAGMA user_version").fetchone()
        check_schema(version, str(path))
        yield Ledger(path, connection)


def _make(path: Path) -> None:
    """Put an empty ledger in its place, whole; where another process was first, its own stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".ledger-") as folder:
        empty = Path(folder, path.name)
        with closing(sqlite3.connect(empty)) as connection:
            connection.executescript(_TABLE)
        with suppress(FileExistsError):
            os.link(empty, path)


@contextmanager
def _in_words(path: Path) -> Generator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        text = (error.strerror if isinstance(error, OSError) else None) or error
        need = "a ledger that rightbatch wrote, on a disk with space left"
        hint = "free space and give the same command again, or choose another folder with --out"
        raise InvalidInputError(f"cannot use {path}: {text}", need=need, hint=hint) from error


@contextmanager
def sole_owner(folder: Path) -> Generator[None]:
    """Hold a folder for this process and those it forks.

    Raises:
        InvalidInputError: another process holds it, or it cannot be written.
        StudyStoppedError: Ctrl-C while it is held.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w", encoding="utf-8")
    except OSError as error:
        found = f"cannot write {folder}: {error.strerror or error}"
        hint = "choose another folder with --out"
        raise InvalidInputError(found, need="a folder that can be written", hint=hint) from error
    with handle:
        begun = time.monotonic()
        while not _locked(handle.fileno()):
            if time.monotonic() - begun > _DYING_SECONDS:
                found, need = f"another process works in {folder}", "a folder of its own"
                raise InvalidInputError(found, need, hint="wait for it, or choose another --out")
            time.sleep(0.01)
        try:
            yield
        except KeyboardInterrupt as stop:
            stopped = StudyStoppedError.at(f"in {folder}", folder, terminated=False)
            raise stopped from stop


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def same_question(path: Path, asked: AnyRecord, may_grow: frozenset[str] = frozenset()) -> AnyRecord:
    """Save what is asked, or compare it with what was asked when the work began.

    Args:
        path: of the saved question.
        asked: now.
        may_grow: fields whose larger value is taken over.

    Returns:
        The question as it holds from now on: what was fixed at the beginning stays as it was.

    Raises:
        InvalidInputError: another question lies there, or the file is of another version.
    """
    if path.exists():
        values = read_json(path)
        check_schema(values.get("schema_version"), str(path))
        if not values.keys() <= type(asked).model_fields.keys():
            found, hint = f"{path} asks for a study of another kind", "choose another folder with --out"
            raise InvalidInputError(found, need="a folder for each study", hint=hint)
        begun = read_record(path, type(asked))
        ours, theirs = asked.model_dump(mode="json"), begun.model_dump(mode="json")
        changed = [
            name
            for name in ours
            if ours[name] != theirs[name] and not (name in may_grow and ours[name] > theirs[name])
        ]
        if changed:
            name = changed[0]
            found = f"{name} = {_short(ours[name])}, while {path} began with {_short(theirs[name])}"
            hint = "ask the same again, or choose another folder with --out"
            raise InvalidInputError(found, need="what was fixed before the first run", hint=hint)
        if ours == theirs:
            return begun
    write_record(path, asked)
    return asked


def finished(path: Path, kind: type[AnyRecord]) -> AnyRecord | None:
    """A finished piece of work, or None."""
    return read_record(path, kind) if path.exists() else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
