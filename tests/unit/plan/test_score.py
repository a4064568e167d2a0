"""Scores over draws: ratios to today's recipe, regret, the quickest split, plateaus."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import known
from rightbatch.core.plan import Objective
from rightbatch.fit.models import fit_models
from rightbatch.plan.candidates import Candidates, Split, enumerate_candidates
from rightbatch.plan.choose import choose
from rightbatch.plan.draws import NUM_DRAWS, Draws
from rightbatch.plan.fitted import Fitted, fit_all
from rightbatch.plan.limits import Limits
from rightbatch.plan.score import Scores, interval, score


def scores(cost: list[list[float]], seconds: list[list[float]] | None = None) -> Scores:
    """Batches 1, 2, 3, ... with a row of draws for each."""
    values = np.array(cost)
    splits = [Split(micro_batch_size=i + 1, accumulation_steps=1) for i in range(len(values))]
    return Scores(
        candidates=Candidates.of(splits),
        seconds=values if seconds is None else np.array(seconds),
        examples=values,
        cost=values,
        least_cost=values.min(axis=0),
    )


def fitted(limits: Limits | None = None, **laws: Any) -> Fitted:
    measured = known.measurements(known.Laws(**laws))
    return fit_all(measured, fit_models(measured), limits or Limits())


def scored(
    objective: Objective = "time", models: Fitted | None = None, draws: Draws | None = None
) -> Scores:
    models = models or fitted()
    candidates = enumerate_candidates(models.modes, largest_global=1024, today=32)
    today = Candidates.of([Split(micro_batch_size=32, accumulation_steps=1)])
    return score(candidates, today, models.update_seconds, draws or models.draws, objective)


def position(result: Scores, batch: int) -> int:
    return result.candidates.global_batch_size.tolist().index(batch)


def test_today_scores_one_in_every_draw() -> None:
    result = scored()
    row = position(result, 32)
    assert result.seconds.shape == (len(result.candidates), NUM_DRAWS)
    assert result.seconds[row] == pytest.approx(np.ones(NUM_DRAWS))
    assert result.examples[row] == pytest.approx(np.ones(NUM_DRAWS))


def test_seconds_are_steps_times_seconds_of_an_update() -> None:
    result, laws = scored(), known.Laws()
    sizes = result.candidates.global_batch_size[:, None].astype(float)
    pace = laws.update_seconds(1) + laws.step_seconds[1] * (sizes - 1)
    assert result.seconds == pytest.approx(
        result.examples * 32 / sizes * pace / laws.update_seconds(32)
    )


def test_examples_grow_and_steps_fall_with_the_batch() -> None:
    result = scored()
    sizes = result.candidates.global_batch_size[:, None]
    assert (np.diff(result.examples, axis=0) > 0).all()
    assert (np.diff(result.examples / sizes, axis=0) < 0).all()


def test_each_objective_weighs_its_own() -> None:
    time, balanced, compute = scored("time"), scored("balanced"), scored("compute")
    assert (time.cost == time.seconds).all()
    assert balanced.cost**2 == pytest.approx(balanced.seconds * balanced.examples)
    assert (compute.cost == compute.examples).all()


def test_each_batch_is_represented_by_its_quickest_split() -> None:
    falls = fitted(step_seconds=(1e-6, 1e-5), optimizer_seconds=1e-3, sizes=(1, 2, 4, 8))
    result = scored(models=falls)
    assert result.candidates.split(position(result, 64)) == Split(
        micro_batch_size=8, accumulation_steps=8
    )


def test_regret_is_the_mean_excess_over_the_best_of_the_same_draw() -> None:
    assert scores([[1.0, 3.0], [2.0, 1.5]]).regret == pytest.approx([(0 + 1) / 2, (1 + 0) / 2])


def test_knowing_a_source_leaves_the_others_as_they_were() -> None:
    draws = fitted(Limits(num_replicas=2)).draws
    known_noise = draws.fixing("noise scale")
    assert (known_noise.noise == 1).all()
    assert (known_noise.calibration == draws.calibration).all()
    assert (draws.fixing("bandwidth").bandwidth == 1).all()
    all_known = draws
    for name in ("noise scale", "calibration", "step times", "loader", "bandwidth"):
        all_known = all_known.fixing(name)
    result = scored(draws=all_known)
    assert (np.ptp(result.seconds, axis=1) < 1e-9).all()
    central = scored(draws=draws.central)
    assert central.seconds[:, 0] == pytest.approx(result.seconds[:, 0])


def test_the_same_models_score_the_same() -> None:
    assert (scored().cost == scored().cost).all()


def test_draws_of_a_bandwidth_are_wide_only_where_it_is_assumed() -> None:
    assumed = fitted(Limits(num_replicas=2)).draws.bandwidth
    low, high = np.quantile(assumed, [0.05, 0.95])
    assert high / low == pytest.approx(16, rel=0.25)
    given = fitted(Limits(num_replicas=2, bandwidth_bytes_per_second=1e9)).draws.bandwidth
    assert (given == 1).all()


def test_an_undecided_noise_scale_is_drawn_over_its_whole_range() -> None:
    lost = tuple(known.sample(s, 300.0) for s in (-1.0, 1.2, -0.4, 0.9, 0.1, -0.2))
    measured = known.measurements(gradients=lost)
    models = fit_all(measured, fit_models(measured), Limits())
    critical = models.draws.critical
    assert critical.min() == pytest.approx(models.steps.low, rel=0.05)
    assert critical.max() == pytest.approx(models.steps.high, rel=0.05)


def test_the_plateau_is_the_run_around_the_choice_within_five_per_cent() -> None:
    def plateau(*cost: float) -> tuple[int, int]:
        choice = choose(scores([[c] for c in cost]), "time", slowdown=1.25, today=0)
        assert choice.first <= choice.index <= choice.last
        return choice.first, choice.last

    assert plateau(1.0, 2.0, 1.04, 1.0, 1.04, 1.06, 1.0) == (0, 0)
    assert plateau(1.1, 2.0, 1.04, 1.0, 1.04, 1.06, 1.01) == (2, 4)
    assert plateau(1.01, 1.0, 1.02) == (0, 2)


def test_compute_takes_the_quickest_of_those_with_hardly_more_examples() -> None:
    found = scores([[1.0], [1.02], [1.04], [1.3]], [[9.0], [5.0], [6.0], [1.0]])
    assert choose(found, "compute", slowdown=1.25, today=0).index == 1


def test_accuracy_takes_the_smallest_batch_within_the_slowdown() -> None:
    found = scores([[2.0], [1.2], [1.1], [1.0], [1.3]])
    choice = choose(found, "accuracy", slowdown=1.25, today=0)
    assert (choice.index, choice.first, choice.last) == (1, 1, 3)
    assert choose(found, "accuracy", slowdown=1.0, today=0).index == 3
    assert choice.tolerance == 0.25


def test_today_is_kept_on_the_plateau_where_a_change_is_hardly_quicker() -> None:
    costs = [[1.02], [1.0], [1.5]]
    assert choose(scores(costs, [[1.0], [0.97], [1.4]]), "balanced", slowdown=1.25, today=1).index == 0
    assert choose(scores(costs, [[1.0], [0.90], [1.4]]), "balanced", slowdown=1.25, today=1).index == 1
    assert choose(scores(costs, [[1.0], [0.97], [1.4]]), "balanced", slowdown=1.25, today=3).index == 1


def test_regret_counts_splits_that_are_best_in_some_draws_only() -> None:
    models = fitted()
    draws = dataclasses.replace(models.draws, optimizer=np.ones(NUM_DRAWS))
    pairs = [Split(micro_batch_size=8, accumulation_steps=k) for k in (1, 2)]
    pairs.append(Split(micro_batch_size=16, accumulation_steps=1))

    def seconds(candidates: Candidates, of: Draws) -> Any:
        """One pass of 16 is quicker in the second half of the draws, two of 8 in the first."""
        late = np.arange(len(of.noise)) >= len(of.noise) // 2
        one, two = np.where(late, 1.0, 3.0), np.where(late, 2.0, 1.0)
        rows = {(8, 1): np.ones(len(late)), (16, 1): one, (8, 2): two}
        keys = zip(candidates.micro_batch_size, candidates.accumulation_steps, strict=True)
        return np.stack([rows[int(b), int(k)] for b, k in keys])

    today = Candidates.of(pairs[:1])
    result = score(Candidates.of(pairs), today, seconds, draws, "time")
    best = np.minimum(result.seconds[0], result.examples[1] / 2)  # 16 in 1 s, 8 in 1 s
    assert result.least_cost == pytest.approx(best)
    assert result.candidates.split(1).accumulation_steps == 1  # two passes are not shown to be quicker


@pytest.mark.parametrize(("two_passes", "chosen"), [(0.9, 2), (0.99, 1)])
def test_more_passes_than_the_fewest_are_taken_where_they_are_shown_to_be_quicker(
    two_passes: float, chosen: int
) -> None:
    models = fitted()
    pairs = [Split(micro_batch_size=b, accumulation_steps=16 // b) for b in (8, 16)]
    pairs += [Split(micro_batch_size=8, accumulation_steps=2, num_replicas=2)]

    def seconds(candidates: Candidates, of: Draws) -> Any:
        rows = {(8, 1): two_passes, (16, 1): 1.0, (8, 2): 5.0}
        keys = zip(candidates.micro_batch_size, candidates.num_replicas, strict=True)
        return np.stack([np.full(len(of.noise), rows[int(b), int(r)]) for b, r in keys])

    result = score(
        Candidates.of(pairs), Candidates.of(pairs[:1]), seconds, models.draws, "time"
    ).candidates
    assert [result.split(i).accumulation_steps for i in range(2)] == [chosen, 2]


def test_an_interval_is_the_middle_ninety_per_cent() -> None:
    found = interval(np.linspace(0, 1, 1001))
    assert (found.low, found.value, found.high) == pytest.approx((0.05, 0.5, 0.95))
