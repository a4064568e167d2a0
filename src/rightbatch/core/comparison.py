"""What a comparison of two ways to train found out: verdict, differences, and every run behind them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Target
from rightbatch.core.record import SCHEMA_VERSION, Record
from rightbatch.core.run import Outcome

Verdict = Literal["better", "equivalent", "worse", "undecided"]
Matching = Literal["examples", "updates", "time"]
SideName = Literal["candidate", "reference"]
RemedyName = Literal[
    "weight decay", "label smoothing", "ghost batch norm", "smaller batch", "longer training"
]
RemedyVerdict = Literal["closed", "not closed", "undecided", "not run yet", "does not apply"]


class Difference(Record):
    """A mean of paired differences with its two-sided t interval; open where one pair is left."""

    value: float
    low: float | None
    high: float | None
    num_pairs: int


class Side(Record):
    """One of two ways to train, at the length it was given to match the other."""

    name: str
    """As the user named it, such as ``batch 256``."""
    plan: Plan
    rate_from: str
    """Where its learning rate comes from, in a sentence."""


class CompletedRun(Record):
    """A run that came to its end, as far as the comparison needs it."""

    schema_version: Literal[1] = SCHEMA_VERSION
    side: SideName
    seed: int
    outcome: Outcome
    message: str
    examples: int
    updates: int
    seconds: float
    """Training time, evaluation not counted."""
    metrics: dict[str, float]
    """On the validation data, at the end; empty where the run diverged."""
    train_metrics: dict[str, float]
    """On training examples, at the end, by the same weights; without those that are undefined there."""
    examples_to_target: float | None
    """Interpolated between two evaluations; None where the run ended first, which censors it."""
    seconds_to_target: float | None
    met_at_first: bool = False
    """Whether the first evaluation met the target already: what it cost is then an upper bound."""
    sharpness: dict[str, float] | None = None
    """Largest eigenvalue, trace and more, where they were asked for."""
    run_dir: Path

    @field_validator("train_metrics", mode="before")
    @classmethod
    def _where_defined(cls, metrics: dict[str, float]) -> dict[str, float]:
        # A share of positives has no value over examples without any, and the verdict needs none.
        return {name: value for name, value in metrics.items() if math.isfinite(value)}


class ToTarget(Record):
    """What it cost to reach the target; a run that did not reach it is counted, never dropped."""

    quantity: Literal["examples", "seconds"]
    ratio: Difference | None
    """The candidate's over the reference's, geometric; None unless all runs show when they met it."""
    at_least: float | None = None
    """Lower bound: candidates ended before it, or references met it at their first evaluation."""
    at_most: float | None = None
    """Upper bound, where it is the other way round."""


class Remedy(Record):
    """One thing to try where a large batch did worse; fixed before its first run."""

    name: RemedyName
    change: str
    """What it does to the candidate, with its numbers; or why it cannot be tried here."""
    source: str
    """A key of ``core.sources``."""
    plan: Plan | None
    """The candidate's with the change; None where the remedy does not apply."""
    label_smoothing: float = 0.0
    """That the loss of its runs is given; the metric is that of the task all the same."""


class RemedyResult(Record):
    """What a remedy did, over the seeds for which candidate and reference were run."""

    remedy: Remedy
    verdict: RemedyVerdict
    """``closed``: at most a margin worse than the reference; ``not closed``: shown to be worse."""
    reason: str
    """The verdict in one sentence, with its numbers."""
    difference: Difference | None
    """The remedied candidate less the reference."""
    gain: Difference | None
    """The remedied candidate less the plain one."""
    share_closed: Difference | None
    """Of the gap between reference and plain candidate; None where no gap was shown."""
    examples: float | None
    """That a run processed, on average."""
    seconds: float | None
    """Training time of a run, on average."""
    examples_ratio: float | None
    """Over the plain candidate's."""
    seconds_ratio: float | None
    more_seeds: int | None
    """As in the comparison."""
    runs: tuple[CompletedRun, ...]


class Remedies(Record):
    """Every remedy tried against the same reference."""

    family_level: float
    """At which the intervals of one column hold together."""
    level: float
    """Of each interval alone: 1 - (1 - family_level) / number of remedies that apply."""
    results: tuple[RemedyResult, ...]


class Comparison(Record):
    """Two ways to train, compared over paired seeds; the verdict is on the metric at the end."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: str
    metric: str
    higher_is_better: bool
    target: Target | None
    matched_by: Matching
    candidate: Side
    reference: Side
    seeds: int
    margin: float
    """Differences below this do not matter; fixed before the first run."""
    metric_step: float
    """Smallest change of the metric that its validation examples allow; 0 where it has none."""
    level: float
    """Of every interval here."""
    verdict: Verdict
    reason: str
    """The verdict in one sentence, with its numbers."""
    difference: Difference | None
    """The batch-size effect: candidate less reference, in the metric's unit; None without a pair."""
    candidate_gap: Difference | None
    """Generalization gap of the candidate, training less validation metric, over its runs."""
    reference_gap: Difference | None
    reached: tuple[int, int] | None
    """Runs of candidate and reference that reached the target; None without target or pair."""
    to_target: tuple[ToTarget, ...]
    seconds_ratio: float | None = None
    """Training time of the candidate's runs over that of the reference's; None where one diverged."""
    more_seeds: int | None
    """Further seeds after which a verdict is likely; 0 where there is one, None where it is not
    foreseeable."""
    runs: tuple[CompletedRun, ...]
    unfinished_runs: int = 0
    """That were asked for and not made, because a budget ended; the same command goes on."""
    remedies: Remedies | None = None
    """What was tried against a loss, where that was asked for."""
