"""Labels are smoothed in training alone, in the one cross-entropy that the task's loss calls."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import tiny
from rightbatch.core.recipe import Recipe
from rightbatch.tasks.check import evaluate
from rightbatch.tasks.task import Loss, Task
from rightbatch.validate.smoothing import smoothed, why_not_smoothed

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.0, 3.0]])
BATCH = (LOGITS, torch.tensor([0, 1]))


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
    x, y = batch
    return Loss(F.cross_entropy(model(x), y, reduction="sum"), len(y))


def by_module(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.CrossEntropyLoss()(model(batch[0]), batch[1])


def task(**changes: Any) -> Task:
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(
        torch.randn(32, 3, generator=generator), torch.randint(0, 3, (32,), generator=generator)
    )
    values = {"model": lambda: nn.Linear(3, 3), "train_data": data, "valid_data": data, "loss": loss}
    values |= {"recipe": Recipe(optimizer="sgd", lr=0.1, batch_size=8, epochs=1)}
    return tiny.task(**(values | {"evaluate": None, "target": None} | changes))


@pytest.mark.parametrize("of", [loss, by_module])
def test_the_training_loss_is_that_of_labels_mixed_with_the_uniform_distribution(of: Any) -> None:
    total = of(nn.Identity(), BATCH)
    count = 1 if isinstance(total, Tensor) else total.count
    found = smoothed(task(loss=of), 0.1).loss(nn.Identity(), BATCH)
    found = found if isinstance(found, Tensor) else found.total / count
    logs = LOGITS.double().log_softmax(1)
    targets = 0.9 * F.one_hot(BATCH[1], 3) + 0.1 / 3
    torch.testing.assert_close(found.double(), -(targets * logs).sum(1).mean(), rtol=1e-6, atol=0)


def test_evaluation_is_that_of_the_plain_loss_and_an_amount_of_0_changes_nothing() -> None:
    plain, model = task(), nn.Linear(3, 3)
    assert evaluate(smoothed(plain, 0.1), model, [BATCH]) == evaluate(plain, model, [BATCH])
    assert smoothed(plain, 0.0) is plain


def test_a_smoothed_loss_travels_to_another_process() -> None:
    found = pickle.loads(pickle.dumps(smoothed(task(model=None), 0.1).loss))
    assert found(nn.Identity(), BATCH).total != loss(nn.Identity(), BATCH).total


def smoothed_already(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.05)


def of_probabilities(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), F.one_hot(batch[1], 3).float())


def of_two_heads(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1]) + F.cross_entropy(model(batch[0]), batch[1])


def by_hand(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.nll_loss(model(batch[0]).log_softmax(1), batch[1])


def beside_it(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    F.cross_entropy(model(batch[0]), batch[1])
    return by_hand(model, batch)


@pytest.mark.parametrize(
    ("of", "why"),
    [
        (smoothed_already, "label smoothing 0.05 already"),
        (of_probabilities, "probabilities already"),
        (of_two_heads, "own: 2 calls of torch's cross_entropy"),
        (by_hand, "own: 0 calls of torch's cross_entropy"),
        (beside_it, "does not reach it"),
    ],
)
def test_a_loss_that_cannot_be_smoothed_says_why(of: Any, why: str) -> None:
    assert why in str(why_not_smoothed(task(loss=of), 0.1, "cpu"))


def test_a_loss_with_dropout_is_told_from_one_that_does_not_change() -> None:
    model = lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 3))  # noqa: E731
    assert why_not_smoothed(task(model=model), 0.1, "cpu") is None
    assert "does not reach" in str(why_not_smoothed(task(model=model, loss=beside_it), 0.1, "cpu"))
