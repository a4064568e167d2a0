"""Figures are checked as data: what is marked, where it lies and what is left open."""

from itertools import pairwise
from typing import Any

import pytest

import records
from rightbatch.core.plan import Interval
from rightbatch.core.recipe import Target
from rightbatch.fit.models import fit_models
from rightbatch.report.history import RunHistory

plots: Any = pytest.importorskip("rightbatch.report.plots", reason="needs plotly")
drawing: Any = pytest.importorskip("rightbatch.report.drawing", reason="needs plotly")
PLAN = records.plan()
MODELS = fit_models(records.measurements())
TRACED = {8: 500_000, 16: 510_000, 64: 520_000}


def trace(figure: Any, name: str) -> Any:
    (found,) = [t for t in figure.data if t.name and t.name.startswith(name)]
    return found


def history(name: str, batch: int) -> RunHistory:
    run = records.run(name, batch)
    return RunHistory(name=name, global_batch_size=batch, evaluations=run.evaluations, run=run)


def test_the_plan_and_todays_recipe_lie_on_the_predicted_curve() -> None:
    figure = plots.plot_candidates(PLAN, today=32)
    curve = trace(figure, "time to target")
    values = dict(zip(curve.x, curve.y, strict=True))
    plan, today = trace(figure, "plan: 96"), trace(figure, "today: 32")
    assert (plan.x[0], plan.y[0]) == (96, values[96])
    assert (today.x[0], today.y[0]) == (32, values[32]) == (32, 1.0)


def test_the_plateau_is_shaded_from_its_smallest_to_its_largest_batch() -> None:
    (box,) = plots.plot_candidates(PLAN, today=32).layout.shapes
    assert 62 < box.x0 < 64
    assert 160 < box.x1 < 164


def test_the_band_follows_the_intervals_and_an_open_end_leaves_the_plot() -> None:
    last = PLAN.candidates[-1]
    open_end = last.replace(seconds_ratio=Interval(value=0.7, low=0.5, high=None))
    opened = PLAN.replace(candidates=(*PLAN.candidates[:-1], open_end))
    figure = plots.plot_candidates(opened, today=32)
    band, top = trace(figure, "90 %"), 10 ** figure.layout.yaxis.range[1]
    size = len(PLAN.candidates)
    lows, highs = band.y[:size], band.y[: size - 1 : -1]
    assert list(lows[:-1]) == [c.seconds_ratio.low for c in PLAN.candidates[:-1]]
    assert list(highs[:-1]) == [c.seconds_ratio.high for c in PLAN.candidates[:-1]]
    assert highs[-1] > top


def test_an_undecided_noise_scale_is_a_caret_at_its_lower_bound_and_no_point_of_the_line() -> None:
    points = fit_models(records.measurements(undecided=True)).noise_points
    figure = plots.plot_noise(points, PLAN, today=32)
    caret, line = trace(figure, "at least this"), trace(figure, "noise scale")
    assert list(caret.x) == [11496]
    assert caret.y[0] == points[-1].low
    assert caret.y[0] + caret.error_y.array[0] > 10 ** figure.layout.yaxis.range[1]
    assert 11496 not in line.x


def test_an_undecided_pilot_throughout_still_draws() -> None:
    points = fit_models(records.measurements(undecided=True)).noise_points[-1:]
    figure = plots.plot_noise(points, None, today=32)
    assert [t.name for t in figure.data] == ["at least this, no upper bound", "today's batch: 32"]


def test_noise_bars_end_at_the_interval() -> None:
    line = trace(plots.plot_noise(MODELS.noise_points, PLAN, today=32), "noise scale")
    point = MODELS.noise_points[2]
    assert point.high is not None
    assert line.y[2] + line.error_y.array[2] == pytest.approx(point.high)
    assert line.y[2] - line.error_y.arrayminus[2] == pytest.approx(point.low)


def test_batches_are_level_lines_across_the_pilot() -> None:
    figure = plots.plot_noise(MODELS.noise_points, PLAN, today=32)
    assert list(trace(figure, "plan's batch").y) == [96, 96]
    assert list(trace(figure, "today's batch").y) == [32, 32]


def test_throughput_bars_are_those_of_the_step_time_turned_over() -> None:
    assert MODELS.speed is not None
    figure = plots.plot_speed(MODELS.speed, MODELS.loader, PLAN)
    step, rate = (t for t in figure.data if t.name == "forward and backward")
    slow, fast = MODELS.speed.interval(8)
    assert (step.x[3], rate.x[3]) == (8, 8)
    assert rate.y[3] - rate.error_y.arrayminus[3] == pytest.approx(8 / fast)
    assert rate.y[3] + rate.error_y.array[3] == pytest.approx(8 / slow)
    assert step.y[3] == pytest.approx(1e3 * MODELS.speed.step_seconds(8))


def test_the_knee_and_the_loaders_ceiling_are_drawn_in_examples_per_second() -> None:
    assert MODELS.speed is not None
    assert MODELS.loader is not None
    figure = plots.plot_speed(MODELS.speed, MODELS.loader, None)
    knee = trace(figure, "knee: 512")
    assert (knee.x[0], knee.y[0]) == (512, MODELS.speed.examples_per_second(512))
    ceiling = trace(figure, "loader alone")
    assert ceiling.y[-1] == pytest.approx(MODELS.loader.examples_per_second(ceiling.x[-1]))
    assert knee.yaxis == ceiling.yaxis == "y2"
    assert figure.layout.yaxis2.type == "log"  # a quick loader would flatten the step's line
    low, high = figure.layout.yaxis2.range
    rate = next(t for t in figure.data if t.name == "forward and backward" and t.yaxis == "y2")
    assert 10**low < min(rate.y)
    assert max(ceiling.y) < 10**high


def test_owners_stack_up_to_the_predicted_peak() -> None:
    assert MODELS.memory is not None
    figure = plots.plot_memory(MODELS.memory, TRACED, PLAN, 2**33)
    stacked = [t.y for t in figure.data if t.stackgroup]
    peak = trace(figure, "predicted peak")
    assert [sum(column) for column in zip(*stacked, strict=True)] == pytest.approx(list(peak.y))
    assert all(a < b for a, b in pairwise(peak.x))


def test_traced_peaks_are_the_traces_own() -> None:
    assert MODELS.memory is not None
    points = trace(plots.plot_memory(MODELS.memory, TRACED, PLAN, 2**33), "traced")
    assert list(points.x) == [8, 16, 64]
    assert points.y[0] == pytest.approx(500_000 / 2**20)


def test_a_near_limit_is_a_line_and_a_far_one_is_written() -> None:
    assert MODELS.memory is not None
    near = plots.plot_memory(MODELS.memory, TRACED, PLAN, 2**21)
    assert list(trace(near, "memory limit: 2 MiB").y) == [2.0, 2.0]
    assert not near.layout.annotations
    far = plots.plot_memory(MODELS.memory, TRACED, PLAN, 2**33)
    assert not [t for t in far.data if t.name.startswith("memory limit")]
    assert "8 GiB, 5,9" in far.layout.annotations[0].text


def test_the_largest_micro_batch_that_fits_is_marked_on_the_curve() -> None:
    assert MODELS.memory is not None
    limit = 2**21
    largest = MODELS.memory.max_micro_batch(limit, headroom=0.1)
    figure = plots.plot_memory(MODELS.memory, TRACED, PLAN, limit)
    mark, peak = trace(figure, "largest with 10 %"), trace(figure, "predicted peak")
    assert list(mark.x) == [largest]
    assert mark.y[0] == dict(zip(peak.x, peak.y, strict=True))[largest]
    assert mark.y[0] * 2**20 <= 0.9 * limit
    assert mark.name.endswith(f": {largest:,}")


def test_a_largest_micro_batch_beyond_four_times_the_plan_lengthens_the_axis() -> None:
    assert MODELS.memory is not None
    limit = int(1.2 * MODELS.memory.peak_bytes(600))
    largest = MODELS.memory.max_micro_batch(limit, headroom=0.1)
    figure = plots.plot_memory(MODELS.memory, TRACED, PLAN, limit)
    assert 4 * PLAN.micro_batch_size < largest == max(trace(figure, "predicted peak").x)


@pytest.mark.parametrize("limit", [2**10, 2**40])
def test_a_largest_micro_batch_that_is_none_or_far_away_is_not_marked(limit: int) -> None:
    assert MODELS.memory is not None
    figure = plots.plot_memory(MODELS.memory, TRACED, PLAN, limit)
    assert not [t for t in figure.data if t.name.startswith("largest")]


def test_each_run_is_one_entry_of_the_legend_and_four_lines() -> None:
    runs = [history("plan", 96), history("recipe", 32)]
    figure = plots.plot_runs(runs, "accuracy", Target("accuracy", 0.97))
    assert [t.name for t in figure.data if t.showlegend] == ["plan (batch 96)", "recipe (batch 32)"]
    assert len(figure.data) == 8
    assert {shape.y0 for shape in figure.layout.shapes} == {0.97}
    ends = {t.y[-1] for t in figure.data if t.name.startswith("plan")}
    last = runs[0].evaluations[-1]
    assert ends == {last.train_loss, last.metrics["accuracy"]}


def test_runs_without_a_metric_show_their_loss() -> None:
    figure = plots.plot_runs([history("plan", 96)], None, None)
    assert len(figure.data) == 2
    assert figure.layout.yaxis.title.text == "training loss"


def test_text_from_records_is_escaped_for_plotly() -> None:
    run = history("<b>x</b>", 96)
    figure = plots.plot_runs([run], "accuracy", None)
    assert figure.data[0].name == "&lt;b&gt;x&lt;/b&gt; (batch 96)"
    assert "<" not in figure.to_json()


@pytest.mark.parametrize(
    ("low", "high", "first", "last"),
    [(0.3, 4, "0.3", "3"), (7, 90, "7", "70"), (2, 3e6, "10", "1,000,000")],
)
def test_logarithmic_ticks_are_round_and_few(low: float, high: float, first: str, last: str) -> None:
    figure = drawing.new_figure()
    drawing.log_axis(figure, low, high)
    labels = figure.layout.yaxis.ticktext
    assert (labels[0], labels[-1]) == (first, last)
    assert 2 <= len(labels) <= 10
