"""A comparison of two ways to train as tables and sentences, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rightbatch.core.comparison import Comparison, Difference, RemedyResult, SideName
from rightbatch.core.run import Evaluation
from rightbatch.core.units import format_seconds
from rightbatch.report.sentences import percent
from rightbatch.report.tables import Table

Curves = Mapping[SideName, Sequence[Sequence[Evaluation]]]
"""Of each side, the evaluations of each of its runs."""


def runs_table(comparison: Comparison) -> Table:
    """Each run of each pair: its metric at the end, and what it took."""
    metric = comparison.metric
    columns = ("seed", "side", metric, f"training {metric}", "updates", "examples", "time", "outcome")
    rows = tuple(
        (
            str(run.seed),
            run.side,
            _number(run.metrics.get(metric)),
            _number(run.train_metrics.get(metric)),
            f"{run.updates:,}",
            f"{run.examples:,}",
            format_seconds(run.seconds),
            run.outcome.value,
        )
        for run in comparison.runs
    )
    return Table(columns=columns, rows=rows, words=frozenset({"side", "outcome"}))


def differences_table(comparison: Comparison) -> Table:
    """The difference of each seed, and their mean."""
    rows = [
        (f"{seed}", "diverged" if difference is None else f"{difference:+.4f}")
        for seed, difference in seed_differences(comparison)
    ]
    if comparison.difference is not None:
        rows.append(("mean", span_text(comparison.difference)))
    columns = ("seed", f"{comparison.metric}, candidate less reference")
    return Table(columns=columns, rows=tuple(rows))


def seed_differences(comparison: Comparison) -> list[tuple[int, float | None]]:
    """Candidate less reference for each seed with both runs; None where one of them diverged."""
    found = {(run.side, run.seed): run.metrics.get(comparison.metric) for run in comparison.runs}
    seeds = sorted(seed for side, seed in found if side == "candidate" and ("reference", seed) in found)
    pairs = [(seed, found["candidate", seed], found["reference", seed]) for seed in seeds]
    return [(seed, None if None in {a, b} else (a or 0) - (b or 0)) for seed, a, b in pairs]


def over_seeds(
    runs: Sequence[Sequence[Evaluation]], metric: str | None
) -> list[tuple[Evaluation, list[float]]]:
    """At each number of updates, what all runs that came there had: the metric, or training loss."""
    found: dict[int, tuple[Evaluation, list[float]]] = {}
    for run in runs:
        for evaluation in run:
            value = evaluation.train_loss if metric is None else evaluation.metrics.get(metric)
            if value is not None:
                found.setdefault(evaluation.updates, (evaluation, []))[1].append(value)
    return [found[updates] for updates in sorted(found)]


def curves_table(comparison: Comparison, curves: Curves) -> Table:
    """What both sides had along the way: means over seeds, and the lowest and highest."""
    metric = comparison.metric
    rows = [
        (side, f"{at.examples:,}", f"{at.updates:,}", _range(values), _range(losses))
        for side, runs in curves.items()
        for (at, values), (_, losses) in zip(
            over_seeds(runs, metric), over_seeds(runs, None), strict=True
        )
    ]
    columns = ("side", "examples", "updates", metric, "training loss")
    return Table(columns=columns, rows=tuple(rows), words=frozenset({"side"}))


def _range(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    return f"{mean:.4g} ({min(values):.4g} to {max(values):.4g})"


def remedies_table(comparison: Comparison) -> Table:
    """What each remedy changes, what it did, and what it cost."""
    columns = (
        "remedy",
        "what it changes",
        "verdict",
        f"{comparison.metric} against the reference",
        "gap closed",
        "examples",
        "time",
    )
    remedies = comparison.remedies
    rows = tuple(
        (
            result.remedy.name,
            result.remedy.change,
            result.verdict,
            span_text(result.difference),
            _share(result.share_closed),
            _times(result.examples_ratio),
            _times(result.seconds_ratio),
        )
        for result in (remedies.results if remedies else ())
    )
    return Table(columns=columns, rows=rows, words=frozenset(columns[:3]))


def remedy_lines(comparison: Comparison) -> list[str]:
    """What the remedies came to, a sentence a line; nothing where none was tried."""
    remedies = comparison.remedies
    if remedies is None:
        return []
    closed = [result for result in remedies.results if result.verdict == "closed"]
    tried = sum(result.remedy.plan is not None for result in remedies.results)
    if not tried:
        return ["None of the remedies applies; the table says why."]
    names = "; ".join(f"{result.remedy.name}{_cost(result)}" for result in closed)
    lines = [f"Closed the gap: {names}." if closed else "No remedy is shown to close the gap."]
    for result in remedies.results:
        if result.verdict == "undecided":
            lines.append(f"Undecided: {result.remedy.name}, {result.reason}{_further(result)}.")
        elif result.verdict == "not closed":
            lines.append(f"Not closed: {result.remedy.name}, {result.reason}.")
    lines.append(
        f"The intervals of the {tried} remedies that apply hold together with"
        f" {percent(remedies.family_level)}: each is at {100 * remedies.level:.4g} %. Closed means at"
        f" most the margin of {comparison.margin:g} worse than the reference. Examples and time are a"
        " run's over the plain candidate's."
    )
    return lines


def span_text(found: Difference | None) -> str:
    """A difference with its interval; open where one pair is left."""
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return f"{found.value:+.4f}"
    return f"{found.value:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def _share(found: Difference | None) -> str:
    if found is None:
        return "–"
    ends = "" if found.low is None or found.high is None else f" ({found.low:.0%} to {found.high:.0%})"
    return f"{found.value:.0%}{ends}"


def _cost(result: RemedyResult) -> str:
    if result.examples_ratio is None or result.seconds_ratio is None:
        return ""
    return f" ({_times(result.examples_ratio)} the examples, {_times(result.seconds_ratio)} the time)"


def _further(result: RemedyResult) -> str:
    more = result.more_seeds
    return f"; about {more} more seed(s) would decide" if more else ""


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.3g} x"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
