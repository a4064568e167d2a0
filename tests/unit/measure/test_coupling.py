"""Which tasks leave an example no gradient of its own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from rightbatch.core.samples import Coupling
from rightbatch.measure import noise
from rightbatch.measure.budget import Budget
from rightbatch.measure.coupling import find_coupling
from rightbatch.measure.noise import NoiseSamples, measure_noise, measure_noise_updates
from rightbatch.tasks.task import Loss


def ranked(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Every example against every other of its batch."""
    x, y = batch
    scores, order = model(x), (y > y.T).float()
    return (F.softplus(scores.T - scores) * order).mean()


def of_varying_counts(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A plain mean over the targets above zero, of which batches hold different numbers."""
    x, y = batch
    return F.mse_loss(model(x)[y > 0], y[y > 0])


def counted(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
    """The same as a sum with its count."""
    x, y = batch
    return Loss(F.mse_loss(model(x)[y > 0], y[y > 0], reduction="sum"), int((y > 0).sum()))


def plain(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def with_noise(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.mse_loss(model(x + torch.randn_like(x)), y)


def dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))


@pytest.mark.parametrize(
    ("model", "loss", "expected"),
    [
        (tiny.linear, tiny.squared_error, None),
        (tiny.linear, plain, None),
        (tiny.linear, counted, None),
        (dropout, plain, None),
        (tiny.linear, with_noise, None),
        (tiny.batch_norm, plain, "batch-norm"),
        (tiny.FrozenNorm, plain, None),
        (tiny.linear, ranked, "loss"),
        (tiny.batch_norm, ranked, "loss"),
        (tiny.linear, of_varying_counts, "loss"),
    ],
)
def test_coupling_is_found_where_it_is(model: Any, loss: Any, expected: Coupling | None) -> None:
    task = tiny.task(model=model, loss=loss, target=None, evaluate=None)
    torch.manual_seed(0)
    assert find_coupling(task, model(), range(12), "cpu") == expected


def test_looking_leaves_model_gradients_and_random_numbers_alone() -> None:
    task = tiny.task(model=tiny.batch_norm)
    model = tiny.batch_norm()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    find_coupling(task, model, range(8), "cpu")
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("model", "loss", "groups", "small"),
    [
        (tiny.linear, plain, 8, 4),
        (tiny.batch_norm, plain, 4, 8),  # statistics of 8 examples, not of 4
        (tiny.linear, ranked, 2, 16),  # as much of the batch as two halves leave
    ],
)
def test_coupled_examples_are_measured_in_larger_groups(
    monkeypatch: pytest.MonkeyPatch, model: Any, loss: Any, groups: int, small: float
) -> None:
    taken: list[Any] = []
    real = noise.estimate_noise_scale

    def seen(samples: Any, **options: Any) -> Any:
        taken.extend(samples)
        return real(samples, **options)

    monkeypatch.setattr(noise, "estimate_noise_scale", seen)
    task = tiny.task(model=model, loss=loss, target=None, evaluate=None)
    scale = measure_noise_updates(task, updates=3, batch_size=32)
    assert {(s.num_small_batches, s.small_batch_size) for s in taken} == {(groups, small)}
    assert ("coupled by" in scale.source) == (loss is ranked or model is tiny.batch_norm)


def test_a_coupled_loss_is_seen_in_whole_batches_of_today() -> None:
    recipe = tiny.task().recipe.replace(batch_size=96, epochs=20)
    task = tiny.task(loss=ranked, target=None, evaluate=None, recipe=recipe, train_data=tiny.data(192))
    samples = NoiseSamples()
    list(measure_noise(task, samples, device="cpu", budget=Budget(seconds=0.0)))
    assert {(s.coupling, s.small_batch_size) for s in samples.gradients} == {("loss", 96.0)}
