"""The noise scale in sentences and tables: where it is heading, and what other batches gain."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rightbatch.core.plan import Interval
from rightbatch.core.units import format_number, format_seconds
from rightbatch.fit.noise_heading import Heading
from rightbatch.fit.noise_scale import NoiseScale, steps_needed
from rightbatch.fit.sparse_noise import SparseNoise
from rightbatch.fit.steps_model import Gain, StepsModel
from rightbatch.report.sentences import interval_text, noise_text, percent
from rightbatch.report.tables import Table, noise_table

_WIDTH = 33
_MOTIONS = {"growing": "is growing", "shrinking": "is shrinking", "flat": "stays where it is"}


def noise_chart_table(points: Sequence[NoiseScale]) -> Table:
    """The table of points with each interval drawn on one logarithmic axis.

    Args:
        points: at least 1.
    """
    table = noise_table(points)
    lows = [max(p.low, 1.0) for p in points]
    ends = [p.high for p in points if p.high is not None]
    axis = (min(lows), 1.01 * max([*ends, *(2 * low for low in lows)]))
    bars = [interval_bar(p, axis) for p in points]
    title = f"{format_number(round(axis[0]))} to {format_number(round(axis[1]))}, logarithmic"
    rows = tuple((*row, bar) for row, bar in zip(table.rows, bars, strict=True))
    return Table(columns=(*table.columns, title), rows=rows, words=frozenset({title}))


def interval_bar(point: NoiseScale, axis: tuple[float, float], width: int = _WIDTH) -> str:
    """One interval as text, its value a dot; an end that is open has an arrow.

    Args:
        point: what to draw.
        axis: noise scales at both ends.
        width: in characters.
    """

    def place(value: float) -> int:
        share = math.log(max(value, axis[0]) / axis[0]) / math.log(axis[1] / axis[0])
        return min(round(share * (width - 1)), width - 1)

    low = place(point.low)
    if point.high is None or point.noise_scale is None:
        low = min(low, width - 2)
        return " " * low + "├" + "─" * (width - low - 2) + "→"
    high = max(place(point.high), low)
    bar = "├" + "─" * (high - low - 1) + "┤" if high > low else "│"
    dot = place(point.noise_scale) - low
    return " " * low + bar[:dot] + "●" + bar[dot + 1 :]


def unit_sentence(scale: NoiseScale) -> str | None:
    """The scale in targets where an example holds another number of them than 1."""
    per = scale.targets_per_example
    if per == 1:
        return None
    words = f"An example holds {per:.3g} counted targets on average, so that is"
    if scale.high is None or scale.noise_scale is None:
        return f"{words} at least {_whole(scale.low * per)} targets. Independent draws are examples."
    span = (
        f"{_whole(scale.noise_scale * per)} ({_whole(scale.low * per)} to {_whole(scale.high * per)})"
    )
    return f"{words} {span} targets. Independent draws are examples."


def heading_sentence(heading: Heading) -> str:
    """Which way the noise scale moves as training goes on, and how sure that is."""
    lost = (
        f" {heading.num_undecided} point(s) without an upper bound are left out."
        if heading.num_undecided
        else ""
    )
    if heading.exponent is None or heading.low is None or heading.high is None:
        found = f"{heading.num_points} decided point(s), and a direction takes 3"
        return f"Where the noise scale is heading is not known: {found}.{lost}"
    bounds = f"{2**heading.low:.2f} to {2**heading.high:.2f}"
    factor = f"x{2**heading.exponent:.2f} ({bounds}) for every doubling of the examples seen"
    if heading.direction == "undecided":
        return f"Where the noise scale is heading is undecided: {factor}.{lost}"
    return f"The noise scale {_MOTIONS[heading.direction]}: {factor}.{lost}"


def gains_table(found: Sequence[Gain], today: int) -> Table:
    """What each batch size gains or costs against today's."""
    columns = ("batch", "progress of a step", "progress of an example", "steps", "examples")
    return Table(
        columns=(*columns, ""),
        rows=tuple(
            (
                f"{gain.batch_size:,}",
                _shares(gain.progress_per_step),
                _shares(gain.progress_per_example),
                interval_text(gain.steps_ratio),
                interval_text(gain.examples_ratio),
                "today" if gain.batch_size == today else "",
            )
            for gain in found
        ),
        words=frozenset({""}),
    )


def gains_sentence(model: StepsModel, today: int) -> str:
    """What the table of gains refers to and rests on."""
    refers = (
        "Progress is that of a step with the true gradient and of an example in the smallest batch;"
        f" steps and examples are to the same loss, over today's batch of {today}, with the learning"
        " rate re-tuned."
    )
    spread = f"{model.calibration:g} x the noise scale, within a factor of"
    spread += f" {math.exp(model.calibration_log_sd):.2g}, as in sweeps of small networks"
    if not model.decided:
        return f"{refers} The critical batch size is {_whole(model.low)} or more ({spread})."
    bounds = f"{_whole(model.low)} to {_whole(model.high)}"
    return (
        f"{refers} The critical batch size is {_whole(model.critical_batch_size)} ({bounds}): {spread}."
    )


def precision_sentence(scale: NoiseScale, wanted: float, seconds_per_sample: float | None) -> str:
    """How many more samples a wanted precision takes, and how long that is."""
    goal = f"An interval of {percent(wanted)} either way"
    more = steps_needed(scale, wanted)
    if more is None:
        return f"{goal} cannot be forecast: the mean |G|² came out negative, lost in noise."
    if more == 0:
        return f"{goal} is there already."
    time = f", about {format_seconds(more * seconds_per_sample)}" if seconds_per_sample else ""
    rough = "" if scale.decided else " as a rough guess, for the scale itself is undecided"
    return f"{goal} takes about {more:,} more samples like these {scale.num_samples}{time}{rough}."


def sparse_table(found: Sequence[SparseNoise]) -> Table:
    """The positives' and the negatives' noise scales, and how their gradients stand to each other."""
    return Table(
        columns=("examples seen", "positives' noise scale", "negatives'", "|G+| / |G|", "cos(G+, G-)"),
        rows=tuple(
            (
                f"{point.examples_seen:,}",
                noise_text(point.positives),
                noise_text(point.negatives),
                "lost in noise" if point.norm_ratio is None else interval_text(point.norm_ratio),
                "lost in noise" if point.cosine is None else interval_text(point.cosine),
            )
            for point in found
        ),
    )


def sparse_sentence(last: SparseNoise) -> str:
    """What rare positives mean for the batch size."""
    where = f"An example holds {last.positives_per_example:.2g} positive targets on average"
    if last.positives.noise_scale is None:
        return f"{where}; the positives' gradient was lost in noise."
    needed = last.positives.noise_scale * last.positives_per_example
    return (
        f"{where}: the positives' noise scale of {noise_text(last.positives)} examples is"
        f" {needed:.2g} positives. Where the cosine is near -1 the two parts nearly cancel, and the"
        " noise scale of their small sum swings with it."
    )


def _shares(interval: Interval) -> str:
    span = f"{percent(interval.low or 0)} to {percent(interval.high or 0)}"
    return f"{percent(interval.value)} ({span})"


def _whole(value: float) -> str:
    return format_number(float(f"{value:.3g}"))
