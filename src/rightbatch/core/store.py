"""Records on disk: written whole or not at all, refused when of another schema version."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.record import SCHEMA_VERSION, Record

AnyRecord = TypeVar("AnyRecord", bound=Record)


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new, never half of either.

    Raises:
        InvalidInputError: the folder cannot be written.
    """
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise InvalidInputError(
            f"cannot write {path}: {error.strerror or error}",
            need="a folder that can be written, with space left",
            hint="choose another folder with --out (train: --run), or free space",
        ) from error
    finally:  # nothing is left of it after a replace, nor to be left after a failure or Ctrl-C
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def write_record(path: Path, record: Record) -> None:
    """Save a record as JSON; ``read_record`` gives back an equal one."""
    write_text(path, record.model_dump_json(indent=1) + "\n")


def read_record(path: Path, kind: type[AnyRecord]) -> AnyRecord:
    """Load a record of the given kind.

    Raises:
        InvalidInputError: the file is missing, is no JSON, or holds another schema or kind.
    """
    values = read_json(path)
    check_schema(values.get("schema_version"), str(path))
    try:
        return kind(**values)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error.found}", error.need, error.hint) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InvalidInputError: the file cannot be read or holds no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        found = f"cannot read {path}: {error.strerror or error}"
        raise InvalidInputError(found, need="a file rightbatch wrote", hint="check the path") from error
    except ValueError as error:
        hint = "delete it and measure again"
        raise InvalidInputError(
            f"{path} is no JSON: {error}", need="a file rightbatch wrote", hint=hint
        ) from error
    if not isinstance(values, dict):
        raise InvalidInputError(
            f"{path} holds no JSON object", need="a file rightbatch wrote", hint="check the path"
        )
    return values


def check_schema(version: object, where: str) -> None:
    """Refuse a file that another version of rightbatch wrote.

    Raises:
        InvalidInputError: the version is not this one.
    """
    if version != SCHEMA_VERSION:
        raise InvalidInputError(
            f"{where} has schema_version {version!r}",
            need=f"schema_version {SCHEMA_VERSION}, which this rightbatch reads and writes",
            hint="make the file again with this version, or install the version that wrote it",
        )
