"""What a sweep of batch sizes and a critical batch size by branches found out."""

from __future__ import annotations

from typing import Literal

from rightbatch.core.plan import Interval
from rightbatch.core.recipe import Target
from rightbatch.core.record import SCHEMA_VERSION, Record

ArmOutcome = Literal["reached", "censored", "diverged"]


class Arm(Record):
    """One run of a sweep: a batch size, a rate and a seed, trained to the target or its limit."""

    schema_version: Literal[1] = SCHEMA_VERSION
    batch_size: int
    factor: float
    """Of the rate that the rule gives this batch."""
    learning_rate: float
    seed: int
    outcome: ArmOutcome
    """``censored``: the limit came before the target; its updates are then a lower bound."""
    updates: float
    """To the target, interpolated between two evaluations, or trained in all."""
    value: float | None
    """Of the metric at the last evaluation before the target; None where it was not finite."""


class Definition(Record):
    """A critical batch size by one of its definitions, which are not the same number."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    meaning: str
    source: str


class SweepPoint(Record):
    """A batch size at its best rate."""

    batch_size: int
    updates: float
    """To the target, geometric mean over seeds."""
    examples: float
    factor: float
    on_edge: bool
    """Whether a better rate may lie beyond those tried."""
    fitted_updates: float | None
    """None, as in the next two fields, where too few batch sizes reached the target for a fit."""
    residual: float | None
    """log of measured over fitted."""
    regime: Literal["perfect scaling", "diminishing returns", "stagnation"] | None


class Sweep(Record):
    """Steps to the target over batch sizes, the curve through them, and what it calls critical."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: str
    target: Target
    most_examples: int
    """After which a run is censored."""
    min_updates: float | None
    """Of the fit; None where steps halve with every doubling, or where there is no fit."""
    critical_batch_size: Interval | None
    """None where the steps have no bend; ``definitions`` then hold the bound that there is."""
    residual_rms: float | None
    """Root mean square of the fit's residuals; None where there is no fit."""
    points: tuple[SweepPoint, ...]
    missed: tuple[int, ...]
    """Batch sizes at which no rate reached the target with every seed before it was given up."""
    definitions: tuple[Definition, ...]
    predicted: Interval | None
    """Critical batch size that a pilot's noise scale predicts; None where noise was not measured."""
    noise_scale: Interval | None
    noise_missing: str | None = None
    """Why a pilot that was asked for gave no noise scale."""
    arms: tuple[Arm, ...]


class BranchPoint(Record):
    """Branches from one point of training: loss against batch size after the same examples."""

    examples_seen: int
    batch_sizes: tuple[int, ...]
    losses: tuple[tuple[float | None, ...], ...]
    """One row per seed, one column per batch size, at the end; None where the branch diverged."""
    rises: tuple[tuple[float, float, float] | None, ...]
    """Loss over that at the smallest batch less 1, with one-sided bounds; None where it diverged."""
    passed: int
    """Largest batch up to which every one is shown to rise less than the tolerance."""
    worse: int | None
    """Smallest batch from which on every one is shown to rise more; None where the largest is not."""


class Critical(Record):
    """Critical batch size by branched training, at several points of training."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: str
    seeds: int
    window_examples: int
    """That every branch sees."""
    tolerance: float
    """Rise of the loss, as a share of it, that does not count."""
    level: float
    """Chance of a wrong statement at either end of an interval."""
    checkpoints: tuple[str, ...] = ()
    """SHA-256 of the saved weights that branches began with; none if the recipe was trained so far."""
    definition: Definition
    """Of the last point."""
    points: tuple[BranchPoint, ...]
