"""Whether a learning rate trains stably, from a short branch at it: no threshold on rates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.samples import RateTrial, RateTuning
from rightbatch.fit.intervals import t_quantile

Floats = NDArray[np.float64]

FEWEST = 4  # windows, of which the second half is compared
STANDING_STILL = 0.0  # the rate of the branch whose weights do not move


@dataclass(frozen=True, slots=True, kw_only=True)
class Stability:
    """What became of the loss in a branch at one rate, per target."""

    learning_rate: float
    updates: int
    examples_seen: int
    """Training progress at which the branch starts."""
    before: float
    """Mean loss at the start: of weights that stand still over the same examples, or else over the
    first half of the branch."""
    after: float
    """Mean loss over the second half; infinity where it diverged."""
    change: tuple[float, float]
    """90 % interval of the typical window's change, as a share of the loss before."""
    diverged: bool

    @property
    def is_stable(self) -> bool:
        """Whether the loss is not shown to rise."""
        return not self.diverged and self.change[0] <= 0


def find_stability(
    tunings: Iterable[RateTuning], batch_size: int, learning_rate: float
) -> Stability | None:
    """Judge the trial of a rate at a batch size; None where there is none that is long enough."""
    for tuning in tunings:
        if tuning.batch_size != batch_size:
            continue
        for trial in tuning.trials:
            if not math.isclose(trial.learning_rate, learning_rate):
                continue
            still = _still(tuning)
            if trial.diverged or min(len(trial.losses), len(still or trial.losses)) >= FEWEST:
                return _judge(tuning, trial, still)
    return None


def _still(tuning: RateTuning) -> tuple[float, ...]:
    """Losses of the weights that stand still; empty where there are none."""
    return next((t.losses for t in tuning.trials if t.learning_rate == STANDING_STILL), ())


def _judge(tuning: RateTuning, trial: RateTrial, still: tuple[float, ...]) -> Stability:
    """Compare the second half of a branch with where it began.

    Windows of two branches hold the same examples, so they are paired where the second stands still.
    Neighbouring windows are taken as independent.
    """
    losses = np.array(trial.losses[: len(still) or None])
    half = len(losses) // 2
    if trial.diverged:
        before, after = float([*still, *losses, math.nan][0]), math.inf
        change = (math.inf, math.inf)
    else:
        first = np.array(still)[half : len(losses)] if still else losses[:half]
        before, after = float(first.mean()), float(losses[half:].mean())
        change = _change(first, losses[half:], paired=bool(still))
    return Stability(
        learning_rate=trial.learning_rate,
        updates=len(losses) * tuning.window_examples // tuning.batch_size,
        examples_seen=tuning.examples_seen,
        before=before,
        after=after,
        change=change,
        diverged=trial.diverged,
    )


def _change(before: Floats, after: Floats, *, paired: bool) -> tuple[float, float]:
    """Student's interval for the change, on logarithms: a loss that explodes grows exponentially.

    Where a loss is not positive, differences over the mean loss take their place.
    """
    positive = min(before.min(), after.min()) > 0
    scale = 1.0 if positive else float(np.abs(before).mean())
    first, second = (np.log(x) if positive else x / scale for x in (before, after))
    middle = float(second.mean() - first.mean())
    parts = [second - first] if paired else [first, second]
    error = math.sqrt(sum(float(np.var(part, ddof=1)) / len(part) for part in parts))
    width = t_quantile(min(map(len, parts)) - 1) * error
    low, high = middle - width, middle + width
    return (math.expm1(low), math.expm1(high)) if positive else (low, high)
