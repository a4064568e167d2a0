"""Losses for rare targets against float64 brute force, whole and split."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rightbatch.core.errors import InvalidInputError
from rightbatch.sparse.losses import (
    IGNORE_INDEX,
    Normaliser,
    cross_entropy,
    focal_gradient_factor,
    focal_loss,
    logit_adjusted_loss,
)
from rightbatch.tasks.task import Loss
from rightbatch.train.accumulate import accumulate

WEIGHTS = (0.4, 3.0, 7.0)
PRIOR = (0.9, 0.07, 0.03)
NORMALISERS: tuple[Normaliser, ...] = ("targets", "positives", "examples")


def batch(form: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and targets with every class and some ignored, float64."""
    g = torch.Generator().manual_seed(seed)
    shape = (5, 2, 7) if form == "multi-label" else (5, 7)
    num_classes = 3 if form == "classes" else 2
    targets = torch.randint(num_classes, shape, generator=g)
    targets[torch.rand(shape, generator=g) < 0.2] = IGNORE_INDEX
    logits_shape = (5, 3, 7) if form == "classes" else shape
    return 3 * torch.randn(logits_shape, generator=g, dtype=torch.float64), targets


def positions(form: str, logits: Tensor, targets: Tensor) -> list[tuple[list[float], int]]:
    """Probabilities of every class and the target, one counted position after another."""
    found: list[tuple[list[float], int]] = []
    for index in torch.cartesian_prod(*(torch.arange(n) for n in targets.shape)).tolist():
        label = int(targets[tuple(index)])
        if label == IGNORE_INDEX:
            continue
        if form == "classes":
            b, i = index
            powers = [math.exp(float(z)) for z in logits[b, :, i]]
            found.append(([power / sum(powers) for power in powers], label))
        else:
            p = 1 / (1 + math.exp(-float(logits[tuple(index)])))
            found.append(([1 - p, p], label))
    return found


@pytest.mark.parametrize("form", ["classes", "binary", "multi-label"])
def test_every_loss_equals_the_sum_over_positions(form: str) -> None:
    logits, targets = batch(form)
    classes = 3 if form == "classes" else 2
    weights, prior = WEIGHTS[:classes], PRIOR if classes == 3 else (0.9, 0.1)

    def adjusted(p: list[float], y: int) -> float:
        shifted = [q * pi**0.7 for q, pi in zip(p, prior, strict=True)]
        return -math.log(shifted[y] / sum(shifted))

    cases: list[tuple[Callable[..., Loss], Callable[[list[float], int], float]]] = [
        (cross_entropy, lambda p, y: -math.log(p[y])),
        (partial(cross_entropy, weights=weights), lambda p, y: -weights[y] * math.log(p[y])),
        (
            partial(focal_loss, gamma=2.5, alpha=weights),
            lambda p, y: -weights[y] * (1 - p[y]) ** 2.5 * math.log(p[y]),
        ),
        (partial(logit_adjusted_loss, prior=prior if classes == 3 else 0.1, tau=0.7), adjusted),
    ]
    seen = positions(form, logits, targets)
    for loss, one in cases:
        found = loss(logits, targets)
        assert float(found.total) == pytest.approx(math.fsum(one(p, y) for p, y in seen), rel=1e-12)
        assert int(found.count) == len(seen)
        part = loss(logits, targets, part="positives")
        expected = [one(p, y) for p, y in seen if y > 0]
        assert float(part.total) == pytest.approx(math.fsum(expected), rel=1e-12)
        assert int(part.count) == len(expected)


def test_each_normaliser_counts_what_it_says() -> None:
    logits, targets = batch("classes")
    counts = {n: int(focal_loss(logits, targets, normaliser=n).count) for n in NORMALISERS}
    expected = {"targets": (targets >= 0).sum(), "positives": (targets > 0).sum(), "examples": 5}
    assert counts == {name: int(value) for name, value in expected.items()}


class PerPosition(nn.Module):
    """Three logits for each position of [B, L]."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv1d(1, 3, 3, padding=1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.unsqueeze(1))


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor], **options: Any) -> Loss:
    return focal_loss(model(batch[0]), batch[1], gamma=1.5, alpha=WEIGHTS, **options)


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    normaliser=st.sampled_from(NORMALISERS),
    seed=st.integers(0, 99),
)
def test_any_split_gives_the_gradient_of_the_whole_batch(
    sizes: list[int], normaliser: Normaliser, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(sizes), 6, generator=g, dtype=torch.float64)
    y = torch.zeros(sum(sizes), 6, dtype=torch.int64)
    y[-1, :2] = torch.tensor([1, 2])  # every positive lies in the last micro-batch
    y[0, 4] = IGNORE_INDEX
    torch.manual_seed(0)
    model = PerPosition()
    loss = partial(loss_of, normaliser=normaliser)
    whole = loss(model, (x, y))
    expected = torch.autograd.grad(whole.total / whole.count, list(model.parameters()))
    accumulate(model, loss, zip(x.split(sizes), y.split(sizes), strict=True))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("normaliser", NORMALISERS)
def test_two_ranks_that_add_sums_and_counts_give_the_gradient_of_the_whole(
    normaliser: Normaliser,
) -> None:
    torch.manual_seed(0)
    model, x = PerPosition(), torch.randn(4, 6, dtype=torch.float64)
    y = torch.zeros(4, 6, dtype=torch.int64)
    y[3, 0] = 2  # the first rank sees no positive
    whole = loss_of(model, (x, y), normaliser=normaliser)
    expected = torch.autograd.grad(whole.total / whole.count, list(model.parameters()))
    ranks = [
        loss_of(model, (a, b), normaliser=normaliser)
        for a, b in zip(x.split(2), y.split(2), strict=True)
    ]
    count = sum(int(rank.count) for rank in ranks)
    parts = [torch.autograd.grad(rank.total, list(model.parameters())) for rank in ranks]
    for a, b, gradient in zip(*parts, expected, strict=True):
        torch.testing.assert_close((a + b) / count, gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("p", [1e-6, 0.3, 0.99, 1 - 1e-9])
def test_the_focal_gradient_is_the_closed_form_times_that_of_cross_entropy(
    p: float, gamma: float
) -> None:
    odds = math.log(p) - math.log1p(-p)
    factor = focal_gradient_factor(p, gamma)
    binary = torch.tensor([odds], dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([[0.0, odds, -math.inf]], dtype=torch.float64, requires_grad=True)
    for logits, one in ((binary, torch.tensor([1])), (classes, torch.tensor([1]))):
        gradients = [
            torch.autograd.grad(loss(logits, one).total, logits)[0].reshape(-1)
            for loss in (partial(focal_loss, gamma=gamma), cross_entropy)
        ]
        where = slice(1, 2) if logits.dim() > 1 else slice(None)
        # p itself is known to 1e-16 / (1 - p) from its log-odds
        torch.testing.assert_close(
            gradients[0][where], factor * gradients[1][where], rtol=1e-7 if p > 0.999 else 1e-12, atol=0
        )


@pytest.mark.parametrize("form", ["classes", "binary"])
def test_a_target_that_is_certain_leaves_a_finite_gradient_at_any_gamma(form: str) -> None:
    logits = torch.tensor([[[0.0], [200.0]]]) if form == "classes" else torch.tensor([[200.0]])
    logits.requires_grad_()
    loss = focal_loss(logits, torch.tensor([[1]]), gamma=0.5)
    loss.total.backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert float(loss.total.detach()) == 0


def test_low_precision_logits_are_summed_in_single_precision() -> None:
    logits = torch.zeros(1, 20_000, dtype=torch.bfloat16)
    assert float(cross_entropy(logits, torch.zeros(1, 20_000)).total) == pytest.approx(
        13862.94, rel=1e-4
    )


def test_a_wrong_label_that_cannot_be_looked_at_makes_the_loss_nan() -> None:
    logits, targets = batch("classes")
    targets[0, 0] = 3
    mapped = torch.vmap(lambda z, y: cross_entropy(z[None], y[None]).total)(logits, targets)
    assert mapped.isnan().tolist() == [True, False, False, False, False]


def test_traced_tensors_pass_through() -> None:
    with FakeTensorMode():
        logits = torch.randn(2, 3, 7, requires_grad=True)
        loss = focal_loss(logits, torch.randint(3, (2, 7)), alpha=WEIGHTS)
        loss.total.backward()
        assert logits.grad is not None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z, y: focal_loss(z, y, gamma=-1.0), r"gamma = -1\.0; need 0 or more"),
        (lambda z, y: focal_loss(z, y, gamma=math.nan), r"gamma = nan; need 0 or more"),
        (lambda z, y: focal_loss(z, y, alpha=0.25), r"alpha = 0\.25 with 3 classes"),
        (
            lambda z, y: cross_entropy(z, y, weights=(1.0, 2.0)),
            r"weights = \[1\.0, 2\.0\] for 3 classes",
        ),
        (lambda z, y: cross_entropy(z, y, weights=(1.0, -1.0, 1.0)), r"weights = .*at least 0"),
        (lambda z, y: cross_entropy(z, y[:, 1:]), r"logits \[5, 3, 7\] and targets \[5, 6\]"),
        (lambda z, y: cross_entropy(z[:, :1], y), r"logits \[5, 1, 7\]; need 2 or more classes"),
        (lambda z, y: cross_entropy(z, y + 5), r"target .*among 3 classes; need 0 to 2"),
        (lambda z, y: cross_entropy(z, y.double() + 0.5), r"target .*0\.5.* among 3 classes"),
        (lambda z, _: cross_entropy(z, z * math.nan), r"target nan among 2 classes"),
        (lambda z, y: cross_entropy(z, y, normaliser="mean"), r"normaliser 'mean'"),  # type: ignore[arg-type]
        (lambda z, y: logit_adjusted_loss(z, y, prior=(0.5, 0.5, 0.0)), r"prior 0\.5, 0\.5, 0; need 3"),
        (lambda z, y: logit_adjusted_loss(z, y, prior=(0.5, 0.3, 0.3)), r"which add to 1"),
        (
            lambda z, y: logit_adjusted_loss(z, y, prior=(0.5, 0.3, 0.2), tau=math.nan),
            r"tau = nan; need a finite number",
        ),
    ],
)
def test_bad_input_says_what_was_found(call: Callable[[Tensor, Tensor], Loss], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        call(*batch("classes"))


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_gradient_factor_needs_a_probability_between_0_and_1(p: float) -> None:
    with pytest.raises(InvalidInputError, match="a probability above 0 and below 1"):
        focal_gradient_factor(p, 2)
