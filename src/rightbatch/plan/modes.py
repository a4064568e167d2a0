"""Why a plan runs its step as it does: the modes that were considered, their ratios, and the winner."""

from __future__ import annotations

from rightbatch.core.plan import Candidate, Decision, Interval
from rightbatch.plan.candidates import Candidates, Floats
from rightbatch.plan.draws import step_seconds
from rightbatch.plan.fitted import Fitted
from rightbatch.plan.score import QUICKER, SHOWN, interval

_RULE = f"quickest mode that fits, by {1 - QUICKER:.0%} in {SHOWN:.1%} of the draws; else the simpler"


def decide_modes(chosen: Candidate, allowed: Candidates, fitted: Fitted) -> tuple[Decision, Decision]:
    """Precision and recomputation, with what every other mode would take.

    Args:
        chosen: the candidate that the plan takes.
        allowed: every candidate within the limits.
        fitted: in which the recipe's mode comes first.
    """
    index = fitted.mode_of(chosen)
    size = _nearest_common_size(fitted, chosen.micro_batch_size)
    considered = [
        f"{mode} x {_text(seconds_ratio(fitted, i, 0, size))}"
        for i, mode in enumerate(fitted.modes)
        if i > 0
    ]
    ratios = f"seconds of a step over those of {fitted.modes[0]} at micro-batch {size:,}:"
    ratios += f" {', '.join(considered) or 'no other mode has any'}"
    left_out = [
        f"left out: {' and '.join(name for name, of in fitted.left_out if of == reason)} ({reason})"
        for reason in dict.fromkeys(reason for _, reason in fitted.left_out)
    ]
    reasons = {
        "precision": "; ".join([_why(index, chosen, allowed, fitted), ratios, *left_out]),
        "checkpointing": _price(fitted, chosen, size),
    }
    precision, checkpointing = (
        Decision(
            name=name,
            value=getattr(chosen, name),
            evidence="derived" if fitted.is_derived else "measured",
            rule=_RULE,
            source="williams2009" if fitted.is_derived else "measured",
            reason=reason,
        )
        for name, reason in reasons.items()
    )
    return precision, checkpointing


def seconds_ratio(fitted: Fitted, index: int, reference: int, size: int) -> Interval:
    """Seconds of forward and backward in one mode over those in another, at a micro-batch size."""

    def seconds(i: int) -> Floats:
        return step_seconds([size], fitted.modes[i], fitted.draws.step_factors[i])[0]

    return interval(seconds(index) / seconds(reference))


def _nearest_common_size(fitted: Fitted, size: int) -> int:
    """The size, or the nearest one that all modes have seconds for."""
    ranges = [mode.speed.valid_range for mode in fitted.modes]
    return min(max(size, *(low for low, _ in ranges)), *(high for _, high in ranges))


def _why(index: int, chosen: Candidate, allowed: Candidates, fitted: Fitted) -> str:
    mode, today = fitted.modes[index], fitted.modes[0]
    if index == 0:
        return f"{mode} as today: no other mode that fits is shown to be quicker"
    of_today = allowed.global_batch_size[allowed.mode == 0]
    if not (of_today == chosen.global_batch_size).any():
        return f"{mode}: {today}, today's, has no split of {chosen.global_batch_size:,} that fits"
    return f"{mode}: shown to be quicker than {today}, today's"


def _price(fitted: Fitted, chosen: Candidate, size: int) -> str:
    """What recomputing costs and saves in the chosen precision."""
    names = [(mode.precision, mode.checkpointing) for mode in fitted.modes]
    if not {(chosen.precision, True), (chosen.precision, False)} <= set(names):
        return f"there is no other choice in {chosen.precision}, as said of the precision"
    with_it, without = (names.index((chosen.precision, on)) for on in (True, False))
    ratio = seconds_ratio(fitted, with_it, without, size)
    kept, all_of_it = (fitted.modes[i].memory.peak_bytes(size) for i in (with_it, without))
    return (
        f"in {chosen.precision}, computing activations twice takes x {_text(ratio)} of the time and"
        f" x {kept / all_of_it:.2f} of the memory, at micro-batch {size:,}"
    )


def _text(ratio: Interval) -> str:
    return f"{ratio.value:.2f} ({ratio.low or 0:.2f} to {ratio.high or 0:.2f})"
