"""How many examples the loader gives, and whether it or the step sets the pace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rightbatch.core.errors import MeasurementError
from rightbatch.core.samples import LoaderTiming

Bound = Literal["compute", "input", "overhead"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderModel:
    """Seconds to read a micro-batch: ``batch_seconds + example_seconds * b``."""

    num_workers: int
    """0: the loader runs between steps and its time adds; otherwise it runs beside them."""
    batch_seconds: float
    example_seconds: float
    residual: float
    """Median relative error of the line at the measured sizes."""
    valid_range: tuple[int, int]

    def load_seconds(self, micro_batch_size: float) -> float:
        """Seconds to read one micro-batch when the loader works alone."""
        return self.batch_seconds + self.example_seconds * micro_batch_size

    def examples_per_second(self, micro_batch_size: int) -> float:
        """Ceiling on throughput at this micro-batch size."""
        return micro_batch_size / self.load_seconds(micro_batch_size)

    @property
    def overlaps(self) -> bool:
        """Whether loading hides behind computing."""
        return self.num_workers > 0


def fit_loader(timings: Sequence[LoaderTiming]) -> LoaderModel:
    """Fit a line through the median time at each micro-batch size, weighted for relative error.

    Raises:
        MeasurementError: nothing was timed.
    """
    if not timings:
        hint = "give the measurement more time: --time-budget"
        raise MeasurementError("0 loader timings", need="at least 1 micro-batch size", hint=hint)
    sizes = np.array([t.micro_batch_size for t in timings], float)
    seconds = np.array([np.median(t.seconds) for t in timings])
    if len(sizes) == 1:
        intercept, slope = 0.0, float(seconds[0] / sizes[0])
    else:
        slope, intercept = (float(c) for c in np.polyfit(sizes, seconds, deg=1, w=1 / seconds))
        if intercept < 0 or slope < 0:  # noise larger than the smaller term: keep the one that is there
            intercept = 0.0 if intercept < 0 else float(np.median(seconds))
            slope = 0.0 if slope < 0 else float(np.median(seconds / sizes))
    fitted = intercept + slope * sizes
    return LoaderModel(
        num_workers=timings[0].num_workers,
        batch_seconds=intercept,
        example_seconds=slope,
        residual=float(np.median(np.abs(fitted / seconds - 1))),
        valid_range=(int(sizes.min()), int(sizes.max())),
    )
