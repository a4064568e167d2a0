"""Which batch an objective picks from the scores, and how wide the choice is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.plan import Objective
from rightbatch.plan.score import Scores

TOLERANCE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Positions in the scores."""

    index: int
    first: int
    """Where the plateau begins."""
    last: int
    tolerance: float
    """What lies on the plateau costs at most this much more than the best, as a share."""


def choose(scores: Scores, objective: Objective, *, slowdown: float, today: int) -> Choice:
    """Pick a batch and the plateau round it.

    ``time`` and ``balanced`` take the least expected regret. ``compute`` takes the quickest batch
    whose examples are within 5 % of the fewest: the smallest batch always needs the fewest, and
    hardly fewer than the next. ``accuracy`` takes the smallest batch whose expected time is within
    the stated slowdown. Today's batch is kept where it lies on the plateau and the choice would be
    less than 5 % quicker.

    Args:
        scores: of the candidates within every limit.
        objective: decides the rule.
        slowdown: largest expected time over the quickest's, for ``accuracy``.
        today: today's global batch.
    """
    tolerance = slowdown - 1 if objective == "accuracy" else TOLERANCE
    expected = scores.expected_cost
    best = int(np.argmin(scores.regret if objective in {"time", "balanced"} else expected))
    good: NDArray[np.bool_] = expected <= (1 + tolerance) * expected[best]
    first, last = _run_around(good, best)
    if objective == "compute":
        best = first + int(np.argmin(scores.expected_seconds[first : last + 1]))
    if objective == "accuracy":
        best = first
    sizes = scores.candidates.global_batch_size[first : last + 1].tolist()
    if objective != "accuracy" and today in sizes:
        kept = first + sizes.index(today)
        change = float(np.median(scores.seconds[best] / scores.seconds[kept]))
        best = kept if change * (1 + TOLERANCE) > 1 else best
    return Choice(index=best, first=first, last=last, tolerance=tolerance)


def _run_around(good: NDArray[np.bool_], best: int) -> tuple[int, int]:
    first = last = best
    while first > 0 and good[first - 1]:
        first -= 1
    while last + 1 < len(good) and good[last + 1]:
        last += 1
    return first, last
