"""Paired runs of a tiny task, from question to verdict, stopped and gone on with."""

import dataclasses
import json
import math
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import tiny
from rightbatch.core.comparison import Comparison
from rightbatch.core.errors import InvalidInputError, InvalidTaskError
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Recipe, Target
from rightbatch.core.store import read_record
from rightbatch.tasks.task import Loss
from rightbatch.validate import pairs, session
from rightbatch.validate.compare import comparison_lines
from rightbatch.validate.ledger import LEDGER, StudyStoppedError, open_ledger, sole_owner
from rightbatch.validate.session import COMPARISON, validate

REACHABLE = Target("mse", 4.0, higher_is_better=False)


def test_a_comparison_holds_every_run_and_reads_back_the_same(tmp_path: Path) -> None:
    task = tiny.task(target=REACHABLE)
    found = validate(task, 16, out=tmp_path, seeds=2, margin=0.5)
    assert read_record(tmp_path / COMPARISON, Comparison) == found
    assert [(run.seed, run.side) for run in found.runs] == [
        (0, "reference"),
        (0, "candidate"),
        (1, "reference"),
        (1, "candidate"),
    ]
    assert {run.examples for run in found.runs} == {4 * tiny.NUM_EXAMPLES}
    assert {run.updates for run in found.runs if run.side == "candidate"} == {12}
    assert found.candidate.plan.learning_rate == 2 * task.recipe.lr  # SGD: linear
    assert (found.metric, found.higher_is_better) == ("mse", False)
    ours, theirs = found.runs[1].metrics["mse"], found.runs[0].metrics["mse"]
    others = found.runs[3].metrics["mse"] - found.runs[2].metrics["mse"]
    assert found.difference is not None
    assert found.difference.value == pytest.approx((ours - theirs + others) / 2)


def test_the_gap_is_of_each_side_and_apart_from_the_difference_between_them(tmp_path: Path) -> None:
    found = validate(tiny.task(), 16, out=tmp_path, seeds=2)
    gaps = [run.train_metrics["mse"] - run.metrics["mse"] for run in found.runs]
    assert found.reference_gap is not None
    assert found.candidate_gap is not None
    assert found.reference_gap.value == pytest.approx((gaps[0] + gaps[2]) / 2)
    assert found.candidate_gap.value == pytest.approx((gaps[1] + gaps[3]) / 2)


def test_the_training_metric_is_that_of_the_weights_at_the_end(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    task = tiny.task(valid_data=tiny.data(tiny.NUM_EXAMPLES, seed=1))  # as many as in training
    found = validate(task, 16, out=tmp_path, seeds=2)
    run = found.runs[0]
    state = load_file(tmp_path / run.run_dir / "checkpoints" / "final.safetensors")
    x, y = tiny.data().tensors
    predicted = x @ state["weight"].T + state["bias"]
    assert run.train_metrics["mse"] == pytest.approx(float(((predicted - y) ** 2).mean()), rel=1e-5)


def test_a_metric_that_is_undefined_on_training_data_is_missing_there(tmp_path: Path) -> None:
    def evaluate(model: nn.Module, batches: Any) -> dict[str, float]:
        seen = [*batches]
        is_training = sum(len(y) for _, y in seen) == tiny.NUM_EXAMPLES
        return tiny.mean_squared_error(model, seen) | {"recall": math.nan if is_training else 0.5}

    valid = tiny.data(tiny.NUM_EXAMPLES + 2, seed=1)  # the gap looks at all 48 training examples
    task = tiny.task(valid_data=valid, evaluate=evaluate)
    found = validate(task, 16, out=tmp_path, seeds=2)
    assert all(set(run.metrics) == {"mse", "recall"} for run in found.runs)
    assert all(set(run.train_metrics) == {"mse"} for run in found.runs)
    assert read_record(tmp_path / COMPARISON, Comparison) == found


def test_an_undefined_metric_is_told_in_its_own_words_and_not_as_a_rate_too_high(
    tmp_path: Path,
) -> None:
    def evaluate(model: nn.Module, batches: Any) -> dict[str, float]:
        return {"mse": math.nan}

    found = validate(tiny.task(evaluate=evaluate), 16, out=tmp_path, seeds=2)
    text = " ".join(comparison_lines(found))
    assert found.verdict == "undecided"
    assert "learning rate" not in found.reason
    for side, updates in (("candidate", 3), ("reference", 6)):
        assert (
            f"The {side} diverged with seed 0: evaluation after update {updates} gave mse = nan" in text
        )


def test_a_plan_held_against_itself_is_equivalent(tmp_path: Path) -> None:
    plan = Plan.from_recipe(tiny.task().recipe, "tiny")
    found = validate(tiny.task(), plan, out=tmp_path, seeds=2)
    assert (found.verdict, found.difference and found.difference.value) == ("equivalent", 0.0)


def test_both_sides_of_a_seed_begin_with_the_same_weights(tmp_path: Path) -> None:
    recipe = Recipe(optimizer="sgd", lr=1e-12, batch_size=8, epochs=1)
    found = validate(tiny.task(recipe=recipe), 16, out=tmp_path, seeds=2)
    first, second, third, fourth = (run.metrics["mse"] for run in found.runs)
    assert first == pytest.approx(second, rel=1e-6)
    assert third == pytest.approx(fourth, rel=1e-6)
    assert first != pytest.approx(third, rel=1e-3)


@pytest.mark.parametrize(("matched_by", "updates"), [("examples", 12), ("updates", 24)])
def test_the_candidate_gets_as_much_as_the_reference(
    matched_by: str, updates: int, tmp_path: Path
) -> None:
    found = validate(tiny.task(), 16, out=tmp_path, seeds=2, matched_by=matched_by)  # type: ignore[arg-type]
    ours = [run for run in found.runs if run.side == "candidate"]
    assert {run.updates for run in ours} == {updates}
    assert {run.examples for run in ours} == {16 * updates}


def test_equal_time_gives_as_many_updates_as_their_pace_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "pace_ratio", lambda *_, **__: 1.5)
    found = validate(tiny.task(), 16, out=tmp_path, seeds=2, matched_by="time")
    assert {run.updates for run in found.runs if run.side == "candidate"} == {16}  # of 24


def test_the_answer_tells_how_equal_the_time_was_and_warns_where_it_was_not(tmp_path: Path) -> None:
    found = validate(tiny.task(), 16, out=tmp_path, seeds=2)
    ours, theirs = (
        sum(run.seconds for run in found.runs if run.side == side)
        for side in ("candidate", "reference")
    )
    assert found.seconds_ratio == pytest.approx(ours / theirs)
    assert "Training time" not in " ".join(comparison_lines(found))
    for ratio, is_unequal in ((0.95, False), (1.09, False), (1.2, True), (0.8, True)):
        timed = found.replace(matched_by="time", seconds_ratio=ratio)
        text = " ".join(comparison_lines(timed))
        assert f"candidate over reference: {ratio:.2f}." in text
        assert ("more than 10% from the equal time" in text) == is_unequal


def test_runs_go_on_past_the_target_and_say_when_they_met_it(tmp_path: Path) -> None:
    found = validate(tiny.task(target=REACHABLE), 16, out=tmp_path, seeds=2)
    reached = [run.examples_to_target for run in found.runs]
    assert found.reached == (
        sum(value is not None for value in reached[1::2]),
        sum(value is not None for value in reached[::2]),
    )
    assert any(
        value is not None and value < run.examples
        for value, run in zip(reached, found.runs, strict=True)
    )


def test_a_target_that_no_run_meets_leaves_the_cost_unknown_and_the_metric_judged(
    tmp_path: Path,
) -> None:
    found = validate(tiny.task(), 16, out=tmp_path, seeds=2)
    assert found.reached == (0, 0)
    assert [(cost.ratio, cost.at_least, cost.at_most) for cost in found.to_target] == [(None,) * 3] * 2
    assert found.difference is not None
    assert any("runs of both sides ended before the target" in line for line in comparison_lines(found))


def test_a_side_that_always_diverges_is_worse_and_one_that_sometimes_does_undecided(
    tmp_path: Path,
) -> None:
    task = tiny.task()
    plan = Plan.from_recipe(task.recipe, "tiny", learning_rate=1e30)
    found = validate(task, plan, out=tmp_path, seeds=2)
    assert (found.verdict, found.difference, found.seconds_ratio) == ("worse", None, None)
    assert "2 of 2 runs of the candidate" in found.reason
    from rightbatch.validate.compare import compare

    again = {name: getattr(found, name) for name in ("task", "metric", "higher_is_better", "target")}
    again |= {name: getattr(found, name) for name in ("matched_by", "candidate", "reference", "margin")}
    fine = found.runs[2].model_copy(update={"side": "candidate"})
    mixed = compare(**again, num_valid_examples=16, runs=[*found.runs[:3], fine])
    assert mixed.verdict == "undecided"
    assert "1 of 2 runs of the candidate" in mixed.reason


def test_a_second_call_trains_nothing_again_and_may_only_ask_for_more_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = tiny.task()
    first = validate(task, 16, out=tmp_path, seeds=2)
    trained: list[int] = []
    real = pairs.train

    def counting(*args: object, **more: object) -> object:
        trained.append(1)
        return real(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(pairs, "train", counting)
    assert validate(task, 16, out=tmp_path, seeds=2) == first
    assert trained == []
    more = validate(task, 16, out=tmp_path, seeds=3)
    assert (len(trained), more.runs[:4]) == (2, first.runs)
    with pytest.raises(
        InvalidInputError, match=r"margin = 0\.1, while .*question\.json began with 0\.005"
    ):
        validate(task, 16, out=tmp_path, seeds=3, margin=0.1)
    other = dataclasses.replace(task, train_data=tiny.data(56))
    with pytest.raises(InvalidInputError, match="fingerprint"):
        validate(other, 16, out=tmp_path, seeds=3)


def test_a_comparison_of_another_version_is_refused(tmp_path: Path) -> None:
    validate(tiny.task(), 16, out=tmp_path, seeds=2)
    with closing(sqlite3.connect(tmp_path / LEDGER)) as ledger:
        ledger.execute("PRAGMA user_version = 7")
    with pytest.raises(InvalidInputError, match="schema_version 7"):
        validate(tiny.task(), 16, out=tmp_path, seeds=2)


def test_a_folder_has_one_owner_at_a_time(tmp_path: Path) -> None:
    with (
        sole_owner(tmp_path),
        pytest.raises(InvalidInputError, match="another process"),
        sole_owner(tmp_path),
    ):
        pass


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    other = Plan.from_recipe(tiny.task().recipe, "another-task")
    with pytest.raises(InvalidInputError, match="a plan for task 'another-task'"):
        validate(tiny.task(), other, out=tmp_path)
    with pytest.raises(InvalidInputError, match="batch 49 with 48 training examples"):
        validate(tiny.task(), 49, out=tmp_path)
    with pytest.raises(InvalidTaskError, match="no valid_data"):
        validate(tiny.task(valid_data=None, target=None), 16, out=tmp_path)
    with pytest.raises(InvalidInputError, match="metrics mse and no target"):
        validate(tiny.task(target=None), 16, out=tmp_path)


@pytest.mark.parametrize("matched_by", ["examples", "updates", "time"])
def test_what_the_candidate_cannot_train_is_refused_before_the_reference_is_trained(
    matched_by: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "pace_ratio", lambda *_, **__: 1.0)
    folder = tmp_path / "study"
    with pytest.raises(InvalidInputError, match="a micro-batch of 1 example"):  # 47 + 1
        validate(tiny.task(model=tiny.batch_norm), 47, out=folder, seeds=2, matched_by=matched_by)
    assert not (folder / "runs").exists()
    assert folder.exists() == (matched_by == "time")


def test_rates_are_tried_on_both_sides(tmp_path: Path) -> None:
    found = validate(tiny.task(), 16, out=tmp_path, seeds=2, tune_seconds=0.2)
    assert all("in short branches" in side.rate_from for side in (found.candidate, found.reference))


def test_a_rate_is_said_to_be_kept_where_all_that_were_tried_diverged(tmp_path: Path) -> None:
    plan = Plan.from_recipe(tiny.task().recipe, "tiny", learning_rate=1e30)
    found = validate(tiny.task(), plan, out=tmp_path, seeds=2, tune_seconds=0.1)
    assert found.candidate.rate_from.startswith("kept, while training diverged at each of 5")
    assert "diverged" not in found.reference.rate_from


def test_rates_of_another_optimizer_than_the_recipes_are_refused_before_the_folder_is_begun(
    tmp_path: Path,
) -> None:
    plan = Plan.from_recipe(tiny.task().recipe, "tiny", optimizer="adamw")
    with pytest.raises(InvalidInputError, match="optimizer 'adamw', while the recipe has 'sgd'"):
        validate(tiny.task(), plan, out=tmp_path / "study", seeds=2, tune_seconds=0.1)
    assert not (tmp_path / "study").exists()


def finished_runs(folder: Path) -> list[str]:
    if not (folder / LEDGER).exists():
        return []
    with open_ledger(folder / LEDGER) as ledger:
        return ledger.keys()


def slow_validation(folder: Path) -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
        time.sleep(0.003)
        return tiny.squared_error(model, batch)

    validate(tiny.task(loss=loss), 16, out=folder, seeds=3)


def test_kills_at_any_moment_lose_and_repeat_no_finished_run(tmp_path: Path) -> None:
    seen: list[str] = []
    waits = random.Random(0)
    kills = 0
    while not (tmp_path / COMPARISON).exists():
        process = multiprocessing.get_context("fork").Process(target=slow_validation, args=(tmp_path,))
        process.start()
        while process.is_alive() and finished_runs(tmp_path) == seen:
            time.sleep(0.002)  # until one more run is finished, however slow the machine is
        process.join(waits.uniform(0.0, 0.15))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        now = finished_runs(tmp_path)
        assert now[: len(seen)] == seen
        seen = now
    assert kills >= 2
    document = json.loads((tmp_path / COMPARISON).read_text())
    assert len(document["runs"]) == len(seen) == len({*seen}) == 6
    untouched = validate(tiny.task(), 16, out=tmp_path / "again", seeds=3)
    killed = [run["metrics"]["mse"] for run in document["runs"]]
    assert killed == [run.metrics["mse"] for run in untouched.runs]


def test_ctrl_c_keeps_the_run_in_flight_where_it_stands(tmp_path: Path) -> None:
    calls = 0

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
        nonlocal calls
        calls += 1
        if calls == 55:  # in the third of the four runs
            os.kill(os.getpid(), signal.SIGINT)
        return tiny.squared_error(model, batch)

    task = tiny.task(loss=loss)
    with pytest.raises(StudyStoppedError, match=r"stopped by Ctrl-C in reference-seed1") as stopped:
        validate(task, 16, out=tmp_path, seeds=2)
    assert stopped.value.exit_code == 130
    assert [*tmp_path.glob("runs/reference-seed1/checkpoints/*")]
    found, whole = (
        validate(task, 16, out=tmp_path, seeds=2),
        validate(task, 16, out=tmp_path / "b", seeds=2),
    )
    assert [run.metrics for run in found.runs] == [run.metrics for run in whole.runs]


def test_targets_that_the_first_evaluations_meet_leave_the_cost_unknown(tmp_path: Path) -> None:
    easy = tiny.task(target=Target("mse", 1e6, higher_is_better=False))
    found = validate(easy, 16, out=tmp_path, seeds=2)
    assert found.reached == (2, 2)
    assert all(run.met_at_first for run in found.runs)
    assert [(cost.ratio, cost.at_least, cost.at_most) for cost in found.to_target] == [(None,) * 3] * 2
    assert any("those of both met it at their first" in line for line in comparison_lines(found))
