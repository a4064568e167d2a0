"""What a run leaves behind: its plan, its metrics as they come, its weights and its outcome."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.record import SCHEMA_VERSION, Record
from rightbatch.core.run import Evaluation, Run
from rightbatch.core.store import read_record, write_record, write_text
from rightbatch.train.accumulate import WindowGradient
from rightbatch.train.checkpoint import Checkpoints, Manifest, save_tensors
from rightbatch.train.state import Tensors
from rightbatch.train.tensorboard import Log

PLAN, START, METRICS, OUTCOME = "plan.json", "start.json", "metrics.jsonl", "outcome.json"
_LINE_SECONDS = 1.0  # between two updates written to metrics.jsonl
_PROGRESS_SECONDS = 0.1  # between two calls of on_progress


class Start(Record):
    """What a run was started with beside its plan; it resumes with the same."""

    schema_version: int = SCHEMA_VERSION
    task: str
    seed: int
    num_train_examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands, for a progress bar."""

    examples: int
    total_examples: int
    """Of this run, should no target stop it."""
    updates: int
    loss: float
    """Mean loss per target of the last update."""
    learning_rate: float
    batch_size: int
    """Global batch of the last update."""
    seconds: float
    """Training time so far, evaluation and saving not counted."""
    seconds_left: float
    """At the speed so far, evaluation not counted."""
    metrics: dict[str, float] | None
    """Of the evaluation just made; None between evaluations."""


class RunRecord:
    """Owns a run's folder and counts what has been done; only the first process writes."""

    def __init__(
        self,
        path: Path,
        *,
        total_examples: int,
        on_progress: Callable[[Progress], None] | None,
        checkpoints: Checkpoints,
        writes: bool,
        tensorboard: bool = False,
    ) -> None:
        self.path, self._total_examples, self._on_progress = path, total_examples, on_progress
        self._checkpoints, self._writes = checkpoints, writes
        self._metrics: Any = None
        self._tensorboard = tensorboard
        self._log: Log | None = None
        self.examples = self.updates = self.skipped = 0
        self.seconds = 0.0
        self.evaluations: list[Evaluation] = []
        self._loss = self._learning_rate = math.nan
        self._batch_size = 0
        self._loss_total = self._loss_count = 0.0  # since the last evaluation
        self._next_line = self._next_progress = 0.0

    def begin(self, plan: Plan, start: Start) -> None:
        """Create the folder.

        Raises:
            InvalidInputError: it cannot be written.
        """
        if self._writes:
            write_record(self.path / PLAN, plan)
            write_record(self.path / START, start)
            write_text(self.path / METRICS, "")
            self._open()

    def go_on(self, manifest: Manifest) -> None:
        """Count from a checkpoint on; lines of metrics that came after it are dropped."""
        self.examples, self.updates, self.skipped = (
            manifest.examples,
            manifest.updates,
            manifest.skipped,
        )
        self.seconds, self.evaluations = manifest.seconds, list(manifest.evaluations)
        self._loss_total, self._loss_count = manifest.loss_total, manifest.loss_count
        self._next_line = self._next_progress = self.seconds
        if self._writes:
            write_text(self.path / METRICS, _lines_until(self.path / METRICS, manifest.updates))
            (self.path / OUTCOME).unlink(missing_ok=True)
            self._open()

    def _open(self) -> None:
        """Go on behind what the metrics hold."""
        self._metrics = (self.path / METRICS).open("a", encoding="utf-8")
        if self._tensorboard:
            self._log = Log(self.path / "tensorboard", self.updates)

    def add_update(
        self, gradient: WindowGradient, *, num_examples: int, batch_size: int, learning_rate: float
    ) -> None:
        """Count an update."""
        self._learning_rate, self._batch_size = learning_rate, batch_size
        self._count(gradient, num_examples)

    def add_skipped(self, gradient: WindowGradient, num_examples: int) -> None:
        """Count an update that was left out."""
        self.skipped += 1
        self._count(gradient, num_examples)

    def _count(self, gradient: WindowGradient, num_examples: int) -> None:
        self.examples += num_examples
        self.updates += 1
        self._loss = gradient.mean
        self._loss_total += gradient.total
        self._loss_count += gradient.count

    def tell(self, seconds: float, more: Callable[[], dict[str, Any]] = dict) -> None:
        """Write a line of metrics about once a second, and show progress.

        Args:
            seconds: of training, so far.
            more: asked for what else belongs into the line.
        """
        self.seconds = seconds
        if seconds >= self._next_line:
            self._next_line = seconds + _LINE_SECONDS
            at = {"loss": self._loss, "learning_rate": self._learning_rate}
            self._write_line(**at, batch_size=self._batch_size, **more())
        if seconds >= self._next_progress:
            self._next_progress = seconds + _PROGRESS_SECONDS
            self._show(None)

    def add_evaluation(self, metrics: dict[str, float]) -> None:
        """Keep the metrics that the weights have after the last update."""
        train_loss = self._loss_total / self._loss_count
        self._loss_total = self._loss_count = 0.0
        self.evaluations.append(
            Evaluation(
                examples=self.examples,
                updates=self.updates,
                seconds=self.seconds,
                train_loss=train_loss,
                metrics=metrics,
            )
        )
        self._write_line(train_loss=train_loss, metrics=metrics)
        self._show(metrics)

    def _write_line(self, **values: Any) -> None:
        """Add a line to metrics.jsonl.

        Raises:
            InvalidInputError: it cannot be written.
        """
        if self._metrics is None:
            return
        line = {"examples": self.examples, "updates": self.updates, "seconds": self.seconds} | values
        if self._log is not None:
            self._log.add(line)
        try:
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()
        except OSError as error:
            found = f"cannot write {self.path / METRICS}: {error.strerror or error}"
            hint = "free space, then go on with --resume (resume=True)"
            raise InvalidInputError(found, need="space for a line", hint=hint) from error

    def _show(self, metrics: dict[str, float] | None) -> None:
        if self._on_progress is None or not self._writes:
            return
        self._on_progress(
            Progress(
                examples=self.examples,
                total_examples=self._total_examples,
                updates=self.updates,
                loss=self._loss,
                learning_rate=self._learning_rate,
                batch_size=self._batch_size,
                seconds=self.seconds,
                seconds_left=self.seconds * (self._total_examples / self.examples - 1),
                metrics=metrics,
            )
        )

    def save_checkpoint(self, tensors: Tensors, texts: dict[str, str], num_replicas: int) -> None:
        """Save all that a resumed run needs.

        Raises:
            InvalidInputError: it cannot be written.
        """
        if not self._writes:
            return
        manifest = Manifest(
            examples=self.examples,
            updates=self.updates,
            skipped=self.skipped,
            seconds=self.seconds,
            evaluations=tuple(self.evaluations),
            loss_total=self._loss_total,
            loss_count=self._loss_count,
            num_replicas=num_replicas,
            sha256="",
        )
        self._checkpoints.save(manifest, tensors, texts)

    def save_weights(self, name: str, model: nn.Module) -> None:
        """Save a state dict that loads strictly into a fresh model; whole on the first process.

        Raises:
            InvalidInputError: the file cannot be written.
        """
        if self._writes:
            state: dict[str, Tensor] = model.state_dict()
            save_tensors(self.path / "checkpoints" / f"{name}.safetensors", state, {})

    def finish(self, run: Run) -> None:
        """Record the outcome, which makes the folder this run's for good."""
        if self._writes:
            write_record(self.path / OUTCOME, run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._metrics is not None:
            self._metrics.close()
        if self._log is not None:
            self._log.close()


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


def _lines_until(path: Path, updates: int) -> str:
    """The whole lines of metrics up to an update."""
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            if json.loads(line)["updates"] <= updates:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):  # cut off when the process died
            break
    return "".join(kept)
