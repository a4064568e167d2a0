"""Metrics for rare positives, against their definitions and against scikit-learn."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rightbatch.core.errors import InvalidInputError
from rightbatch.sparse.metrics import average_precision, calibration, top_k_precision


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), levels=st.sampled_from([2, 5, 10**6]))
def test_average_precision_is_scikit_learns_with_ties_too(seed: int, levels: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    g = np.random.default_rng(seed)
    scores = g.integers(0, levels, 60) / levels
    positives = g.random(60) < 0.2
    positives[:2] = True, False
    expected = metrics.average_precision_score(positives, scores)
    assert average_precision(scores, positives) == pytest.approx(expected, rel=1e-12)


def by_thresholds(scores: list[float], positives: list[bool]) -> float:
    """Average precision by its definition."""
    total, recalled = 0.0, 0
    for threshold in sorted(set(scores), reverse=True):
        chosen = [hit for score, hit in zip(scores, positives, strict=True) if score >= threshold]
        total += (sum(chosen) - recalled) * sum(chosen) / len(chosen)
        recalled = sum(chosen)
    return total / recalled


@settings(max_examples=50)
@given(
    pairs=st.lists(
        st.tuples(st.sampled_from([-np.inf, -1.5, 0, 7, 200, np.inf]), st.booleans()), min_size=1
    )
)
def test_average_precision_is_its_definition_in_any_order_infinities_too(
    pairs: list[tuple[float, bool]],
) -> None:
    scores, positives = zip(*[*pairs, (0, True), (1, False)], strict=True)
    expected = pytest.approx(by_thresholds(list(scores), list(positives)))
    assert average_precision(scores, positives) == expected
    assert average_precision(scores[::-1], positives[::-1]) == expected


@pytest.mark.parametrize(
    "kind",
    [np.uint8, np.int64, np.float16, list, torch.tensor, torch.bfloat16, torch.float64],
    ids=[
        "uint8",
        "int64",
        "float16",
        "list",
        "tensor",
        "bfloat16 with gradient",
        "float64 with gradient",
    ],
)
def test_scores_of_any_type_give_the_same_metrics(kind: Any) -> None:
    scores, positives = [200, 0, 5, 100, 30], [1, 0, 0, 1, 0]
    if isinstance(kind, torch.dtype):
        given: Any = torch.tensor(scores, dtype=kind, requires_grad=True)
        labels: Any = torch.tensor(positives)
    else:
        given = np.array(scores, kind) if isinstance(kind, type) and kind is not list else kind(scores)
        labels = np.array(positives, np.uint8) if kind is np.uint8 else kind(positives)
    assert average_precision(given, labels) == 1
    assert top_k_precision(given, labels) == 1
    shares = given > 50 if not isinstance(given, list) else [score > 50 for score in scores]
    assert calibration(shares, labels).error == 0


def test_a_random_ranking_scores_the_share_of_positives() -> None:
    g = np.random.default_rng(0)
    positives = g.random(200_000) < 0.01
    assert average_precision(g.random(200_000), positives) == pytest.approx(0.01, rel=0.1)
    assert average_precision(np.zeros(200_000), positives) == positives.mean()
    assert top_k_precision(np.zeros(200_000), positives) == pytest.approx(positives.mean())


def test_top_k_takes_as_many_as_there_are() -> None:
    scores = np.array([9, 8, 7, 7, 7, 1.0])
    assert top_k_precision(scores, np.array([1, 0, 1, 0, 0, 0], bool)) == 0.5
    # k = 3: 9, 8 and a third of the three 7s, one of which is right
    assert top_k_precision(scores, np.array([1, 0, 1, 0, 0, 1], bool)) == pytest.approx(4 / 9)


def test_calibrated_probabilities_have_no_error_and_scaled_ones_have_theirs() -> None:
    g = np.random.default_rng(0)
    p = g.beta(0.05, 5, 400_000)
    positives = g.random(400_000) < p
    right = calibration(p, positives)
    assert right.ratio == pytest.approx(1, rel=0.05)
    assert right.error < 5e-4
    assert right.counts.sum() == 400_000
    assert bool((np.diff(right.predicted) > 0).all())
    wrong = calibration(p / 2, positives)
    assert wrong.ratio == pytest.approx(0.5, rel=0.05)
    assert wrong.error == pytest.approx(p.mean() / 2, rel=0.1)


@pytest.mark.parametrize("num_predictions", range(2, 12))
@pytest.mark.parametrize("num_bins", [2, 3, 20, 51])
def test_fewer_predictions_than_bins_are_all_counted(num_predictions: int, num_bins: int) -> None:
    probabilities = np.linspace(0.1, 0.9, num_predictions)
    positives = np.arange(num_predictions) == num_predictions - 1
    found = calibration(probabilities, positives, num_bins)
    assert (found.counts.sum(), found.counts.min() > 0) == (num_predictions, True)
    assert len(found.counts) <= min(num_bins, num_predictions)
    assert found.counts @ found.observed == pytest.approx(1)
    assert found.ratio == pytest.approx(probabilities.sum())


def test_the_bins_are_finest_where_the_positives_are() -> None:
    g = np.random.default_rng(0)
    p = g.beta(0.02, 5, 100_000)
    positives = g.random(100_000) < p
    bins = calibration(p, positives, num_bins=20)
    held = bins.counts * bins.observed
    assert held[-8:].min() > 10
    assert held.sum() == pytest.approx(positives.sum())


YES, NO = np.array([True, False]), np.array([False, False])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: average_precision(np.zeros(2), NO), "0 positives among 2"),
        (lambda: average_precision(np.zeros(2), ~NO), "2 positives among 2"),
        (lambda: top_k_precision(np.array([np.nan, 0.0]), YES), "1 scores that are nan"),
        (lambda: average_precision(np.zeros(3), YES), r"scores \[3\] and positives \[2\]"),
        (lambda: average_precision(np.zeros(3), np.array([0, 1, 2])), r"values \[0 1 2\]"),
        (lambda: average_precision(np.array(["a", "b"]), YES), "scores of type ndarray that are no"),
        (lambda: calibration(np.zeros(2), cast(Any, [[1], [0, 1]])), "positives of type list that are"),
        (lambda: calibration(np.array([0.0, 1.5]), YES), r"values 0 to 1\.5"),
        (lambda: calibration(np.array([0.0, 1.0]), YES, num_bins=1), "1 bins"),
    ],
)
def test_what_has_no_metric_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        call()
