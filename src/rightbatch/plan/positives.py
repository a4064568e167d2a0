"""Whether the updates of a planned batch see enough of rare positives, from the measured signal."""

from __future__ import annotations

import math

from rightbatch.core.plan import Guard
from rightbatch.core.signal import Signal
from rightbatch.core.units import format_number

FEW_POSITIVES = 10
_BLIND_UPDATES = 0.01  # share of updates without a positive, above which it is said
_LOST = 1.0  # relative error of the positives' gradient, above which an update is mostly its noise


def guard_positives(signal: Signal, batch_size: int) -> Guard | None:
    """Speaks where updates hold few positives or often none, or their gradient is mostly noise.

    Unlike a count of positives alone, the law of the examples drawn knows that positives cluster.
    """
    expected = batch_size * signal.positives_per_example
    # P(none) falls as the batch grows, so that of the next smaller batch described is a bound.
    smaller = [update for update in signal.updates if update.batch_size <= batch_size]
    none = min((update.probability_none for update in smaller), default=signal.examples_without)
    error = signal.error_at(batch_size)
    is_lost = error is not None and error.value > _LOST
    if expected >= FEW_POSITIVES and none < _BLIND_UPDATES and not is_lost:
        return None
    text = f"An update sees {format_number(float(f'{expected:.3g}'))} positive targets on average,"
    text += f" and at most {none:.2%} of all updates see none."
    if error is not None:
        high = "open" if error.high is None else f"{error.high:.0%}"
        text += (
            f" Their gradient is off by {error.value:.0%} ({error.low:.0%} to {high}) in one update."
        )
    if (needed := signal.batch_for_error) is not None:
        text += f" An error of {signal.wanted_relative_error:.0%} needs a batch of"
        text += f" {format_number(math.ceil(needed.value))}, or positives drawn more often."
    return Guard(
        name="positives_per_update", text=text, evidence=signal.counts_evidence, source="sparse_law"
    )
