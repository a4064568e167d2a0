"""The page of a comparison: the verdict on top, the differences with margin, curves with bands."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import tiny
from rightbatch.core.comparison import Comparison
from rightbatch.core.errors import InvalidInputError, MissingPackageError
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Target
from rightbatch.core.run import Evaluation
from rightbatch.report.validation import read_curves, render_validation, write_validation
from rightbatch.report.validation_text import Curves, curves_table, over_seeds, seed_differences
from rightbatch.validate.session import validate

plots: Any = pytest.importorskip("rightbatch.report.validation_plots", reason="needs plotly")
TARGET = Target("mse", 0.5, higher_is_better=False)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    folder = tmp_path_factory.mktemp("study")
    task = tiny.task(target=TARGET)
    return validate(task, 16, out=folder, seeds=3, margin=0.01, remedy=True), folder


def trace(figure: Any, name: str) -> Any:
    (found,) = [t for t in figure.data if t.name and t.name.startswith(name)]
    return found


def test_every_seed_is_a_point_and_the_mean_has_its_interval(study: tuple[Comparison, Path]) -> None:
    found, _ = study
    figure = plots.plot_differences(found)
    points, mean = trace(figure, "one pair"), trace(figure, "mean, 95 %")
    assert list(points.y) == [difference for _, difference in seed_differences(found)]
    difference = found.difference
    assert difference is not None
    assert difference.high is not None
    assert difference.low is not None
    assert list(mean.y) == [difference.value]
    assert mean.y[0] + mean.error_y.array[0] == pytest.approx(difference.high)
    assert mean.y[0] - mean.error_y.arrayminus[0] == pytest.approx(difference.low)
    band = figure.layout.shapes[0]
    assert (band.y0, band.y1) == (-found.margin, found.margin)
    assert figure.layout.yaxis.title.text == "mse less the reference's<br>lower is better"


def test_remedies_stand_beside_the_plain_candidate(study: tuple[Comparison, Path]) -> None:
    found, _ = study
    assert found.remedies is not None
    figure = plots.plot_remedies(found)
    tried = [r for r in found.remedies.results if r.difference]
    marks = trace(figure, "intervals that hold together")
    assert list(marks.x) == [r.remedy.name for r in tried]
    assert list(marks.y) == [r.difference.value for r in tried if r.difference]
    assert list(trace(figure, "without a remedy").x) == ["none"]


def evaluation(updates: int, value: float) -> Evaluation:
    return Evaluation(
        examples=8 * updates, updates=updates, seconds=1.0, train_loss=value / 2, metrics={"mse": value}
    )


def test_bands_reach_from_the_lowest_to_the_highest_seed_and_lines_are_means(
    study: tuple[Comparison, Path],
) -> None:
    found, _ = study
    runs = [[evaluation(5, 4.0), evaluation(10, 2.0)], [evaluation(5, 2.0)]]  # one ended early
    assert [values for _, values in over_seeds(runs, "mse")] == [[4.0, 2.0], [2.0]]
    curves: Curves = {"candidate": runs, "reference": [[evaluation(5, 1.0)]]}
    figure = plots.plot_curves(found, curves)
    line = next(t for t in figure.data if t.name == "candidate: batch 16")
    assert (list(line.x), list(line.y)) == ([40, 80], [3.0, 2.0])
    bands = [t for t in figure.data if t.fill == "toself" and t.legendgroup == "candidate"]
    assert list(bands[0].y) == [4.0, 2.0, 2.0, 2.0]
    assert list(bands[0].x) == [40, 80, 80, 40]
    assert list(bands[1].x) == [5, 10, 10, 5]  # against updates
    rows = curves_table(found, curves).rows
    assert rows[0] == ("candidate", "40", "5", "3 (2 to 4)", "1.5 (1 to 2)")


def test_the_page_says_the_verdict_first_and_holds_every_run(study: tuple[Comparison, Path]) -> None:
    found, folder = study
    text = write_validation(found, folder, ["Matched by examples."]).read_text()
    body = re.sub(r"<script.*?</script>|<style.*?</style>", "", text, flags=re.DOTALL)
    answer = re.search(r'<p class="answer">(.*?)</p>', body)
    assert answer is not None
    assert answer[1].lower().startswith(found.verdict)
    assert body.index("answer") < body.index("Matched by examples.") < body.index("seed by seed")
    assert body.count("<figure>") == 3
    assert "the model has no BatchNorm" in body
    assert text == render_validation(found, read_curves(found, folder), ["Matched by examples."])
    figures = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    assert all(json.loads(figure)["data"] for figure in figures)


def test_names_from_the_task_are_text_on_the_page_and_in_the_figures(
    study: tuple[Comparison, Path],
) -> None:
    found, folder = study
    evil = "<img src=x onerror=alert(1)>"
    runs = tuple(run.replace(metrics={evil: run.metrics["mse"]}) for run in found.runs)
    hostile = found.replace(metric=evil, task=evil, reason=f"worse: {evil}", runs=runs)
    curves = {
        side: [[e.replace(metrics={evil: e.metrics["mse"]}) for e in run] for run in runs]
        for side, runs in read_curves(found, folder).items()
    }
    text = render_validation(hostile, curves, [evil])
    assert "<img" not in text
    for figure in (plots.plot_differences(hostile), plots.plot_curves(hostile, curves)):
        assert "<img" not in json.dumps(figure.layout.to_plotly_json())


def test_a_side_that_always_diverged_leaves_a_page_without_differences(tmp_path: Path) -> None:
    plan = Plan.from_recipe(tiny.task().recipe, "tiny", learning_rate=1e30)
    found = validate(tiny.task(), plan, out=tmp_path, seeds=2)
    text = write_validation(found, tmp_path, []).read_text()
    assert "2 of 2 runs of the candidate" in text
    assert "seed by seed" not in text


def test_a_run_that_was_removed_is_named(study: tuple[Comparison, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot read .*reference-seed0.outcome\.json"):
        write_validation(study[0], tmp_path, [])


def test_without_plotly_the_page_says_what_to_install(
    study: tuple[Comparison, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingPackageError, match=r"rightbatch\[report\]"):
        render_validation(study[0], {}, [])
