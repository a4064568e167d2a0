"""A folder that remembers what was asked and every finished piece of work, and has one owner.

A piece is finished when its file is there, and files appear whole: a kill loses at most the piece
in flight, and nothing is done twice. The owner's lock goes with its process, however that ends.
"""

from __future__ import annotations

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rightbatch.core.errors import EXIT_INTERRUPTED, InvalidInputError, RightBatchError
from rightbatch.core.record import Record
from rightbatch.core.store import read_record, write_record

AnyRecord = TypeVar("AnyRecord", bound=Record)


class StudyStoppedError(RightBatchError):
    """A study was stopped from outside; what was finished is kept."""

    exit_code = EXIT_INTERRUPTED


@contextmanager
def sole_owner(folder: Path) -> Generator[None]:
    """Hold a folder for this process alone.

    Raises:
        InvalidInputError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("w", encoding="utf-8")
    except OSError as error:
        found = f"cannot write {folder}: {error.strerror or error}"
        hint = "choose another folder with --out"
        raise InvalidInputError(found, need="a folder that can be written", hint=hint) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            found, hint = f"another process works in {folder}", "wait for it, or choose another --out"
            raise InvalidInputError(found, need="a folder of its own", hint=hint) from error
        yield


def same_question(path: Path, asked: AnyRecord, may_change: frozenset[str] = frozenset()) -> AnyRecord:
    """Save what is asked, or compare it with what was asked when the work began.

    Args:
        path: of the saved question.
        asked: now.
        may_change: fields whose new value is taken over.

    Returns:
        The question as it holds from now on: what was fixed at the beginning stays as it was.

    Raises:
        InvalidInputError: another question lies there, or the file is of another version.
    """
    if path.exists():
        begun = read_record(path, type(asked))
        ours, theirs = asked.model_dump(mode="json"), begun.model_dump(mode="json")
        changed = [name for name in ours if ours[name] != theirs[name] and name not in may_change]
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
