"""What a run decides from what it sees on the way: its rate on a plateau, its batch by the noise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Protocol, Self

from torch import nn
from torch.optim import Optimizer

from rightbatch.core.errors import MeasurementError
from rightbatch.core.plan import Plan

CHECK_UPDATES = 10  # between two looks at the noise scale
CHECKS_IN_A_ROW = 3  # that must agree before the batch doubles


class Reading(Protocol):
    """An estimate of the noise scale, in examples."""

    @property
    def noise_scale(self) -> float | None:
        """None where it has no value."""
        ...

    @property
    def low(self) -> float:
        """Lower end of its interval."""
        ...

    @property
    def high(self) -> float | None:
        """Upper end; None where the data set none."""
        ...


class Meter(Protocol):
    """What watches the gradients of a run, as ``rb.NoiseMeter`` does."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *exception: Any) -> None: ...

    def update(self, *, examples: int) -> None:
        """A gradient is complete, and not yet clipped."""
        ...

    def estimate(self) -> Reading:
        """The noise scale so far, or a MeasurementError."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from it."""
        ...


class MakeMeter(Protocol):
    """Builds a meter for a model and its optimizer, as ``rb.NoiseMeter`` itself does."""

    def __call__(self, model: nn.Module, optimizer: Optimizer, /) -> Meter:
        """A meter that is not attached yet."""
        ...


def read(meter: Meter | None) -> Reading | None:
    """What a meter knows by now."""
    if meter is None:
        return None
    try:
        return meter.estimate()
    except MeasurementError:  # too few updates yet
        return None


@dataclass(slots=True)
class BatchGrowth:
    """Doubles the batch whenever the noise scale has doubled, until it is the plan's.

    The first bounded estimate is the reference. When the lower end of the interval has been at least
    twice the reference in three looks in a row, batch and reference double. It never shrinks (Merrill
    et al. 2025, arXiv:2505.23971, Section 3.3, with the noise scale in the place of branched runs).
    """

    batch: int
    largest: int
    reference: float | None = None
    agreed: int = 0

    @classmethod
    def of(cls, plan: Plan) -> Self | None:
        """For a plan whose batch follows the noise; None for any other."""
        schedule = plan.batch_schedule
        if schedule is None or schedule.kind != "noise":
            return None
        return cls(schedule.milestones[0][1], plan.global_batch_size)

    def wants_more(self, reading: Reading | None) -> bool:
        """Look once; True where the batch is to double now."""
        if reading is None or reading.noise_scale is None or reading.high is None:
            return False
        if self.reference is None:
            self.reference = reading.noise_scale
        self.agreed = self.agreed + 1 if reading.low >= 2 * self.reference else 0
        return self.agreed >= CHECKS_IN_A_ROW and self.batch < self.largest

    def grow(self) -> None:
        """Double the batch."""
        self.batch, self.agreed = min(2 * self.batch, self.largest), 0
        self.reference = 2 * (self.reference or 0.0)


@dataclass(slots=True)
class Plateau:
    """Lowers the rate when evaluations stop getting better, as torch's ReduceLROnPlateau does."""

    decay_factor: float
    patience: int
    factor: float = 1.0
    best: float | None = None
    without_best: int = 0

    @classmethod
    def of(cls, plan: Plan) -> Self | None:
        """For a plan of that schedule; None for any other."""
        if plan.schedule != "plateau" or plan.decay_factor is None or plan.patience is None:
            return None
        return cls(plan.decay_factor, plan.patience)

    def see(self, score: float) -> None:
        """Take in an evaluation, higher being better."""
        if self.best is None or score > self.best:
            self.best, self.without_best = score, 0
            return
        self.without_best += 1
        if self.without_best > self.patience:
            self.factor, self.without_best = self.factor * self.decay_factor, 0


def to_text(*states: BatchGrowth | Plateau | None) -> str:
    """What has been decided so far, for a checkpoint."""
    return json.dumps([
        None if state is None else {name: getattr(state, name) for name in state.__slots__}
        for state in states
    ])


def from_text(text: str, *states: BatchGrowth | Plateau | None) -> None:
    """Go back to what ``to_text`` gave."""
    for state, values in zip(states, json.loads(text), strict=True):
        for name in () if state is None else state.__slots__:
            setattr(state, name, values[name])
