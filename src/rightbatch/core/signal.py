"""What the optimizer sees of rare positives: counts per update, and their part of the gradient."""

from __future__ import annotations

from math import sqrt
from typing import Literal

from rightbatch.core.plan import Evidence, Interval
from rightbatch.core.record import SCHEMA_VERSION, Record


class UpdateSignal(Record):
    """One update of so many examples."""

    batch_size: int
    expected_positives: float
    positives_sd: float
    """Standard deviation of the number of positives from update to update."""
    probability_none: float
    """That an update holds no positive, examples being drawn whole."""
    probability_none_if_independent: float
    """The same if positions were drawn one by one."""
    relative_error: Interval | None
    """Of the positives' gradient, sqrt(B+ / batch size); None where B+ is not known."""


class GradientSignal(Record):
    """The positives' part of the gradient at one point of training."""

    stage: Literal["init", "now"]
    mass_share: float | None
    """Share of positives in the absolute gradient on the model's outputs; None where the model
    returns no single tensor."""
    noise_scale: float | None
    """B+, in examples: of the positives' gradient alone. None where it was lost in noise."""
    noise_low: float
    noise_high: float | None
    whole_noise_scale: float | None
    """B_simple of the whole gradient at the same point."""
    cosine: Interval | None
    """Between the positives' and the others' gradient; near -1 where they cancel."""


class Signal(Record):
    """How much of a task's training signal comes from its positives."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: str
    positive_fraction: float
    """Share of positives among the counted positions that are drawn."""
    positives_per_example: float
    positions_per_example: float
    examples_without: float
    """Share of examples without a positive."""
    design_effect: float | None
    """Variance of the positives in an example over that of independent positions; None for examples
    of one position."""
    correlation: float | None
    """Between two positions of one example."""
    counts_evidence: Evidence
    """``derived`` exactly from the windows' law, or ``measured`` on examples drawn."""
    examples_counted: int
    """Examples looked at; 0 where the law is exact."""
    updates: tuple[UpdateSignal, ...]
    gradients: tuple[GradientSignal, ...]
    wanted_relative_error: float
    batch_for_error: Interval | None
    """Examples per update that bring the positives' gradient to that error, B+ / error^2."""

    def error_at(self, batch_size: int) -> Interval | None:
        """Relative error of the positives' gradient over a batch, sqrt(B+ / B); None as ``B+`` is."""
        last = self.gradients[-1]
        if last.noise_scale is None:
            return None
        high = None if last.noise_high is None else sqrt(last.noise_high / batch_size)
        value, low = (sqrt(scale / batch_size) for scale in (last.noise_scale, last.noise_low))
        return Interval(value=value, low=low, high=high)
