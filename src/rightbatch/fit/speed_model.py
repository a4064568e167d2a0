"""Step time against micro-batch size: what was measured, and straight lines between.

No law is imposed: throughput may saturate, and may fall again where caches overflow. Between two
measured sizes the time is interpolated linearly; outside them nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.errors import InvalidInputError, MeasurementError
from rightbatch.core.samples import StepTiming
from rightbatch.fit.intervals import NORMAL_QUANTILE, median_standard_error

KNEE_SHARE = 0.9  # the knee is the smallest size within 10 % of the best throughput
MIN_REPETITIONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedModel:
    """Median seconds of forward and backward at each measured micro-batch size."""

    micro_batch_sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    standard_errors: tuple[float, ...]
    optimizer_seconds: float
    """One optimizer step and zero_grad."""
    residual: float | None
    """Median relative error of predicting each inner size from its neighbours; None below 3 sizes."""
    fastest: tuple[float, ...] = ()
    slowest: tuple[float, ...] = ()
    """Seconds of a repetition at each size. The median lies between the two but for one in
    ``2**(n - 1)`` times, where a normal error from few scattered repetitions would reach far beyond.
    Empty where sizes were not timed by themselves."""

    @property
    def valid_range(self) -> tuple[int, int]:
        """Smallest and largest measured size."""
        return self.micro_batch_sizes[0], self.micro_batch_sizes[-1]

    def step_seconds(self, micro_batch_size: int) -> float:
        """Seconds of one forward and backward.

        Raises:
            InvalidInputError: the size lies outside what was measured.
        """
        low, high = self.valid_range
        if not low <= micro_batch_size <= high:
            found = f"micro-batch size {micro_batch_size}"
            hint = "measure that size, or ask for one in the range"
            raise InvalidInputError(
                found, need=f"a size from {low} to {high}, the measured range", hint=hint
            )
        return float(np.interp(micro_batch_size, self.micro_batch_sizes, self.seconds))

    def interval(self, micro_batch_size: int) -> tuple[float, float]:
        """Bounds of the 90 % interval of ``step_seconds``, from the spread of the repetitions.

        Errors are taken as factors: times are positive.
        """
        middle = self.step_seconds(micro_batch_size)
        error = float(np.interp(micro_batch_size, self.micro_batch_sizes, self.standard_errors))
        factor = float(np.exp(NORMAL_QUANTILE * error / middle))
        low, high = middle / factor, middle * factor
        if self.fastest:
            low = max(low, float(np.interp(micro_batch_size, self.micro_batch_sizes, self.fastest)))
            high = min(high, float(np.interp(micro_batch_size, self.micro_batch_sizes, self.slowest)))
        return low, high

    def examples_per_second(self, micro_batch_size: int) -> float:
        """Throughput of forward and backward alone."""
        return micro_batch_size / self.step_seconds(micro_batch_size)

    @property
    def knee_micro_batch_size(self) -> int:
        """Smallest measured size whose throughput is within 10 % of the best."""
        rates = np.array(self.micro_batch_sizes) / np.array(self.seconds)
        return self.micro_batch_sizes[int(np.argmax(rates >= KNEE_SHARE * rates.max()))]


def interpolation_weights(sizes: Sequence[int], nodes: Sequence[int]) -> NDArray[np.float64]:
    """Matrix [len(sizes), len(nodes)] that turns values at nodes into linear interpolations."""
    return np.stack([np.interp(sizes, nodes, row) for row in np.eye(len(nodes))], axis=1)


def fit_speed(timings: Sequence[StepTiming], optimizer_seconds: Sequence[float]) -> SpeedModel:
    """Summarise repeated timings by their medians.

    Args:
        timings: forward and backward, at least 3 repetitions for each size that is to be used.
        optimizer_seconds: repetitions of one optimizer step and zero_grad.

    Raises:
        MeasurementError: no size, or not the optimizer step, has enough repetitions.
    """
    usable = sorted(
        (t for t in timings if len(t.seconds) >= MIN_REPETITIONS), key=lambda t: t.micro_batch_size
    )
    if not usable or len(optimizer_seconds) < MIN_REPETITIONS:
        found = f"{len(usable)} size(s) and {len(optimizer_seconds)} optimizer step(s)"
        need = f"a size timed {MIN_REPETITIONS} times or more, and as many optimizer steps"
        hint = "give the measurement more time: --time-budget"
        raise MeasurementError(found, need=need, hint=hint)
    sizes = [t.micro_batch_size for t in usable]
    seconds = [float(np.median(t.seconds)) for t in usable]
    errors = [median_standard_error(np.array(t.seconds)) for t in usable]
    return SpeedModel(
        micro_batch_sizes=tuple(sizes),
        seconds=tuple(seconds),
        standard_errors=tuple(errors),
        optimizer_seconds=float(np.median(optimizer_seconds)),
        residual=_leave_one_out(sizes, seconds),
        fastest=tuple(min(t.seconds) for t in usable),
        slowest=tuple(max(t.seconds) for t in usable),
    )


def _leave_one_out(sizes: list[int], seconds: list[float]) -> float | None:
    inner = range(1, len(sizes) - 1)
    errors = [
        abs(
            np.interp(sizes[i], sizes[:i] + sizes[i + 1 :], seconds[:i] + seconds[i + 1 :]) / seconds[i]
            - 1
        )
        for i in inner
    ]
    return float(np.median(errors)) if errors else None
