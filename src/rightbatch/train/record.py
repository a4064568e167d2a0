"""What a run leaves behind: its plan, its metrics as they come, its weights and its outcome."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from torch import Tensor, nn

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.run import Evaluation, Run
from rightbatch.core.store import write_record, write_text
from rightbatch.train.accumulate import WindowGradient
from rightbatch.train.checkpoint import Checkpoints, Manifest, save_tensors
from rightbatch.train.folder import METRICS, OUTCOME, PLAN, START, Start, lines_until, remove_unfinished
from rightbatch.train.state import Tensors

_LINE_SECONDS = 1.0  # between two updates written to metrics.jsonl
_PROGRESS_SECONDS = 0.1  # between two calls of on_progress


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


class Log(Protocol):
    """Takes the lines of metrics to a tool that draws them."""

    def add(self, line: dict[str, Any]) -> None:
        """Take a line of metrics."""
        ...

    def close(self, run: Run | None) -> None:
        """The run has ended; None where it was an error that ended it."""
        ...


OpenLog = Callable[[Path, int], Log]
"""From a run's folder and the updates that it holds so far."""


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
        logs: Sequence[OpenLog] = (),
    ) -> None:
        self.path, self._total_examples, self._on_progress = path, total_examples, on_progress
        self._checkpoints, self._writes = checkpoints, writes
        self._metrics: Any = None
        self._open_logs, self._logs = logs, list[Log]()
        self._run: Run | None = None
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
            remove_unfinished(self.path)
            write_record(self.path / PLAN, plan)
            write_record(self.path / START, start)
            write_text(self.path / METRICS, "")
            (self.path / OUTCOME).unlink(missing_ok=True)
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
            remove_unfinished(self.path)
            write_text(self.path / METRICS, lines_until(self.path / METRICS, manifest.updates))
            (self.path / OUTCOME).unlink(missing_ok=True)
            self._open()

    def _open(self) -> None:
        """Go on behind what the metrics hold."""
        self._metrics = (self.path / METRICS).open("a", encoding="utf-8")
        for open_log in self._open_logs:
            self._logs.append(open_log(self.path, self.updates))

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
        try:
            for log in self._logs:
                log.add(line)
            self._metrics.write(json.dumps(line) + "\n")
            self._metrics.flush()
        except OSError as error:
            found = f"cannot write the metrics of {self.path}: {error.strerror or error}"
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
        self._run = run
        if self._writes:
            write_record(self.path / OUTCOME, run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._metrics is not None:
            self._metrics.close()
        for log in self._logs:
            log.close(self._run)
