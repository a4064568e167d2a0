"""Seconds of a training step on an accelerator that is not here, from what the step computes.

Roofline (Williams, Waterman, Patterson 2009): an operator takes the longer of computing and moving,
each at a share of the device's peak, and a launch besides. The shares are assumed, not measured:
the interval spans what eager torch usually reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.devices import Accelerator
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Interval
from rightbatch.core.work import OperatorWork, StepWork
from rightbatch.fit.intervals import NORMAL_QUANTILE
from rightbatch.fit.speed_model import SpeedModel

Floats = NDArray[np.float64]

# torch's fp32 products use fp32 units unless they are allowed to use tf32.
_PEAK_OF = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Assumed shares of the peaks, and the cost of starting a kernel from Python."""

    compute: float | Floats
    bandwidth: float | Floats
    launch_seconds: float | Floats


FAST = Efficiency(compute=0.8, bandwidth=0.9, launch_seconds=4e-6)
USUAL = Efficiency(compute=0.5, bandwidth=0.7, launch_seconds=10e-6)
SLOW = Efficiency(compute=0.25, bandwidth=0.4, launch_seconds=25e-6)


def predict_step_seconds(work: StepWork, accelerator: Accelerator) -> Interval:
    """Predict one optimizer step in eager mode; derived, with assumed efficiencies as the interval.

    Args:
        work: of the step, as ``trace_work`` counts it.
        accelerator: of the catalogue.

    Raises:
        InvalidInputError: the step computes in a type for which no peak is known.
    """
    value, low, high = (float(seconds_at(work, accelerator, share)) for share in (USUAL, FAST, SLOW))
    return Interval(value=value, low=low, high=high)


def seconds_at(work: StepWork, accelerator: Accelerator, share: Efficiency) -> float | Floats:
    """Seconds at one efficiency, or at each of many.

    Raises:
        InvalidInputError: the step computes in a type for which no peak is known.
    """
    return sum((_seconds(operator, accelerator, share) for operator in work.operators), start=0.0)


def draw_efficiency(rng: np.random.Generator, num_draws: int) -> Efficiency:
    """Draws with their median at ``USUAL`` and 90 % of each share between ``SLOW`` and ``FAST``."""

    def draw(name: str) -> Floats:
        slow, usual, fast = (float(getattr(share, name)) for share in (SLOW, USUAL, FAST))
        normal = rng.standard_normal(num_draws) / NORMAL_QUANTILE
        return usual * np.where(normal > 0, fast / usual, usual / slow) ** normal

    return Efficiency(
        compute=draw("compute"), bandwidth=draw("bandwidth"), launch_seconds=draw("launch_seconds")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """What a step computes and moves at several micro-batch sizes, on one accelerator."""

    works: tuple[StepWork, ...]
    """Forward and backward, by rising size."""
    optimizer_work: StepWork
    accelerator: Accelerator

    def speed(self) -> SpeedModel:
        """Seconds at the usual efficiency; the standard errors are those of the efficiencies.

        Raises:
            InvalidInputError: as ``predict_step_seconds`` says.
        """
        found = [predict_step_seconds(work, self.accelerator) for work in self.works]
        spreads = [np.log((s.high or s.value) / (s.low or s.value)) for s in found]
        return SpeedModel(
            micro_batch_sizes=tuple(work.micro_batch_size for work in self.works),
            seconds=tuple(s.value for s in found),
            standard_errors=tuple(
                float(s.value * spread / (2 * NORMAL_QUANTILE))
                for s, spread in zip(found, spreads, strict=True)
            ),
            optimizer_seconds=predict_step_seconds(self.optimizer_work, self.accelerator).value,
            residual=None,
        )

    def factors(self, shares: Efficiency) -> Floats:
        """Seconds at drawn efficiencies over those at the usual one, [sizes, draws]."""
        return np.stack([self._factors(work, shares) for work in self.works])

    def optimizer_factors(self, shares: Efficiency) -> Floats:
        """The same for the optimizer step, [draws]."""
        return self._factors(self.optimizer_work, shares)

    def _factors(self, work: StepWork, shares: Efficiency) -> Floats:
        usual = float(seconds_at(work, self.accelerator, USUAL))
        return np.asarray(seconds_at(work, self.accelerator, shares), float) / usual


def flops_utilization(
    work: StepWork, seconds: float, accelerator: Accelerator, precision: str
) -> float | None:
    """Share of the peak that a measured step reached; None where no peak of this type is known.

    ``precision`` is ``fp32``, ``bf16`` or ``fp16``; matrix products of 16-bit autocast are meant by
    the latter two.
    """
    peak = accelerator.peak_flops.get(precision)
    return None if peak is None else work.flops / seconds / peak


def _seconds(work: OperatorWork, accelerator: Accelerator, share: Efficiency) -> float | Floats:
    computing: float | Floats = 0.0
    if work.flops:
        kind = _PEAK_OF.get(work.dtype)
        if kind not in accelerator.peak_flops:
            found = f"{work.operator} in {work.dtype} on {accelerator.title}"
            need = f"one of {', '.join(accelerator.peak_flops)}"
            raise InvalidInputError(found, need=need, hint="--precision fp32")
        computing = work.flops / (share.compute * accelerator.peak_flops[kind])
    moving = work.moved_bytes / (share.bandwidth * accelerator.bandwidth_bytes_per_second)
    return np.maximum(computing, moving) + work.calls * share.launch_seconds
