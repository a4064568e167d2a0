"""When a run has gone wrong, what to say of it, and which examples to look at."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import nn

from rightbatch.core.errors import InvalidTaskError, RightBatchError
from rightbatch.tasks.build import collate, compute_loss, to_device
from rightbatch.tasks.task import Task
from rightbatch.tasks.where import at, raised_at
from rightbatch.train.accumulate import WindowGradient
from rightbatch.train.sampler import Window, Windows

FIRST_UPDATES = 10  # whose mean loss is the level to compare with
RUNAWAY_FACTOR, RUNAWAY_UPDATES = 10.0, 50
_MOST_SUSPECTS = 1024  # examples that are looked at one by one


@dataclass(slots=True)
class Runaway:
    """The rule by which a finite loss counts as diverged.

    The mean loss of 50 updates in a row is above 10 times that of the first 10 updates. A loss that
    begins at 0 or below has no such level and is not judged.
    """

    seen: int = 0
    level: float = 0.0
    above: int = 0

    def add(self, loss: float) -> bool:
        """Look at one update's mean loss; True where the run has diverged."""
        if self.seen < FIRST_UPDATES:
            self.seen += 1
            self.level += loss / FIRST_UPDATES
            return False
        self.above = self.above + 1 if loss > RUNAWAY_FACTOR * self.level > 0 else 0
        return self.above >= RUNAWAY_UPDATES

    def text(self) -> str:
        """State for a checkpoint."""
        return json.dumps([self.seen, self.level, self.above])

    @classmethod
    def of(cls, text: str) -> Runaway:
        """As ``text`` gave it."""
        seen, level, above = json.loads(text)
        return cls(int(seen), float(level), int(above))

    @property
    def message(self) -> str:
        """What was seen and what to try."""
        return (
            f"the loss was above {RUNAWAY_FACTOR:g} times its first level, {self.level:.4g}, for"
            f" {RUNAWAY_UPDATES} updates in a row: lower learning_rate, lengthen warmup_examples or"
            " set clip_norm"
        )


def not_finite(gradient: WindowGradient, updates: int, suspects: tuple[int, ...]) -> str:
    """Say which loss or gradient was not finite, and what to try."""
    found = f"loss {gradient.mean:g} with gradient norm {gradient.norm:g} at update"
    advice = "lower learning_rate, lengthen warmup_examples or set clip_norm"
    if updates == 0:
        advice = "check the data and the loss; a mean over 0 targets is nan, rb.Loss is not"
    if 0 < len(suspects) <= 4:
        names = ", ".join(map(str, suspects))
        advice = f"look at training example {names}, whose loss is not finite by itself"
    return f"{found} {updates + 1}; the weights are those before it: {advice}"


def bad_metrics(metrics: dict[str, float], updates: int) -> str | None:
    """Say which metrics are not finite; None where all are."""
    bad = [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if not bad:
        return None
    where = f"evaluation after update {updates} gave {', '.join(bad)}"
    return f"{where}; check `evaluate`, or lower learning_rate"


def in_words(error: Exception, updates: int) -> RightBatchError:
    """An exception within a run as an error in three parts; one that has them stays.

    Args:
        error: as it was raised.
        updates: that had been made.
    """
    if isinstance(error, RightBatchError):
        return error
    said = str(error).strip().splitlines() or [""]
    # A loader's worker sends its whole trace as a message, which ends with what was raised.
    own = f"{type(error).__name__}: {said[0]}".removesuffix(": ")
    words = said[-1] if any("Traceback" in line for line in said) else own
    found = f"training raised {words}{at(raised_at(error))} after update {updates}"
    hint = "repair what raised it, then go on with --resume (resume=True)"
    return InvalidTaskError(found, need="code and data that last the whole run", hint=hint)


def find_suspects(
    task: Task, windows: Windows, window: Window, model: nn.Module, device: str
) -> tuple[int, ...]:
    """Indices of an update's examples whose loss is not finite one by one, in evaluation mode.

    Where none is, all of the update's: then they do it together, or the gradient does. So it is too
    where one example cannot be looked at by itself, by a model that squeezes a batch of 1, say.
    """
    order = windows.order(window.epoch)[window.start : window.start + window.num_examples]
    indices = tuple(int(index) for index in order)
    bad: tuple[int, ...] = ()
    model.eval()
    try:
        # The run has diverged, whatever a forward does that training itself never makes.
        with torch.no_grad(), suppress(Exception):
            bad = tuple(
                index
                for index in indices[:_MOST_SUSPECTS]
                if not _is_finite(task, model, index, device)
            )
    finally:
        model.train()
    return bad or indices


def _is_finite(task: Task, model: nn.Module, index: int, device: str) -> bool:
    batch = to_device(collate(task, [index]), device)
    return bool(compute_loss(task.loss, model, batch, num_examples=1).total.isfinite())
