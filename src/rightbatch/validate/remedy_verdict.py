"""Whether a remedy closed the gap: its runs against the reference's, at a simultaneous level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from rightbatch.core.comparison import (
    Comparison,
    CompletedRun,
    Difference,
    Remedy,
    RemedyResult,
    RemedyVerdict,
)
from rightbatch.core.run import Outcome
from rightbatch.validate.statistics import LEVEL, paired_difference, seeds_until, share_closed


def each_level(remedies: int) -> float:
    """Level of each of several intervals that are to hold together (Bonferroni).

    >>> each_level(5)
    0.99
    """
    return 1 - (1 - LEVEL) / max(remedies, 1)


def judge_remedy(
    remedy: Remedy, runs: Sequence[CompletedRun], plain: Comparison, *, level: float
) -> RemedyResult:
    """Compare a remedy's runs with the reference's and the plain candidate's of the same seeds.

    Args:
        remedy: what was changed.
        runs: of the candidate with the change.
        plain: the comparison without it.
        level: of the intervals.
    """
    seeds = [run.seed for run in runs]
    plains, references = _of(plain, "candidate", seeds), _of(plain, "reference", seeds)
    left = _differences(runs, references, plain.metric)
    before = _differences(plains, references, plain.metric)
    difference = paired_difference(left, level, plain.metric_step)
    gain = paired_difference(_differences(runs, plains, plain.metric), level, plain.metric_step)
    share = None
    if plain.verdict == "worse" and 0 < len(runs) == len(left) == len(before):
        share = share_closed(left, before, level, plain.metric_step)
    if remedy.plan is None:
        verdict, reason = "does not apply", remedy.change
    elif not runs:
        verdict, reason = "not run yet", "the budget ended before its first run"
    else:
        verdict, reason = _judge(runs, references, difference, plain)
    if verdict == "not closed" and gain and _gained(gain, higher_is_better=plain.higher_is_better):
        reason += f", and better than without it by {_span(gain)}"
    return RemedyResult(
        remedy=remedy,
        verdict=verdict,
        reason=reason,
        difference=difference,
        gain=gain,
        share_closed=share,
        examples=_mean([run.examples for run in runs]),
        seconds=_mean([run.seconds for run in runs]),
        examples_ratio=_ratio(runs, plains, "examples"),
        seconds_ratio=_ratio(runs, plains, "seconds"),
        more_seeds=_more_seeds(verdict, left if len(left) == len(runs) else [], plain, level),
        runs=tuple(runs),
    )


def _judge(
    runs: Sequence[CompletedRun],
    references: Sequence[CompletedRun],
    difference: Difference | None,
    plain: Comparison,
) -> tuple[RemedyVerdict, str]:
    """The verdict, and why; ``closed`` is a one-sided question, to which better is an answer, too."""
    lost, theirs = _diverged(runs), _diverged(references)
    if lost == len(runs) and not theirs:
        return "not closed", f"{lost} of {lost} runs diverged"
    if lost or theirs:
        of_reference = f" and {theirs} of the reference" if theirs else ""
        counts = f"{lost} of {len(runs)} runs{of_reference} diverged"
        return "undecided", f"{counts}, and the pairs that are left are no fair sample"
    if difference is None or difference.low is None or difference.high is None:
        return "undecided", f"{len(runs)} run(s), and it takes 2 pairs to see a spread"
    span = f"{plain.metric} {_span(difference)} against the reference"
    worst, best = difference.low, difference.high
    if not plain.higher_is_better:
        worst, best = -difference.high, -difference.low
    if worst > -plain.margin:
        return "closed", f"{span}: at most the margin of {plain.margin:g} worse"
    if best < 0:
        return "not closed", f"{span}: still worse"
    return "undecided", f"{span}: neither within the margin nor worse for certain"


def _diverged(runs: Sequence[CompletedRun]) -> int:
    return sum(run.outcome is Outcome.DIVERGED for run in runs)


def _gained(gain: Difference | None, *, higher_is_better: bool) -> bool:
    """Whether the remedied candidate is shown to be better than the plain one."""
    if gain is None or gain.low is None or gain.high is None:
        return False
    return gain.low > 0 if higher_is_better else gain.high < 0


def _more_seeds(
    verdict: RemedyVerdict, left: Sequence[float], plain: Comparison, level: float
) -> int | None:
    """Seeds until the interval is clear of the margin on the one side, or of 0 on the other."""
    if verdict != "undecided" or not left:
        return 0 if verdict in {"closed", "not closed"} else None
    mean = math.fsum(left) / len(left) * (1 if plain.higher_is_better else -1)
    return seeds_until(max(mean + plain.margin, -mean), left, level, plain.metric_step)


def _of(plain: Comparison, side: str, seeds: Sequence[int]) -> list[CompletedRun]:
    found = {run.seed: run for run in plain.runs if run.side == side}
    return [found[seed] for seed in seeds]


def _differences(
    runs: Sequence[CompletedRun], others: Sequence[CompletedRun], metric: str
) -> list[float]:
    return [
        ours.metrics[metric] - theirs.metrics[metric]
        for ours, theirs in zip(runs, others, strict=True)
        if ours.metrics and theirs.metrics
    ]


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _ratio(
    runs: Sequence[CompletedRun],
    others: Sequence[CompletedRun],
    name: Literal["examples", "seconds"],
) -> float | None:
    """Of what runs cost; None where one of them did not come to its end."""
    if not runs or not all(run.metrics for run in (*runs, *others)):
        return None
    return math.fsum(getattr(r, name) for r in runs) / math.fsum(getattr(r, name) for r in others)


def _span(found: Difference) -> str:
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
