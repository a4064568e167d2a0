"""What guards look at: a chosen batch with everything that is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rightbatch.core.facts import Environment, TaskFacts
from rightbatch.core.plan import Candidate, Evidence, Guard, Interval, Objective
from rightbatch.core.signal import Signal
from rightbatch.fit.loader_model import LoaderModel
from rightbatch.fit.speed_model import SpeedModel
from rightbatch.fit.stability import Stability
from rightbatch.fit.steps_model import StepsModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """A chosen candidate with everything that guards look at."""

    chosen: Candidate
    candidates: Sequence[Candidate]
    facts: TaskFacts
    environment: Environment
    """Of the device that is planned for."""
    speed: SpeedModel
    loader: LoaderModel
    steps: StepsModel
    objective: Objective
    num_updates: int
    rate: float
    """Planned learning rate."""
    stability: Stability | None
    """What a short branch at the planned rate and batch showed; None where none was trained."""
    is_derived: bool
    """Whether step times and memory are those of a device that is not here."""
    largest_micro_that_fits: int
    usable_bytes: int
    positives_per_example: float | None
    """Positive targets in an example on average; None where the task declares none."""
    fine_tuning: bool
    run_examples: int | None = None
    """That the planned run processes, as many as today's; None where time bounds it instead."""
    target_examples: int | None = None
    """After which the pilot of today's recipe met the target; None where it did not."""
    schedule_ratio: Interval | None = None
    """Time with the batch schedule over that with one batch; None where it is not predicted."""
    today_passes: int = 1
    """In which today's batch is taken to run, for comparison."""
    signal: Signal | None = None
    """Positives counted as they are drawn, and the noise of their gradient, where measured."""


def speak(name: str, text: str, evidence: Evidence, source: str) -> Guard:
    """A guard's warning."""
    return Guard(name=name, text=text, evidence=evidence, source=source)
