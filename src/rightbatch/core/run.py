"""What a training run did."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from rightbatch.core.recipe import Target
from rightbatch.core.record import SCHEMA_VERSION, Record

if TYPE_CHECKING:
    from torch import Tensor


class Outcome(StrEnum):
    """How a run ended; expected endings are values, not exceptions."""

    TARGET_REACHED = "target_reached"
    FINISHED = "finished"  # every planned example was processed
    EARLY_STOPPED = "early_stopped"  # evaluations no longer got better
    STOPPED = "stopped"  # the caller's own limit on updates
    INTERRUPTED = "interrupted"  # by Ctrl-C
    TERMINATED = "terminated"  # by SIGTERM, as schedulers send it
    DIVERGED = "diverged"  # a loss, gradient or metric was not finite, or the loss ran away
    FAILED = "failed"  # by an exception, of the task's own code as a rule

    @property
    def can_resume(self) -> bool:
        """Whether the run was cut short by something else than training, and goes on from there."""
        return self in {Outcome.STOPPED, Outcome.INTERRUPTED, Outcome.TERMINATED, Outcome.FAILED}


class Evaluation(Record):
    """Metrics at one moment of a run."""

    examples: int
    updates: int
    seconds: float
    """Training time so far, evaluation not counted."""
    train_loss: float
    """Mean loss per target since the previous evaluation."""
    metrics: dict[str, float]


class Run(Record):
    """A finished run: outcome, cost, metrics over time; the weights lie in ``run_dir``."""

    schema_version: int = SCHEMA_VERSION
    task: str
    outcome: Outcome
    message: str
    """The outcome in one sentence, with what to do where it went wrong."""
    seed: int
    global_batch_size: int
    examples: int
    updates: int
    seconds: float
    """Training time, evaluation not counted."""
    target: Target | None
    evaluations: tuple[Evaluation, ...]
    run_dir: Path
    skipped_updates: int = 0
    """Updates left out because their gradient overflowed in half precision."""
    suspects: tuple[int, ...] = ()
    """Indices of the training examples of the update at which a run diverged, the bad ones if known."""

    @property
    def target_reached(self) -> bool:
        """Whether any evaluation met the target."""
        return self.outcome is Outcome.TARGET_REACHED

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the last evaluation; empty if none was made."""
        return self.evaluations[-1].metrics if self.evaluations else {}

    def final_state_dict(self) -> dict[str, Tensor]:
        """Load the final weights; safetensors files never run code."""
        from safetensors.torch import load_file

        return load_file(self.run_dir / "checkpoints" / "final.safetensors")
