"""Scores over draws: ratios to today's recipe, regret, plateau."""

import numpy as np
import pytest

import known
from rightbatch.fit.models import fit_models
from rightbatch.plan.candidates import Split, quickest_splits
from rightbatch.plan.score import NUM_DRAWS, Scores, interval, score


def scores(cost: list[list[float]]) -> Scores:
    values = np.array(cost)
    return Scores(seconds=values, examples=values, cost=values)


def scored(objective: str = "time", today: int = 32, **laws: float) -> tuple[list[Split], Scores]:
    models = fit_models(known.measurements(known.Laws(**laws)))  # type: ignore[arg-type]
    assert models.speed is not None
    assert models.loader is not None
    assert models.steps is not None
    candidates = quickest_splits(
        models.speed, models.loader, largest_micro=1024, largest_global=1024, today=today
    )
    split = Split(micro_batch_size=today, accumulation_steps=1)
    return candidates, score(
        candidates,
        split,
        speed=models.speed,
        loader=models.loader,
        steps=models.steps,
        objective=objective,  # type: ignore[arg-type]
    )


def test_today_scores_one_in_every_draw() -> None:
    candidates, result = scored()
    column = [split.global_batch_size for split in candidates].index(32)
    assert result.seconds.shape == (NUM_DRAWS, len(candidates))
    assert result.seconds[:, column] == pytest.approx(np.ones(NUM_DRAWS))
    assert result.examples[:, column] == pytest.approx(np.ones(NUM_DRAWS))


def test_seconds_are_steps_times_seconds_of_an_update() -> None:
    candidates, result = scored()
    laws = known.Laws()
    sizes = np.array([split.global_batch_size for split in candidates], float)
    steps = result.examples * 32 / sizes
    pace = np.array([laws.update_seconds(b) for b in sizes]) / laws.update_seconds(32)
    assert result.seconds == pytest.approx(steps * pace)


def test_examples_grow_and_steps_fall_with_the_batch() -> None:
    candidates, result = scored()
    sizes = np.array([split.global_batch_size for split in candidates], float)
    assert (np.diff(result.examples, axis=1) > 0).all()
    assert (np.diff(result.examples / sizes, axis=1) < 0).all()


def test_time_weighs_seconds_and_balanced_the_geometric_mean_with_examples() -> None:
    _, time = scored("time")
    _, balanced = scored("balanced")
    assert (time.cost == time.seconds).all()
    assert balanced.cost**2 == pytest.approx(balanced.seconds * balanced.examples)


def test_regret_is_the_mean_excess_over_the_best_of_the_same_draw() -> None:
    assert scores([[1.0, 2.0], [3.0, 1.5]]).regret == pytest.approx([(0 + 1) / 2, (1 + 0) / 2])


def test_the_plateau_is_the_run_around_the_choice_within_five_per_cent() -> None:
    assert scores([[1.0, 2.0, 1.04, 1.0, 1.04, 1.06, 1.0]]).plateau() == (0, 0)
    assert scores([[1.1, 2.0, 1.04, 1.0, 1.04, 1.06, 1.01]]).plateau() == (2, 4)
    assert scores([[1.01, 1.0, 1.02]]).plateau() == (0, 2)


def test_the_same_models_score_the_same() -> None:
    assert (scored()[1].cost == scored()[1].cost).all()


def test_an_interval_is_the_middle_ninety_per_cent() -> None:
    found = interval(np.linspace(0, 1, 1001))
    assert (found.low, found.value, found.high) == pytest.approx((0.05, 0.5, 0.95))
