"""Which of a few learning rates to take, from branches over the same examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rightbatch.core.samples import RateTrial, RateTuning
from rightbatch.fit.intervals import t_quantile

# The first half of a branch shows the jump to another rate, not where it leads.
_SETTLED_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class RateChoice:
    """The rate to train with, and how the best one's loss compares with the rule's."""

    rate: float
    rule_rate: float
    best_rate: float
    """Of least settled loss, whether that is shown or not."""
    loss_change: float
    """Loss of the best rate less the rule's over the same examples, over the rule's; 0 where the
    rule's is best."""
    low: float
    """90 % interval of the change, from pairs of windows."""
    high: float
    as_good: tuple[float, float]
    """Smallest and largest rate whose loss is not shown to be worse than the best."""

    @property
    def decided(self) -> bool:
        """Whether the best rate is shown to beat the rule's; otherwise the rule's is kept."""
        return self.high < 0


def settled_loss(trial: RateTrial) -> float:
    """Mean loss over the second half of a branch; infinity where it diverged."""
    if trial.diverged or not trial.losses:
        return math.inf
    return float(np.mean(trial.losses[int(_SETTLED_SHARE * len(trial.losses)) :]))


def choose_rate(tuning: RateTuning) -> RateChoice:
    """Take the rate of least settled loss, if it is shown to beat the rule's; else keep the rule's.

    Windows of two branches hold the same examples, so their differences are paired. The interval is
    Student's over these differences; neighbouring windows are taken as independent.

    Args:
        tuning: with a trial at the rule's rate.
    """
    longest = max(len(trial.losses) for trial in tuning.trials)
    finished = [t for t in tuning.trials if len(t.losses) == longest and not t.diverged]
    rule = next(t for t in tuning.trials if t.learning_rate == tuning.rule_rate)
    best = min(finished, key=settled_loss, default=rule)
    change, low, high = _change(best, rule)
    good = [t.learning_rate for t in tuning.trials if t is best or not _change(t, best)[1] > 0]
    return RateChoice(
        rate=best.learning_rate if high < 0 else rule.learning_rate,
        rule_rate=rule.learning_rate,
        best_rate=best.learning_rate,
        loss_change=change,
        low=low,
        high=high,
        as_good=(min(good), max(good)),
    )


def _change(trial: RateTrial, other: RateTrial) -> tuple[float, float, float]:
    """Loss of a branch less that of another, over the other's, with its interval."""
    if trial is other:
        return 0.0, 0.0, 0.0
    if trial.diverged or other.diverged:
        sign = math.inf if trial.diverged else -math.inf
        return sign, sign, sign
    shared = min(len(trial.losses), len(other.losses))
    start = int(_SETTLED_SHARE * shared)
    theirs = np.array(other.losses[start:shared])
    pairs = (np.array(trial.losses[start:shared]) - theirs) / abs(float(theirs.mean()))
    mean = float(pairs.mean())
    if len(pairs) < 2:
        return mean, -math.inf, math.inf
    half = t_quantile(len(pairs) - 1) * float(np.std(pairs, ddof=1)) / math.sqrt(len(pairs))
    return mean, mean - half, mean + half
