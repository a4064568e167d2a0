"""Seconds of a training step on an accelerator that is not here, from what the step computes.

Roofline (Williams, Waterman, Patterson 2009): an operator takes the longer of computing and moving,
each at a share of the device's peak, and a launch besides. The shares are assumed, not measured:
the interval spans what eager torch usually reaches.
"""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch.core.devices import Accelerator
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Interval
from rightbatch.core.work import OperatorWork, StepWork

# torch's fp32 products use fp32 units unless they are allowed to use tf32.
_PEAK_OF = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """Assumed shares of the peaks, and the cost of starting a kernel from Python."""

    compute: float
    bandwidth: float
    launch_seconds: float


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
    value, low, high = (
        sum(_seconds(operator, accelerator, share) for operator in work.operators)
        for share in (USUAL, FAST, SLOW)
    )
    return Interval(value=value, low=low, high=high)


def flops_utilization(
    work: StepWork, seconds: float, accelerator: Accelerator, precision: str
) -> float | None:
    """Share of the peak that a measured step reached; None where no peak of this type is known.

    ``precision`` is ``fp32``, ``bf16`` or ``fp16``; matrix products of 16-bit autocast are meant by
    the latter two.
    """
    peak = accelerator.peak_flops.get(precision)
    return None if peak is None else work.flops / seconds / peak


def _seconds(work: OperatorWork, accelerator: Accelerator, share: Efficiency) -> float:
    computing = 0.0
    if work.flops:
        kind = _PEAK_OF.get(work.dtype)
        if kind not in accelerator.peak_flops:
            found = f"{work.operator} in {work.dtype} on {accelerator.title}"
            need = f"one of {', '.join(accelerator.peak_flops)}"
            raise InvalidInputError(found, need=need, hint="--precision fp32")
        computing = work.flops / (share.compute * accelerator.peak_flops[kind])
    moving = work.moved_bytes / (share.bandwidth * accelerator.bandwidth_bytes_per_second)
    return max(computing, moving) + work.calls * share.launch_seconds
