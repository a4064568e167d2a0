"""What a sweep and a critical batch size say, for people."""

from __future__ import annotations

from rightbatch.core.plan import Interval
from rightbatch.core.sweep import Critical, Definition, Sweep
from rightbatch.report.sentences import interval_text
from rightbatch.report.tables import Table


def steps_table(sweep: Sweep) -> Table:
    """Steps and examples to the target by batch size, beside the fit and the regime."""
    columns = ("batch", "best rate", "updates", "fitted", "residual", "examples", "regime")
    rates = {(arm.batch_size, arm.factor): arm.learning_rate for arm in sweep.arms}
    rows = tuple(
        (
            f"{point.batch_size:,}",
            f"{rates[point.batch_size, point.factor]:.3g}{' (edge)' * point.on_edge}",
            f"{point.updates:,.0f}",
            f"{point.fitted_updates:,.0f}",
            f"{point.residual:+.1%}",
            f"{point.examples:,.0f}",
            point.regime,
        )
        for point in sweep.points
    )
    return Table(columns=columns, rows=rows, words=frozenset({"regime"}))


def definitions_table(definitions: tuple[Definition, ...]) -> Table:
    """Each critical batch size under its own name."""
    rows = tuple((one.name, _interval(one), one.meaning, one.source) for one in definitions)
    columns = ("name", "examples", "meaning", "source")
    return Table(columns=columns, rows=rows, words=frozenset({"name", "meaning", "source"}))


def sweep_lines(sweep: Sweep) -> list[str]:
    """What the sweep says beside its tables."""
    lines = [
        f"Critical batch size of {sweep.task} to {sweep.target}: {interval_text(sweep.critical_batch_size)},"
        f" 90 % over seeds and residuals; the curve holds within {sweep.residual_rms:.0%}."
    ]
    if sweep.missed:
        sizes = ", ".join(map(str, sweep.missed))
        lines.append(
            f"Not in the fit: batch {sizes}, where no rate reached the target with every seed within"
            f" {sweep.most_examples:,} examples."
        )
    if any(point.on_edge for point in sweep.points):
        lines.append("Where the best rate is on the edge of those tried, fewer steps may be possible.")
    if sweep.predicted is not None and sweep.noise_scale is not None:
        ratio = sweep.critical_batch_size.value / sweep.predicted.value
        lines.append(
            f"A pilot's noise scale of {interval_text(sweep.noise_scale)} predicts"
            f" {interval_text(sweep.predicted)}; the sweep found {ratio:.2f} times that."
        )
    return lines


def branch_table(critical: Critical) -> Table:
    """Loss by batch size at each point of training, means over seeds."""
    sizes = critical.points[0].batch_sizes
    rows: list[tuple[str, ...]] = []
    for point in critical.points:
        columns = zip(*point.losses, strict=True)
        means = [
            _mean([value for value in column if value is not None], len(point.losses))
            for column in columns
        ]
        last = f"{point.largest_passed} to {point.first_worse or 'more'}"
        rows.append((f"{point.examples_seen:,}", *means, last))
    names = ("examples seen", *(f"loss at {size}" for size in sizes), "critical")
    return Table(columns=names, rows=tuple(rows))


def critical_lines(critical: Critical) -> list[str]:
    """What the branches say beside their table."""
    last = critical.points[-1]
    lines = [
        f"Branches of {critical.window_examples:,} examples from one point, {critical.seeds} paired seeds,"
        f" rates by rule; training loss at the end. A batch fails where its loss is shown to be higher"
        f" than that of the smaller ones by more than {critical.tolerance:g}; {critical.level:.0%} is the"
        f" chance of stopping too early at a point where all are equal."
    ]
    if last.first_worse is None:
        lines.append(
            f"Undecided: no batch up to {last.largest_passed} was shown to be worse. Ask for more seeds,"
            " larger batches or longer branches."
        )
    else:
        what = f"critical batch size between {last.largest_passed} and {last.first_worse}"
        lines.append(f"After {last.examples_seen:,} examples: {what}.")
    if last.resolution is not None:
        lines.append(
            f"At batch {last.largest_passed} the test could not have seen a rise of the loss below"
            f" {last.resolution:.2g}."
        )
    return lines


def _mean(values: list[float], wanted: int) -> str:
    return "diverged" if len(values) < wanted else f"{sum(values) / len(values):.4f}"


def _interval(one: Definition) -> str:
    if one.value is None:
        return "not bounded"
    if one.low is None and one.high is None:
        return f"{one.value:,.0f}"
    return interval_text(Interval(value=one.value, low=one.low, high=one.high))
