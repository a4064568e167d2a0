"""The signal of rare positives in tables and words, each number with what it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from rightbatch.core.plan import Interval
from rightbatch.core.signal import Signal
from rightbatch.core.units import format_number
from rightbatch.report.tables import Table

_UPDATE_COLUMNS = (
    "batch",
    "positives per update",
    "P(none)",
    "P(none) if independent",
    "error of the positives' gradient",
)
_COMPARED_COLUMNS = (
    "task",
    "positives",
    "examples without",
    "share at init",
    "share now",
    "B+",
    "batch for the error",
)


def update_table(signal: Signal) -> Table:
    """Positives in an update, and the error of their gradient, for each batch size."""
    rows = tuple(
        (
            format_number(update.batch_size),
            f"{update.expected_positives:.3g} +- {update.positives_sd:.2g}",
            _probability(update.probability_none),
            _probability(update.probability_none_if_independent),
            _interval(update.relative_error, percent=True),
        )
        for update in signal.updates
    )
    return Table(columns=_UPDATE_COLUMNS, rows=rows)


def comparison_table(signals: Sequence[Signal]) -> Table:
    """One row for each signal: what another loss or another sampling changes."""
    rows: list[tuple[str, ...]] = []
    for signal in signals:
        shares = {gradient.stage: gradient.mass_share for gradient in signal.gradients}
        last = signal.gradients[-1]
        rows.append((
            signal.task,
            f"{signal.positive_fraction:.3%}",
            f"{signal.examples_without:.1%}",
            _share(shares.get("init")),
            _share(shares.get("now")),
            "not bounded" if last.noise_scale is None else f"{last.noise_scale:.2g}",
            _interval(signal.batch_for_error),
        ))
    return Table(columns=_COMPARED_COLUMNS, rows=tuple(rows), words=frozenset({"task"}))


def signal_sentences(signal: Signal) -> tuple[str, ...]:
    """What the counts and the gradient say, in words."""
    exact = "exactly, from every window that can be drawn"
    if signal.counts_evidence == "measured":
        exact = f"on {format_number(signal.examples_counted)} examples"
    sentences = [
        f"{signal.positive_fraction:.3%} of positions are positive, {signal.positives_per_example:.3g}"
        f" in an example, and {signal.examples_without:.1%} of examples hold none (counted {exact})."
    ]
    if signal.design_effect is not None:
        sentences.append(
            f"Positives come in clusters: their number varies {signal.design_effect:.3g} times as much"
            " as that of independent positions (design effect, Kish 1965)."
        )
    last = signal.gradients[-1]
    if last.mass_share is not None:
        where = "at initialisation" if last.stage == "init" else "now"
        sentences.append(
            f"Positives hold {last.mass_share:.2%} of the gradient on the outputs {where} (measured)."
        )
    needed, wanted = signal.batch_for_error, f"{signal.wanted_relative_error:.0%}"
    if needed is None:
        sentences.append("The positives' gradient was lost in noise: take more examples.")
    else:
        sentences.append(
            f"Batches of {_interval(needed)} bring the positives' gradient to {wanted} (B+ / error^2)."
        )
    return tuple(sentences)


def _interval(value: Interval | None, *, percent: bool = False) -> str:
    if value is None:
        return "not bounded"
    form = "{:.0%}" if percent else "{:.3g}"
    low, middle, high = (
        "open" if x is None else form.format(x) for x in (value.low, value.value, value.high)
    )
    return f"{middle} ({low} to {high})"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _probability(value: float) -> str:
    """Small ones as powers; 0 only where it is impossible."""
    return "0" if value == 0 else f"{value:.1%}" if value >= 1e-3 else f"{value:.0e}"
