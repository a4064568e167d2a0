"""The folder of a run: what it is begun with, and whether another start may go on in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.record import SCHEMA_VERSION, Record
from rightbatch.core.run import Run
from rightbatch.core.store import read_record
from rightbatch.train.checkpoint import Checkpoints

PLAN, START, METRICS, OUTCOME = "plan.json", "start.json", "metrics.jsonl", "outcome.json"
_ASIDE = re.compile(  # the last is what safetensors writes into
    r"\.(plan|start|outcome|metrics|mlflow|final|best|ema|update-\d+)\.(jsonl?|safetensors)(\.\w{8})?"
    r"|\.tmp\w{6}"
)


class Start(Record):
    """What a run was started with beside its plan; it resumes with the same."""

    schema_version: int = SCHEMA_VERSION
    task: str
    seed: int
    num_train_examples: int


def check_folder(path: Path, checkpoints: Checkpoints) -> None:
    """Refuse to start a run in the folder of another.

    Raises:
        InvalidInputError: it holds an outcome or a checkpoint.
    """
    if (path / OUTCOME).exists():
        found, hint = f"{path / OUTCOME} records an earlier run", "choose another folder"
        raise InvalidInputError(found, need="a folder of the run's own", hint=hint)
    if saved := checkpoints.manifests():
        found = f"{saved[-1]} is the checkpoint of a run that has no outcome"
        hint = "go on with it: --resume (resume=True); or choose another folder"
        raise InvalidInputError(found, need="a folder of the run's own", hint=hint)


def check_resumable(path: Path, plan: Plan, start: Start) -> Run | None:
    """Compare a folder with what is to be resumed in it.

    Returns:
        The run, where it has come to its end already.

    Raises:
        InvalidInputError: there is no run, it diverged, or it was started with something else.
    """
    if not (path / START).exists():
        hint = "start it without --resume (resume=False)"
        raise InvalidInputError(f"no {path / START}", need="the folder of a run", hint=hint)
    begun, hint = read_record(path / START, Start), "resume with what the run was started with"
    _refuse_changes(path / START, begun, start, hint)
    _refuse_changes(path / PLAN, read_record(path / PLAN, Plan), plan, f"use {path / PLAN}; {hint}")
    if not (path / OUTCOME).exists():
        return None
    run = read_record(path / OUTCOME, Run)
    if run.outcome.value == "diverged":
        hint = "change the plan, and train into another folder"
        raise InvalidInputError(
            f"{path} diverged: {run.message}", need="a run that can go on", hint=hint
        )
    return None if run.outcome.can_resume else run


def remove_unfinished(path: Path) -> None:
    """Delete what a process that died was still writing, or deleting."""
    checkpoints = path / "checkpoints"
    for found in (*path.glob(".*"), *checkpoints.glob(".*")):
        if _ASIDE.fullmatch(found.name):
            found.unlink()
    for tensors in checkpoints.glob("update-*.safetensors"):
        if not tensors.with_suffix(".json").exists():
            tensors.unlink()


def lines_until(path: Path, updates: int) -> str:
    """The whole lines of metrics up to an update."""
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            if json.loads(line)["updates"] <= updates:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):  # cut off when the process died
            break
    return "".join(kept)


def _refuse_changes(path: Path, saved: Record, given: Record, hint: str) -> None:
    """Raise where two records differ.

    Raises:
        InvalidInputError: they do; names the first field.
    """
    ours, theirs = given.model_dump(mode="json"), saved.model_dump(mode="json")
    if changed := [name for name in ours if ours[name] != theirs[name]]:
        found = (
            f"{changed[0]} = {_short(ours[changed[0]])}, while {path} has {_short(theirs[changed[0]])}"
        )
        raise InvalidInputError(found, need="the same to resume", hint=hint)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
