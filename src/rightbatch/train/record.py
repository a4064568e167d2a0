"""What a run leaves behind: its plan, its metrics as they come, its weights and its outcome."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.run import Evaluation, Run
from rightbatch.core.store import write_record, write_text
from rightbatch.train.accumulate import WindowGradient

PLAN, METRICS, OUTCOME = "plan.json", "metrics.jsonl", "outcome.json"
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
    seconds: float
    """Training time so far, evaluation not counted."""
    seconds_left: float
    """At the speed so far, evaluation not counted."""
    metrics: dict[str, float] | None
    """Of the evaluation just made; None between evaluations."""


class RunRecord:
    """Owns a run's folder and counts what has been done."""

    def __init__(
        self,
        path: Path,
        plan: Plan,
        total_examples: int,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        """Create the folder.

        Raises:
            InvalidInputError: it holds a run already, or cannot be written.
        """
        if (path / OUTCOME).exists():
            found, hint = f"{path / OUTCOME} records an earlier run", "choose another folder"
            raise InvalidInputError(found, need="a folder of the run's own", hint=hint)
        write_record(path / PLAN, plan)
        write_text(path / METRICS, "")
        self._metrics = (path / METRICS).open("a", encoding="utf-8")
        self.path, self._total_examples, self._on_progress = path, total_examples, on_progress
        self.examples = self.updates = 0
        self.seconds = 0.0
        self.evaluations: list[Evaluation] = []
        self._loss = self._learning_rate = math.nan
        self._loss_total = self._loss_count = 0.0  # since the last evaluation
        self._next_line = self._next_progress = 0.0

    def add_update(
        self, num_examples: int, gradient: WindowGradient, learning_rate: float, seconds: float
    ) -> None:
        """Count an update; ``seconds`` is the training time of the run with it."""
        self.examples += num_examples
        self.updates += 1
        self.seconds = seconds
        self._loss, self._learning_rate = gradient.mean, learning_rate
        self._loss_total += gradient.total
        self._loss_count += gradient.count
        if seconds >= self._next_line:
            self._next_line = seconds + _LINE_SECONDS
            self._write_line(loss=gradient.mean, learning_rate=learning_rate)
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
        at = {"examples": self.examples, "updates": self.updates, "seconds": self.seconds}
        self._metrics.write(json.dumps(at | values) + "\n")
        self._metrics.flush()

    def _show(self, metrics: dict[str, float] | None) -> None:
        if self._on_progress is None:
            return
        self._on_progress(
            Progress(
                examples=self.examples,
                total_examples=self._total_examples,
                updates=self.updates,
                loss=self._loss,
                learning_rate=self._learning_rate,
                seconds=self.seconds,
                seconds_left=self.seconds * (self._total_examples / self.examples - 1),
                metrics=metrics,
            )
        )

    def save_weights(self, name: str, model: nn.Module) -> None:
        """Save a state dict that loads strictly into a fresh model.

        Raises:
            InvalidInputError: the file cannot be written.
        """
        # Tied weights share memory, which safetensors refuses: each name gets its own copy.
        state = {
            key: value.detach().to("cpu", copy=True).contiguous()
            for key, value in model.state_dict().items()
        }
        path = self.path / "checkpoints" / f"{name}.safetensors"
        aside = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(exist_ok=True)
            save_file(state, aside)
            aside.chmod(0o644)  # as every other file of the folder
            os.replace(aside, path)
        except (OSError, SafetensorError) as error:
            need = f"{sum(value.nbytes for value in state.values())} free bytes in a writable folder"
            hint = "free space, or train into another folder"
            raise InvalidInputError(f"cannot write {path}: {error}", need=need, hint=hint) from error

    def finish(self, run: Run) -> None:
        """Record the outcome, which makes the folder this run's for good."""
        write_record(self.path / OUTCOME, run)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._metrics.close()
