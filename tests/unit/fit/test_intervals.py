"""Student's t, Fieller's ratio and the median's error against tables and textbook cases."""

import numpy as np
import pytest

from rightbatch.fit.intervals import (
    NORMAL_QUANTILE,
    fieller_ratio,
    jackknife,
    log_error_of_ratio,
    median_standard_error,
    t_quantile,
)

# Two-sided 90 %, from published tables.
T_TABLE = {
    1: 6.3138,
    2: 2.9200,
    3: 2.3534,
    4: 2.1318,
    5: 2.0150,
    8: 1.8595,
    10: 1.8125,
    20: 1.7247,
    60: 1.6706,
}


@pytest.mark.parametrize(("degrees", "value"), T_TABLE.items())
def test_t_quantile_agrees_with_tables(degrees: int, value: float) -> None:
    assert t_quantile(degrees) == pytest.approx(value, rel=3e-3 if degrees == 3 else 1e-3)


def test_t_quantile_tends_to_the_normal_one_from_above() -> None:
    values = [t_quantile(n) for n in range(1, 200)]
    assert values == sorted(values, reverse=True)
    assert NORMAL_QUANTILE < values[-1] < 1.01 * NORMAL_QUANTILE


def test_fieller_bounds_solve_its_quadratic() -> None:
    rng = np.random.default_rng(0)
    a, b = 5 + rng.standard_normal(10), 2 + 0.3 * rng.standard_normal(10)
    ratio = fieller_ratio(a.tolist(), b.tolist())
    assert ratio.high is not None
    for bound in (ratio.low, ratio.high):
        difference = a - bound * b
        t = difference.mean() / (difference.std(ddof=1) / np.sqrt(10))
        assert abs(t) == pytest.approx(t_quantile(9), rel=1e-9)
    assert ratio.low < a.mean() / b.mean() < ratio.high


def test_the_value_is_the_ratio_of_means_not_the_mean_of_ratios() -> None:
    a, b = [1.0, 4.0], [1.0, 2.0]
    assert fieller_ratio(a, b).value == pytest.approx(5 / 3)  # the mean of ratios is 3 / 2


def test_a_denominator_that_may_be_zero_leaves_no_upper_bound() -> None:
    ratio = fieller_ratio([10.0, 11.0, 9.0, 10.0], [1.0, -0.5, 0.8, 0.1])
    assert ratio.high is None
    assert ratio.value == pytest.approx(10 / 0.35)
    assert 0 < ratio.low < 10 / 0.35


def test_a_negative_denominator_gives_no_value_and_no_bound() -> None:
    assert fieller_ratio([10.0, 11.0, 9.0], [-1.0, -1.1, -0.9]) == (None, 0.0, None)


def test_noise_in_both_terms_bounds_nothing() -> None:
    # Every ratio is compatible with these: a lower bound above 0 would be invented.
    ratio = fieller_ratio([1.0, -1.2, 0.4, 0.1], [0.5, 0.9, -1.1, -0.1])
    assert (ratio.low, ratio.high) == (0.0, None)
    ratio = fieller_ratio([3.0, -2.0, 1.0, -1.0], [1.0, -0.5, 0.6, -0.2])
    assert (ratio.low, ratio.high) == (0.0, None)


def test_a_lower_bound_is_never_negative() -> None:
    assert fieller_ratio([1.0, -0.5, 0.3], [1.0, 1.1, 0.9]).low == 0.0


def test_error_of_the_median_ignores_one_outlier_and_shrinks_with_the_root_of_n() -> None:
    values = np.random.default_rng(0).standard_normal(4000)
    expected = np.sqrt(np.pi / 2 / 4000)
    assert median_standard_error(values) == pytest.approx(expected, rel=0.05)
    spoiled = values.copy()
    spoiled[0] = 1e9
    assert median_standard_error(spoiled) == pytest.approx(median_standard_error(values), rel=1e-2)
    assert median_standard_error(np.ones(5)) == 0.0


def test_equal_weights_are_no_weights_and_a_weight_of_two_is_not_a_second_sample() -> None:
    rng = np.random.default_rng(1)
    a, b = (5 + rng.standard_normal(8)).tolist(), (2 + 0.3 * rng.standard_normal(8)).tolist()
    assert fieller_ratio(a, b, [3.0] * 8) == pytest.approx(fieller_ratio(a, b))
    doubled, halves = fieller_ratio(a + a, b + b), fieller_ratio(a, b, [2.0] * 8)
    assert doubled.value == pytest.approx(halves.value)
    assert halves.high is not None
    assert doubled.high is not None
    assert halves.high > doubled.high


def test_a_sample_of_weight_zero_is_as_good_as_absent() -> None:
    a, b = [5.0, 5.5, 4.8, 99.0], [2.0, 2.1, 1.9, -50.0]
    assert fieller_ratio(a, b, [1, 1, 1, 0]) == pytest.approx(fieller_ratio(a[:3], b[:3]))


def test_the_error_of_a_log_ratio_is_that_of_repeated_draws() -> None:
    rng = np.random.default_rng(2)
    draws = rng.multivariate_normal([5, 2], [[1.0, 0.3], [0.3, 0.2]], size=(4000, 30))
    logs = np.log(draws[:, :, 0].mean(axis=1) / draws[:, :, 1].mean(axis=1))
    told = [log_error_of_ratio(d[:, 0].tolist(), d[:, 1].tolist()) or 0.0 for d in draws[:400]]
    assert np.mean(told) == pytest.approx(logs.std(), rel=0.05)
    assert log_error_of_ratio([1.0, 1.1], [-1.0, -1.2]) is None


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    rows = np.random.default_rng(3).standard_normal((12, 1))
    value, error = jackknife(lambda means: float(means[0]), rows)
    assert value == pytest.approx(rows.mean())
    assert error == pytest.approx(rows.std(ddof=1) / np.sqrt(12))
