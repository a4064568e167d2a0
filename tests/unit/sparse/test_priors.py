"""Class frequencies, the weights made of them, and heads that start at the prior."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.progress import Progress
from rightbatch.sparse.losses import cross_entropy
from rightbatch.sparse.priors import ClassCounts, check_prior, count_classes, prior_bias_

COUNTS = ClassCounts(counts=(9900, 80, 20), num_ignored=0, num_items=1, num_items_with_positives=1)


def test_counting_skips_what_is_ignored_and_sees_every_item() -> None:
    labels = [np.array([0, 0, 2, -100]), np.array([[0, 1], [0, 0]]), np.zeros(3)]
    counts = count_classes(labels, 3)
    assert counts.counts == (8, 1, 1)
    assert (counts.num_ignored, counts.num_items, counts.num_items_with_positives) == (1, 3, 2)
    assert counts.prior == (0.8, 0.1, 0.1)
    assert counts.positive_fraction == pytest.approx(0.2)


def test_counting_reports_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(np.arange(0, 100, 0.06))
    monkeypatch.setattr("time.monotonic", lambda: float(next(times)))
    seen: list[Progress] = []
    count_classes([np.array([0, 1])] * 8, 2, on_progress=seen.append)
    assert [progress.message for progress in seen][:2] == [
        "counting labels, 2 of 8",
        "counting labels, 4 of 8",
    ]
    assert seen[0].fraction == 0.25
    assert seen[0].seconds_left == pytest.approx(0.36)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([np.array([0, 1]), np.array([0, 3])], r"label 3 in item 1; need 0 to 1"),
        ([np.array([0, np.nan, 1])], r"label nan in item 0"),
        ([np.zeros(5)], r"0 targets of class 1 among 5 in 1 items"),
        ([np.ones(5)], r"0 targets of class 0 among 5"),
        ([np.full(5, -100)], r"0 targets of class 0, 1 among 0"),
        ([], r"0 targets of class 0, 1 among 0 in 0 items"),
    ],
)
def test_labels_that_cannot_be_learned_from_are_refused(labels: list[np.ndarray], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        count_classes(labels, 2)


def test_inverse_frequency_gives_every_class_the_same_total() -> None:
    weights = COUNTS.inverse_frequency_weights()
    totals = [n * w for n, w in zip(COUNTS.counts, weights, strict=True)]
    assert totals == pytest.approx([10_000 / 3] * 3)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 1 - 1e-12])
def test_effective_number_weights_follow_their_formula_at_a_mean_of_1(beta: float) -> None:
    weights = COUNTS.effective_number_weights(beta)
    mean = sum(n * w for n, w in zip(COUNTS.counts, weights, strict=True)) / COUNTS.num_targets
    assert mean == pytest.approx(1, rel=1e-12)
    if beta < 0.9999:
        raw = [(1 - beta) / (1 - beta**n) for n in COUNTS.counts]
        assert [w / weights[0] for w in weights] == pytest.approx([r / raw[0] for r in raw], rel=1e-9)
    else:  # the limit
        assert weights == pytest.approx(COUNTS.inverse_frequency_weights(), rel=1e-6)


@pytest.mark.parametrize("beta", [-0.1, 1.0])
def test_beta_lies_between_0_and_1(beta: float) -> None:
    with pytest.raises(InvalidInputError, match="at least 0 and below 1"):
        COUNTS.effective_number_weights(beta)


def test_a_head_starts_at_the_prior_and_at_its_entropy() -> None:
    prior, head = (0.97, 0.02, 0.01), nn.Conv1d(4, 3, 1)
    prior_bias_(head, prior)
    logits = head(torch.zeros(2, 4, 5))
    torch.testing.assert_close(logits.softmax(1)[0, :, 0], torch.tensor(prior))
    binary = nn.Linear(4, 1)
    prior_bias_(binary, 0.01)
    y = torch.zeros(100)
    y[0] = 1
    loss = cross_entropy(binary(torch.zeros(100, 4)).squeeze(1), y)
    entropy = -0.01 * math.log(0.01) - 0.99 * math.log(0.99)
    assert float(loss.total.detach()) / 100 == pytest.approx(entropy, rel=1e-5)  # 0.056, not 0.693


@pytest.mark.parametrize(
    ("head", "prior", "message"),
    [
        (nn.Linear(2, 1, bias=False), 0.1, r"Linear without a bias"),
        (nn.Linear(2, 1), 0.0, r"prior 0; need a number above 0 and below 1"),
        (nn.Linear(2, 1), 1.0, r"prior 1; need a number above 0 and below 1"),
        (nn.Linear(2, 3), 0.1, r"prior 0\.1; need 3 of them"),
        (nn.Linear(2, 2), (0.9, 0.2), r"which add to 1"),
    ],
)
def test_a_prior_that_no_head_can_start_at_is_refused(
    head: nn.Module, prior: float | tuple[float, ...], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        prior_bias_(head, prior)


def test_log_odds_are_what_a_logit_is_at_the_prior() -> None:
    assert check_prior(0.25, 1).log_odds == pytest.approx((math.log(1 / 3),))
    assert check_prior((0.25, 0.75), 2).log_odds == pytest.approx((math.log(0.25), math.log(0.75)))
