"""Verdicts from paired differences, held against known truths."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from rightbatch.core.comparison import Difference
from rightbatch.core.errors import InvalidInputError
from rightbatch.validate.statistics import (
    Cost,
    bootstrap_interval,
    check_design,
    cost_ratio,
    judge,
    metric_step,
    more_seeds,
    paired_difference,
)
from rightbatch.validate.student import t_cdf, t_quantile

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks" / "validate"))

# Two-sided 95 % points of Student's t (Abramowitz and Stegun 1964, Table 26.10).
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042, 120: 1.980}


def difference(low: float, high: float) -> Difference:
    return Difference(value=(low + high) / 2, low=low, high=high, num_pairs=5)


@pytest.mark.parametrize("degrees", TABLE)
def test_quantiles_of_student_are_those_of_the_table(degrees: int) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(TABLE[degrees], abs=6e-4)
    assert t_cdf(t_quantile(0.01, degrees), degrees) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.9, 0.9, "equivalent"),
        (0.1, 0.9, "equivalent"),  # shown to differ, and by less than matters
        (0.1, 1.1, "better"),
        (-3.0, -0.1, "worse"),
        (-0.9, 1.1, "undecided"),
        (-1.0, 0.9, "undecided"),  # the margin itself is not inside it
    ],
)
def test_a_verdict_follows_from_where_the_interval_lies(low: float, high: float, verdict: str) -> None:
    assert judge(difference(low, high), 1.0, higher_is_better=True) == verdict
    mirrored = judge(difference(-high, -low), 1.0, higher_is_better=False)
    assert mirrored == verdict


def test_one_pair_or_none_decides_nothing() -> None:
    one = paired_difference([3.0])
    assert one is not None
    assert (one.value, one.low, one.high) == (3.0, None, None)
    assert judge(one, 1.0, higher_is_better=True) == "undecided"
    assert judge(paired_difference([]), 1.0, higher_is_better=True) == "undecided"


def test_equal_differences_of_a_metric_that_moves_in_steps_are_not_taken_for_certainty() -> None:
    step = metric_step([0.75, 0.5, 0.5], 4)
    honest = paired_difference([0.25] * 3, step=step)
    assert honest is not None
    assert honest.low is not None
    assert honest.low == pytest.approx(0.25 - 4.303 * 0.25 / 18**0.5, abs=1e-4)
    assert metric_step([0.75, 12.0], 4) == metric_step([0.3, 0.75], 4) == 0.0


def test_a_verdict_does_not_depend_on_the_unit_of_the_metric() -> None:
    shares = np.array([[86, 85], [84, 83]]) / 88
    percent = (100 * shares.astype(np.float32)).astype(float)
    found = []
    for values in (shares, percent):
        step = metric_step(values.ravel().tolist(), 88)
        difference = paired_difference((values[0] - values[1]).tolist(), step=step)
        assert difference is not None
        assert difference.low is not None
        found.append(difference.low)
    assert found[1] == pytest.approx(100 * found[0], rel=1e-4)


@pytest.mark.parametrize("rounding", [0.0, 1e-6])
def test_equal_differences_in_unknown_steps_count_as_one_step(rounding: float) -> None:
    verdicts = {
        n: judge(
            paired_difference([-3.0, -3.0 - rounding, *[-3.0] * (n - 2)]), 1.0, higher_is_better=True
        )
        for n in (2, 3, 5)
    }
    assert verdicts == {2: "undecided", 3: "undecided", 5: "worse"}


def test_the_foreseen_number_of_seeds_is_the_first_that_decides_at_the_same_spread() -> None:
    values = [0.011, 0.001, 0.009]
    more = more_seeds(values, 0.005)
    assert more is not None
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))

    def decides(n: int) -> bool:
        half = t_quantile(0.975, n - 1) * sd / n**0.5
        found = difference(mean - half, mean + half)
        return judge(found, 0.005, higher_is_better=True) != "undecided"

    assert [decides(3 + extra) for extra in range(more + 1)] == [False] * more + [True]
    assert more_seeds([1.0, -1.0], 1e-6) is None


@pytest.mark.parametrize(("seeds", "margin", "found"), [(1, 0.1, "1 seed"), (3, 0.0, "margin = 0")])
def test_a_design_that_cannot_decide_is_refused(seeds: int, margin: float, found: str) -> None:
    with pytest.raises(InvalidInputError, match=found):
        check_design(seeds, margin)


def test_a_run_that_missed_its_target_bounds_the_ratio_and_is_not_dropped() -> None:
    reached = Cost(10.0, 10.0), Cost(20.0, 20.0)
    missed = Cost(40.0, math.inf), Cost(20.0, 20.0)
    reference_missed = Cost(10.0, 10.0), Cost(20.0, math.inf)
    ratio, at_least, at_most = cost_ratio([reached, reached])
    assert ratio is not None
    assert (ratio.value, at_least, at_most) == (0.5, None, None)
    assert cost_ratio([reached, missed]) == (None, pytest.approx(1.0), None)
    assert cost_ratio([reference_missed]) == (None, None, 0.5)
    assert cost_ratio([missed, reference_missed]) == (None, None, None)
    assert cost_ratio([]) == (None, None, None)


def test_a_run_that_met_its_target_at_the_first_evaluation_bounds_the_ratio_from_the_other_side() -> (
    None
):
    early, exact, missed = Cost(0.0, 10.0), Cost(20.0, 20.0), Cost(20.0, math.inf)
    assert cost_ratio([(early, exact)]) == (None, None, 0.5)
    assert cost_ratio([(exact, early)]) == (None, 2.0, None)
    assert cost_ratio([(early, early)]) == (None, None, None)
    assert cost_ratio([(early, missed)]) == (None, None, 0.5)
    assert cost_ratio([(early, exact), (missed, exact)]) == (None, None, None)


def test_the_bootstrap_of_many_seeds_agrees_with_student() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(60).tolist()
    low, high = bootstrap_interval(values, rng)
    found = paired_difference(values)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert low == pytest.approx(found.low, abs=0.05)
    assert high == pytest.approx(found.high, abs=0.05)


def test_simulated_comparisons_keep_what_the_verdicts_promise() -> None:
    import calibration

    none, twice = (calibration.case("normal", mean, 1.0, 5) for mean in (0.0, 2.0))
    false = none["verdicts"]["better"] + none["verdicts"]["worse"]
    assert false <= 0.05
    assert twice["verdicts"]["better"] >= 0.8
    assert all(0.93 <= one["coverage"] <= 0.97 for one in (none, twice))
    coarse = calibration.case("coarse", 0.0, 0.5, 3)
    assert coarse["verdicts"]["better"] + coarse["verdicts"]["worse"] <= 0.05
