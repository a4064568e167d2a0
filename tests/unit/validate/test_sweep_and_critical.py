"""Sweeps and branches of a tiny task: each run once, answers with every run behind them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import tiny
from rightbatch.core.errors import InvalidInputError, InvalidTaskError
from rightbatch.core.plan import Interval
from rightbatch.core.recipe import Recipe, Target
from rightbatch.core.store import read_record, write_record
from rightbatch.core.sweep import Arm, Critical, Sweep
from rightbatch.report.branch_plot import plot_branches
from rightbatch.report.steps_plot import plot_steps
from rightbatch.report.steps_text import (
    branch_table,
    critical_lines,
    definitions_table,
    steps_table,
    sweep_lines,
)
from rightbatch.tasks.task import Task
from rightbatch.validate import critical as critical_module
from rightbatch.validate import sweep as sweep_module
from rightbatch.validate.critical import CRITICAL, measure_critical
from rightbatch.validate.ledger import LEDGER, open_ledger
from rightbatch.validate.sweep_session import SWEEP, SweepQuestion, summarise, sweep

SIZES = [4, 8, 16]


def task(**changes: object) -> Task:
    recipe = Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=5)
    values = {"recipe": recipe, "target": Target("mse", 0.5, higher_is_better=False)}
    return tiny.task(**(values | changes))


def arm(size: int, factor: float, seed: int, updates: float, outcome: str = "reached") -> Arm:
    return Arm(
        batch_size=size,
        factor=factor,
        learning_rate=0.1 * factor,
        seed=seed,
        outcome=outcome,  # type: ignore[arg-type]
        updates=updates,
        value=0.5,
    )


def question(sizes: list[int]) -> SweepQuestion:
    return SweepQuestion(
        task="tiny",
        fingerprint="",
        target=Target("mse", 0.5, higher_is_better=False),
        batch_sizes=tuple(sizes),
        rates=3,
        seeds=2,
        most_examples=1000,
        device="cpu",
    )


def test_a_sweep_trains_each_arm_once_and_reads_back_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = sweep(task(), SIZES, out=tmp_path, seeds=2, noise_seconds=0)
    assert read_record(tmp_path / SWEEP, Sweep) == found
    assert {a.batch_size for a in found.arms} == set(SIZES)
    for size in SIZES:
        rates = [{a.factor for a in found.arms if (a.batch_size, a.seed) == (size, s)} for s in (0, 1)]
        assert rates[0] == rates[1] >= {0.5, 1.0, 2.0}

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(sweep_module, "_train_arm", refuse)
    assert sweep(task(), SIZES, out=tmp_path, seeds=2, noise_seconds=0) == found
    one = next(a for a in found.arms if (a.batch_size, a.factor, a.seed) == (8, 1.0, 0))
    assert 1 <= one.updates <= 2 * 5 * 6  # updates, not examples
    assert one.value is not None
    assert one.value > 0.5  # at the last evaluation before the target
    assert [row[0] for row in steps_table(found).rows] == [f"{p.batch_size}" for p in found.points]


def test_every_batch_tries_as_many_rates_as_asked_for(tmp_path: Path) -> None:
    sweep(task(), SIZES, out=tmp_path, rates=5, seeds=1, noise_seconds=0)
    with open_ledger(tmp_path / LEDGER) as ledger:
        made = {*ledger.keys()}
    for size in SIZES:
        factors = ("0.25", "0.5", "1", "2", "4")
        assert made >= {f"batch {size}, {factor} x the rate, seed 0" for factor in factors}


def test_censored_arms_are_kept_and_named_and_left_out_of_the_fit() -> None:
    arms = [arm(b, 1.0, s, 10 * (1 + 8 / b)) for b in (2, 8, 32) for s in (0, 1)]
    arms += [arm(64, 1.0, 0, 12.0), arm(64, 1.0, 1, 15.0, "censored")]
    found = summarise(arms, question([2, 8, 32, 64]))
    assert found.missed == (64,)
    assert len(found.arms) == 8
    assert found.critical_batch_size.value == pytest.approx(8, rel=1e-4)
    assert "Not in the fit: batch 64" in "\n".join(sweep_lines(found))
    names = {one.name: one.value for one in found.definitions}
    assert names["CBS-20"] == pytest.approx(1.2 * 2 + 0.2 * 8, rel=1e-4)
    assert names["fewest examples"] == 2.0
    assert [p.regime for p in found.points] == ["diminishing returns"] * 3


def test_the_picture_of_a_sweep_shows_runs_fit_limits_and_regimes() -> None:
    arms = [arm(b, 1.0, s, 10 * (1 + 40 / b)) for b in (2, 8, 32, 128, 512) for s in (0, 1)]
    arms.append(arm(8, 2.0, 0, 999.0))
    predicted = Interval(value=60.0, low=30.0, high=None)
    found = summarise(arms, question([2, 8, 32, 128, 512]), predicted=predicted, noise=predicted)
    figure = plot_steps(found)
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["seed 1, at the best rate"].y) == [
        10 * (1 + 40 / b) for b in (2, 8, 32, 128, 512)
    ]
    assert traces["fewest steps"].y[0] == pytest.approx(10, rel=1e-4)
    assert "predicted B_crit 60" in traces
    assert [(shape.name, shape.x1) for shape in figure.layout.shapes[:2]] == [
        ("perfect scaling", pytest.approx(8, rel=1e-4)),
        ("diminishing returns", pytest.approx(200, rel=1e-4)),
    ]
    assert "0.67 times that" in "\n".join(sweep_lines(found))


def test_the_picture_of_branches_shows_each_points_rises_with_bounds_and_the_tolerance(
    tmp_path: Path,
) -> None:
    found = measure_critical(task(), [4, 8, 16], out=tmp_path, points=(0.0, 0.5), seeds=2)
    diverged = found.points[1].replace(rises=(*found.points[1].rises[:2], None))
    traces = {t.name: t for t in plot_branches(found.replace(points=(found.points[0], diverged))).data}
    first = traces["after 0 examples"]
    rises = [rise for rise in found.points[0].rises if rise is not None]
    assert list(first.y) == pytest.approx([100 * value for value, _, _ in rises])
    tops = [y + up for y, up in zip(first.y, first.error_y.array, strict=True)]
    assert tops == pytest.approx([100 * high for _, _, high in rises])
    assert len(traces["after 120 examples"].x) == 2
    assert set(traces["tolerance, 5 %"].y) == {5.0}


def test_a_target_that_nothing_reaches_is_said_with_the_number_of_batches_that_did(
    tmp_path: Path,
) -> None:
    hard = task(target=Target("mse", 1e-9, higher_is_better=False))
    found = sweep(hard, [8, 16, 32], out=tmp_path, seeds=1, noise_seconds=0)
    assert read_record(tmp_path / SWEEP, Sweep) == found
    assert (found.critical_batch_size, found.points, found.missed) == (None, (), (8, 16, 32))
    assert len(found.arms) == 9  # and every run is kept
    assert "reached at 0 batch size(s)" in sweep_lines(found)[0]
    assert definitions_table(found.definitions).rows[0][:2] == ("B_crit", "not bounded")


@pytest.mark.parametrize(
    ("steps", "bound", "advice", "regime"),
    [
        (lambda b: 4096 / b, "64 or more", "sweep larger batches", "perfect scaling"),
        (lambda _: 50.0, "up to 2", "sweep smaller ones", "stagnation"),
    ],
)
def test_steps_without_a_bend_are_answered_with_a_bound(
    steps: Callable[[int], float], bound: str, advice: str, regime: str, tmp_path: Path
) -> None:
    sizes = [2, 8, 32, 64]
    found = summarise([arm(b, 1.0, s, steps(b)) for b in sizes for s in (0, 1)], question(sizes))
    write_record(tmp_path / SWEEP, found)
    assert read_record(tmp_path / SWEEP, Sweep) == found
    assert found.critical_batch_size is None
    assert {point.regime for point in found.points} == {regime}
    line = sweep_lines(found)[0]
    assert bound in line
    assert advice in line
    assert definitions_table(found.definitions).rows[0][1] == bound
    assert len(steps_table(found).rows) == 4
    traces = {trace.name for trace in plot_steps(found).data}
    assert traces == {"seed 0, at the best rate", "seed 1, at the best rate"}


def test_a_target_that_is_met_before_any_training_is_refused_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = task(target=Target("mse", 1e6, higher_is_better=False))
    monkeypatch.setattr(sweep_module, "_train_arm", None)
    with pytest.raises(InvalidInputError, match="before any training; need a target that training"):
        sweep(met, SIZES, out=tmp_path, seeds=1, noise_seconds=0)
    assert not (tmp_path / "question.json").exists()


def test_sweeps_that_cannot_answer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="batch sizes 2, 4 and"):
        sweep(task(), [2, 4], out=tmp_path)
    with pytest.raises(InvalidInputError, match="to the 48 training examples"):
        sweep(task(), [2, 4, 64], out=tmp_path)
    with pytest.raises(InvalidInputError, match="4 rates; need an odd number"):
        sweep(task(), SIZES, out=tmp_path, rates=4)
    with pytest.raises(InvalidTaskError, match="no target"):
        sweep(task(target=None), SIZES, out=tmp_path)


def test_branches_are_paired_and_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = measure_critical(task(), [4, 8, 16], out=tmp_path, points=(0.0, 0.5), seeds=2)
    assert read_record(tmp_path / CRITICAL, Critical) == found
    assert [point.examples_seen for point in found.points] == [0, 120]
    assert found.window_examples % (4 * 16) == 0
    assert [len(point.losses) for point in found.points] == [2, 2]

    def refuse(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(critical_module, "_branches", refuse)
    assert measure_critical(task(), [4, 8, 16], out=tmp_path, points=(0.0, 0.5), seeds=2) == found
    assert len(branch_table(found).rows) == 2
    assert critical_lines(found)


def test_equal_branches_keep_up_and_a_batch_that_hardly_moves_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = task(recipe=Recipe(optimizer="sgd", lr=1e-9, batch_size=8, epochs=5))
    found = measure_critical(still, [4, 8, 16], out=tmp_path / "still", points=(0.0,), seeds=2)
    (point,) = found.points
    assert (point.passed, point.worse, found.definition.value) == (16, None, None)
    assert all(rise is not None and abs(rise[0]) < 1e-6 for rise in point.rises)
    real = critical_module.branch

    def crippled(trunk: object, plan: object, factor: float = 1.0) -> object:
        slow = plan.global_batch_size == 16
        return real(trunk, plan, 1e-6 if slow else factor)  # type: ignore[arg-type]

    monkeypatch.setattr(critical_module, "branch", crippled)
    found = measure_critical(task(), [4, 8, 16], out=tmp_path / "slow", points=(0.0,), seeds=3)
    assert (found.points[0].passed, found.points[0].worse) == (8, 16)
    assert found.definition.value == pytest.approx(math.sqrt(8 * 16))


def test_branches_that_cannot_answer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="batch sizes 4, 12"):
        measure_critical(task(), [4, 12], out=tmp_path)
    for points, found in (
        ((1.5,), r"points 1\.5"),
        ((0.1, math.nan), r"points 0\.1, nan"),
        ((), "points"),
    ):
        with pytest.raises(InvalidInputError, match=found):
            measure_critical(task(), [4, 8], out=tmp_path, points=points)
    with pytest.raises(InvalidInputError, match=r"1 seed"):
        measure_critical(task(), [4, 8], out=tmp_path, seeds=1)


def test_the_target_is_judged_on_examples_of_every_part_of_the_validation_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sweep_module, "EVALUATED", 6)
    x = torch.arange(12.0).reshape(12, 1)
    seen = torch.cat([b[0] for b in sweep_module._validation(task(valid_data=TensorDataset(x, x)))])
    assert len(seen) == 6
    assert seen.max() > 6
    few = torch.cat([
        b[0] for b in sweep_module._validation(task(valid_data=TensorDataset(x[:5], x[:5])))
    ])
    assert few.flatten().tolist() == [0, 1, 2, 3, 4]


def test_averaged_weights_are_judged_where_the_recipe_averages(tmp_path: Path) -> None:
    constants = Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=5)
    plain = sweep(task(recipe=constants), SIZES, out=tmp_path / "p", seeds=1, noise_seconds=0)
    slow = task(recipe=constants.replace(ema_decay=0.9))
    averaged = sweep(slow, SIZES, out=tmp_path / "a", seeds=1, noise_seconds=0)
    took = [
        next(a.updates for a in found.arms if (a.batch_size, a.factor) == (4, 1.0))
        for found in (plain, averaged)
    ]
    assert took[1] > took[0] + 3  # the average lags by about 1 / (1 - 0.9) updates


def test_a_metric_that_is_not_a_number_ends_a_run_as_diverged_and_not_the_sweep(tmp_path: Path) -> None:
    def undefined_for_large(model: nn.Module, batches: Any) -> dict[str, float]:
        found = tiny.mean_squared_error(model, batches)["mse"]
        return {"mse": found if found < 20 else math.nan}

    hot = Recipe(optimizer="sgd", lr=0.4, batch_size=8, epochs=5)
    found = sweep(
        task(evaluate=undefined_for_large, recipe=hot), SIZES, out=tmp_path, seeds=1, noise_seconds=0
    )
    lost = [arm for arm in found.arms if arm.outcome == "diverged"]
    assert lost
    assert {arm.value for arm in lost} == {None}
    assert any(arm.outcome == "reached" for arm in found.arms)


def test_a_sweep_goes_on_without_a_pilot_that_cannot_run(tmp_path: Path) -> None:
    found = sweep(
        task(recipe=Recipe(optimizer="sgd", lr=1e30, batch_size=8, epochs=5)),
        SIZES,
        out=tmp_path,
        seeds=1,
        noise_seconds=1,
    )
    assert read_record(tmp_path / SWEEP, Sweep) == found
    assert (found.predicted, found.noise_scale) == (None, None)
    assert "No number is predicted beside it: the loss is" in sweep_lines(found)[-1]


def test_residuals_are_printed_as_shares_of_what_was_fitted() -> None:
    sizes, steps = [2, 8, 32, 128], [120.0, 90.0, 25.0, 40.0]
    found = summarise([arm(b, 1.0, 0, s) for b, s in zip(sizes, steps, strict=True)], question(sizes))
    for row, point in zip(steps_table(found).rows, found.points, strict=True):
        assert point.fitted_updates is not None
        assert row[4] == f"{point.updates / point.fitted_updates - 1:+.1%}"
