"""Runs as their folders tell of them, whether they finished or not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.run import Evaluation, Run
from rightbatch.core.store import read_record


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHistory:
    """One run: what it evaluated, and how it ended if it did."""

    name: str
    """Of its folder."""
    global_batch_size: int
    evaluations: tuple[Evaluation, ...]
    run: Run | None
    """None where no outcome was recorded: the run is still going, or was killed."""

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        return self.run.outcome.replace("_", " ") if self.run else "no outcome recorded"


def read_runs(folder: Path) -> tuple[RunHistory, ...]:
    """Read every folder under ``runs``, by name; one without a record of a run is passed over.

    Raises:
        InvalidInputError: a record is damaged or of another schema version.
    """
    places = sorted(path for path in (folder / "runs").glob("*") if path.is_dir())
    return tuple(history for path in places if (history := _read_run(path)))


def _read_run(path: Path) -> RunHistory | None:
    if (path / "outcome.json").exists():
        run = read_record(path / "outcome.json", Run)
        return RunHistory(
            name=path.name,
            global_batch_size=run.global_batch_size,
            evaluations=run.evaluations,
            run=run,
        )
    if (path / "plan.json").exists() and (path / "metrics.jsonl").exists():
        plan = read_record(path / "plan.json", Plan)
        evaluations = _read_evaluations(path / "metrics.jsonl")
        return RunHistory(
            name=path.name,
            global_batch_size=plan.global_batch_size,
            evaluations=evaluations,
            run=None,
        )
    return None


def _read_evaluations(path: Path) -> tuple[Evaluation, ...]:
    """The lines with metrics; what follows the last line break was cut off while being written.

    Raises:
        InvalidInputError: a whole line is no JSON.
    """
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    found: list[Evaluation] = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
        except ValueError as error:
            raise InvalidInputError(
                f"{path}:{number}: no JSON: {error}",
                need="one JSON object a line, as rightbatch wrote it",
                hint=f"remove {path.parent}, or train again into another folder",
            ) from error
        if isinstance(values, dict) and "metrics" in values:
            found.append(Evaluation(**values))
    return tuple(found)
