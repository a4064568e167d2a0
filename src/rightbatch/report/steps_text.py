"""What a sweep and a critical batch size say, for people."""

from __future__ import annotations

import math

from rightbatch.core.plan import Interval
from rightbatch.core.sweep import BranchPoint, Critical, Definition, Sweep
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
            "" if point.fitted_updates is None else f"{point.fitted_updates:,.0f}",
            "" if point.residual is None else f"{math.expm1(point.residual):+.1%}",
            f"{point.examples:,.0f}",
            point.regime or "",
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
    lines = [f"Critical batch size of {sweep.task} to {sweep.target}: {_what_was_found(sweep)}."]
    if sweep.missed:
        sizes = ", ".join(map(str, sweep.missed))
        lines.append(
            f"Not in the fit: batch {sizes}, where no rate reached the target with every seed before a"
            f" run was given up, after {sweep.most_examples:,} examples at the latest."
        )
    if any(point.on_edge for point in sweep.points):
        lines.append("Where the best rate is on the edge of those tried, fewer steps may be possible.")
    if sweep.predicted is not None and sweep.noise_scale is not None:
        found = ""
        if sweep.critical_batch_size is not None:
            ratio = sweep.critical_batch_size.value / sweep.predicted.value
            found = f"; the sweep found {ratio:.2f} times that"
        lines.append(
            f"A pilot's noise scale of {interval_text(sweep.noise_scale)} predicts"
            f" {interval_text(sweep.predicted)}{found}."
        )
    if sweep.noise_missing is not None:
        lines.append(f"No number is predicted beside it: {sweep.noise_missing}.")
    return lines


def _what_was_found(sweep: Sweep) -> str:
    if sweep.residual_rms is None:
        return (
            f"not fitted, as the target was reached at {len(sweep.points)} batch size(s) and a fit"
            " takes 3; train longer, or sweep more of them"
        )
    within = math.expm1(sweep.residual_rms)
    how = f"90 % over seeds and residuals; the curve holds within {within:.0%}"
    if sweep.critical_batch_size is not None:
        return f"{interval_text(sweep.critical_batch_size)}, {how}"
    bound = _interval(sweep.definitions[0])
    if sweep.min_updates is None:
        return f"{bound}, {how}. Steps halve with every doubling: sweep larger batches to find it"
    return f"{bound}, {how}. Steps do not fall with the batch: sweep smaller ones to find it"


def branch_table(critical: Critical) -> Table:
    """Loss by batch size at each point of training: geometric mean rise over the smallest batch."""
    sizes = critical.points[0].batch_sizes
    rows: list[tuple[str, ...]] = []
    for point in critical.points:
        base = [row[0] for row in point.losses if row[0] is not None]
        rises = ["diverged" if rise is None else f"{rise[0]:+.1%}" for rise in point.rises[1:]]
        rows.append((
            f"{point.examples_seen:,}",
            f"{sum(base) / len(base):.4f}",
            *rises,
            _between(point),
        ))
    names = ("examples seen", f"loss at {sizes[0]}", *(f"at {size}" for size in sizes[1:]), "critical")
    return Table(columns=names, rows=tuple(rows))


def critical_lines(critical: Critical) -> list[str]:
    """What the branches say beside their table."""
    last = critical.points[-1]
    first = last.batch_sizes[0]
    varied = "orders of examples" if critical.checkpoints else "seeds"
    lines = [
        f"Branches of {critical.window_examples:,} examples, {critical.seeds} paired {varied}, rates by"
        f" rule; training loss at the end. A batch keeps up where its loss is shown to be less than"
        f" {critical.tolerance:.0%} above that of batch {first}, and fails where it is shown to be"
        f" more; either statement is wrong in at most {critical.level:.0%}.",
        f"After {last.examples_seen:,} examples: critical batch size {_between(last)}.",
    ]
    open_ones = [
        size
        for size in last.batch_sizes
        if last.passed < size < (last.worse if last.worse is not None else size + 1)
    ]
    if open_ones:
        sizes = ", ".join(map(str, open_ones))
        lines.append(f"Not shown either way: batch {sizes}. More --seeds narrow it.")
    elif last.worse is None:
        lines.append("The largest batch keeps up: branch at larger ones to find where it ends.")
    return lines


def _between(point: BranchPoint) -> str:
    if point.worse is None:
        return f"{point.passed} or more"
    return f"{point.passed} to {point.worse}"


def _interval(one: Definition) -> str:
    if one.value is None:
        if one.low is None and one.high is None:
            return "not bounded"
        return f"up to {one.high:,.0f}" if one.low is None else f"{one.low:,.0f} or more"
    if one.low is None and one.high is None:
        return f"{one.value:,.0f}"
    return interval_text(Interval(value=one.value, low=one.low, high=one.high))
