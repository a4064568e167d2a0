"""Checkpoints: tensors as safetensors and a JSON manifest beside them, which makes them count.

Each file is written aside, forced to disk and renamed, the manifest last. So a process that dies at
any moment leaves the checkpoint before or the new one, and a manifest whose tensors are whole.
Reading runs no code from a file.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.record import SCHEMA_VERSION, Record
from rightbatch.core.run import Evaluation
from rightbatch.core.store import check_schema, read_json, write_record
from rightbatch.train.state import Tensors

_NAME = re.compile(r"update-(\d{9,})\.json")
_MOST_MANIFEST_BYTES = 64 << 20


class Manifest(Record):
    """Where a run stood, and what its tensors must hash to."""

    schema_version: int = SCHEMA_VERSION
    examples: int
    updates: int
    skipped: int
    """Updates left out because their gradient overflowed in half precision."""
    seconds: float
    evaluations: tuple[Evaluation, ...]
    loss_total: float
    """Since the last evaluation."""
    loss_count: float
    num_replicas: int
    """Processes that trained; each left its random state."""
    sha256: str
    """Of the tensors' file."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all.

    Raises:
        InvalidInputError: it cannot be written.
    """
    own: Tensors = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        # Tied weights share memory, which safetensors refuses: each name gets its own copy.
        kept = value.detach().cpu().contiguous()
        own[name] = kept.clone() if kept.untyped_storage().data_ptr() in seen else kept
        seen.add(kept.untyped_storage().data_ptr())
    aside = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(own, aside, metadata=dict(texts) or None)
        aside.chmod(0o644)  # as every other file of the folder
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        _sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        need = f"{sum(value.nbytes for value in own.values())} free bytes in a writable folder"
        hint = "free space, or train into another folder; what was saved before is kept"
        raise InvalidInputError(f"cannot write {path}: {error}", need=need, hint=hint) from error
    finally:
        aside.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Tensors and texts of a safetensors file.

    Raises:
        InvalidInputError: it is missing, or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise InvalidInputError(*_damage(path, str(error))) from error


class Checkpoints:
    """The checkpoints of one run, by update."""

    def __init__(self, folder: Path, keep: int) -> None:
        """Keep the last ``keep`` in a folder."""
        self.folder, self._keep = folder, keep

    def save(self, manifest: Manifest, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
        """Add a checkpoint, then delete the oldest beyond those to be kept.

        Raises:
            InvalidInputError: it cannot be written; earlier ones are as they were.
        """
        stem = self.folder / f"update-{manifest.updates:09}"
        path = stem.with_suffix(".safetensors")
        save_tensors(path, tensors, texts)
        write_record(stem.with_suffix(".json"), manifest.replace(sha256=_hash(path)))
        _sync_folder(self.folder)
        for old in self.manifests()[: -self._keep]:
            old.unlink()
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def manifests(self) -> list[Path]:
        """Paths of the manifests, oldest first."""
        if not self.folder.is_dir():
            return []
        named = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return [path for _, path in sorted((int(match[1]), path) for match, path in named if match)]

    def load(self) -> tuple[Manifest, Tensors, dict[str, str]] | None:
        """The newest checkpoint; None where there is none.

        Raises:
            InvalidInputError: it is damaged, or of another schema version.
        """
        paths = self.manifests()
        return read_checkpoint(paths[-1]) if paths else None


def read_checkpoint(path: Path) -> tuple[Manifest, Tensors, dict[str, str]]:
    """A checkpoint whole, by its manifest's path.

    Raises:
        InvalidInputError: it is damaged, or of another schema version.
    """
    manifest, tensors = read_manifest(path), path.with_suffix(".safetensors")
    if not tensors.is_file() or _hash(tensors) != manifest.sha256:
        raise InvalidInputError(*_damage(tensors, f"its SHA-256 is not the one in {path.name}"))
    return manifest, *read_tensors(tensors)


def read_manifest(path: Path) -> Manifest:
    """Where the run stood at a checkpoint; its tensors are not looked at.

    Raises:
        InvalidInputError: it is damaged, or of another schema version.
    """
    try:
        if path.stat().st_size > _MOST_MANIFEST_BYTES:
            raise InvalidInputError(
                *_damage(path, f"{path.stat().st_size} bytes, which no manifest has")
            )
        values = read_json(path)
    except RecursionError as error:
        raise InvalidInputError(*_damage(path, "nested too deeply")) from error
    check_schema(values.get("schema_version"), str(path))
    try:
        return Manifest(**values)
    except (InvalidInputError, ValidationError) as error:
        raise InvalidInputError(*_damage(path, getattr(error, "found", str(error)))) from error


def _damage(path: Path, why: str) -> tuple[str, str, str]:
    """The three parts of the error of a checkpoint that cannot be used."""
    hint = (
        f"delete {path.stem}.json and {path.stem}.safetensors, so that the checkpoint before is taken"
    )
    return f"checkpoint {path} is damaged: {why}", "a whole one", hint


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make renames in it last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
