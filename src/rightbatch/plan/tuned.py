"""A learning rate that was tried at the planned batch takes the place of the rule's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rightbatch.core.plan import Decision
from rightbatch.core.samples import RateTuning
from rightbatch.core.units import format_number
from rightbatch.fit.rate_choice import RateChoice, choose_rate


def with_tuned_rate(
    moved: Sequence[Decision], tunings: Iterable[RateTuning], batch_size: int
) -> list[Decision]:
    """Replace the rule's rate by the one that trials at this batch size found, if there are any.

    Weight decay that keeps its time constant B / (rate x weight_decay x N) moves along.

    Args:
        moved: constants as the rules give them, the learning rate among them.
        tunings: trials at planned batch sizes.
        batch_size: the planned global batch.
    """
    rule = next(d for d in moved if d.name == "learning_rate")
    tuning = next((t for t in tunings if _belongs(t, batch_size, rule)), None)
    if tuning is None:
        return list(moved)
    choice = choose_rate(tuning)
    factor = choice.rate / choice.rule_rate
    changed = {"learning_rate": _rate(rule, tuning, choice)}
    for decision in moved:
        if decision.name == "weight_decay" and decision.source == "wang2024" and decision.value:
            value = float(decision.value) / factor
            reason = f"{decision.reason}; {format_number(factor)} x the rate divides it"
            changed["weight_decay"] = decision.replace(value=value, reason=reason)
    if factor == 1:
        changed.pop("weight_decay", None)
    return [changed.get(decision.name, decision) for decision in moved]


def _belongs(tuning: RateTuning, batch_size: int, rule: Decision) -> bool:
    return tuning.batch_size == batch_size and math.isclose(tuning.rule_rate, float(rule.value or 0))


def _rate(rule: Decision, tuning: RateTuning, choice: RateChoice) -> Decision:
    low, high = choice.as_good
    tried = ", ".join(f"{t.learning_rate:.3g}{' (diverged)' * t.diverged}" for t in tuning.trials)
    percent = f"{choice.loss_change:+.2%} ({choice.low:+.2%} to {choice.high:+.2%})"
    found = f"best of {tried}: loss {percent} against the rule's"
    if not choice.decided:
        found = f"none of {tried} is shown to beat the rule's"
    return rule.replace(
        value=choice.rate,
        evidence="measured",
        rule=f"short branches from the same weights around {choice.rule_rate:.3g} ({rule.rule})",
        source="rate_trials",
        reason=f"{found}, {len(tuning.trials)} rates over the same examples",
        low=low,
        high=high,
    )
