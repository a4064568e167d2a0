"""Any split of a batch gives the gradient of the one big batch, in float64 to 1e-12."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from rightbatch.core.errors import InvalidInputError, InvalidTaskError
from rightbatch.tasks.task import Loss
from rightbatch.train.accumulate import accumulate

SEQUENCE, FEATURES, CLASSES, IGNORED = 4, 3, 5, -100
Batch = tuple[Tensor, Tensor]


def token_loss(model: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy over the tokens that are not masked."""
    x, y = batch
    total = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=IGNORED, reduction="sum")
    return Loss(total, (y != IGNORED).sum())


def mean_loss(model: nn.Module, batch: Batch) -> Tensor:
    """A plain mean over examples."""
    x, _ = batch
    return model(x).square().sum(dim=(1, 2)).mean()


def tanh_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad for p in model.parameters() if p.grad is not None]


@settings(deadline=None, max_examples=150)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    masked=st.lists(st.floats(0, 1), min_size=6, max_size=6),
    seed=st.integers(0, 10_000),
)
def test_any_split_with_any_mask_gives_the_full_batch_gradient(
    sizes: list[int], masked: list[float], seed: int
) -> None:
    torch.manual_seed(seed)
    num = sum(sizes)
    x = torch.randn(num, SEQUENCE, FEATURES, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (num, SEQUENCE))
    pieces = []
    for share, piece, labels in zip(masked, x.split(sizes), y.split(sizes), strict=False):
        hidden = torch.rand(labels.shape) < share  # a share of 1 masks the whole piece
        pieces.append((piece, labels.masked_fill(hidden, IGNORED)))
    pieces[0][1][0, 0] = 0  # at least one target in the whole
    model = tanh_net()
    big = (x, torch.cat([labels for _, labels in pieces]))
    loss = token_loss(model, big)
    expected = torch.autograd.grad(loss.total / loss.count, list(model.parameters()))

    accumulate(model, token_loss, pieces)

    for found, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 10_000))
def test_a_plain_mean_is_weighted_by_its_examples(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(sum(sizes), SEQUENCE, FEATURES, dtype=torch.float64)
    model = tanh_net()
    expected = torch.autograd.grad(mean_loss(model, (x, x)), list(model.parameters()))

    accumulate(model, mean_loss, [(piece, piece) for piece in x.split(sizes)])

    for found, wanted in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def labelled(num: int, label: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(num)
    x = torch.randn(num, SEQUENCE, FEATURES, dtype=torch.float64, generator=generator)
    return x, torch.full((num, SEQUENCE), label)


def test_an_earlier_gradient_is_discarded() -> None:
    model = tanh_net()
    accumulate(model, token_loss, [labelled(5)])
    once = [g.clone() for g in gradients(model)]
    accumulate(model, token_loss, [labelled(5)])
    torch.testing.assert_close(gradients(model), once, rtol=0, atol=0)


def test_a_parameter_outside_the_loss_keeps_no_gradient() -> None:
    model = tanh_net()
    model.register_parameter("unused", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    half_masked = labelled(4)
    half_masked[1][:2] = IGNORED  # so that gradients are rescaled, which must not trip over None
    accumulate(model, token_loss, [half_masked])
    assert {name for name, p in model.named_parameters() if p.grad is None} == {"unused"}


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([labelled(3, IGNORED), labelled(2, IGNORED)], r"0 counted targets in an update of 5 examples"),
        ([], r"0 micro-batches; need at least 1\.\n  hint: pass the pieces"),
    ],
)
def test_an_update_without_any_target_is_refused(pieces: list[Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        accumulate(tanh_net(), token_loss, pieces)


def test_a_vector_loss_is_refused() -> None:
    with pytest.raises(InvalidTaskError, match=r"loss returned Tensor of shape \[3, 4, 5\]"):
        accumulate(tanh_net(), lambda model, batch: model(batch[0]), [labelled(3)])
