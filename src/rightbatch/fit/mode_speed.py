"""Step times of another mode: ratios to the recipe's step, times its model.

Where the recipe's time is wrong at a size, the mode's is wrong by the same factor, so that the choice
between the two rests on the ratio alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rightbatch.core.errors import MeasurementError
from rightbatch.core.samples import ModeTiming
from rightbatch.fit.intervals import median_standard_error
from rightbatch.fit.speed_model import MIN_REPETITIONS, SpeedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeSpeed:
    """A mode's times, and how each hangs on one of the recipe's."""

    speed: SpeedModel
    beside: tuple[int, ...]
    """For each size, the index of the recipe's size that it was timed beside."""
    ratio_errors: tuple[float, ...]
    """Standard error of the logarithm of each median ratio."""


def fit_mode_speed(recipe: SpeedModel, timings: Sequence[ModeTiming]) -> ModeSpeed:
    """Multiply the recipe's seconds by the median ratio at each size.

    Args:
        recipe: the model of the recipe's mode; the optimizer step is the same in both.
        timings: of the mode, in turn with the recipe's step.

    Raises:
        MeasurementError: no size was timed often enough beside one that the recipe's model knows.
    """
    usable = sorted(
        (
            t
            for t in timings
            if len(t.seconds) >= MIN_REPETITIONS
            and t.beside_micro_batch_size in recipe.micro_batch_sizes
        ),
        key=lambda t: t.micro_batch_size,
    )
    if not usable:
        found, hint = f"{len(timings)} size(s) of another mode", "--time-budget 10m goes on timing"
        raise MeasurementError(found, need=f"one that was timed {MIN_REPETITIONS} times", hint=hint)
    beside = [recipe.micro_batch_sizes.index(t.beside_micro_batch_size) for t in usable]
    ratios = [np.log(np.array(t.seconds) / np.array(t.beside_seconds)) for t in usable]
    seconds = [
        recipe.seconds[i] * float(np.exp(np.median(r))) for i, r in zip(beside, ratios, strict=True)
    ]
    errors = [median_standard_error(r) for r in ratios]
    whole = [
        s * float(np.hypot(e, recipe.standard_errors[i] / recipe.seconds[i]))
        for s, e, i in zip(seconds, errors, beside, strict=True)
    ]
    return ModeSpeed(
        speed=SpeedModel(
            micro_batch_sizes=tuple(t.micro_batch_size for t in usable),
            seconds=tuple(seconds),
            standard_errors=tuple(whole),
            optimizer_seconds=recipe.optimizer_seconds,
            residual=recipe.residual,
        ),
        beside=tuple(beside),
        ratio_errors=tuple(errors),
    )
