"""The pilot trains as today's recipe says, and can stand still."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tiny
from rightbatch.core.errors import MeasurementError
from rightbatch.core.plan import Plan
from rightbatch.measure.pilot import Pilot
from rightbatch.tasks.task import Loss, Task
from rightbatch.train.sampler import Windows, train_loader


def pilot(task: Task | None = None, total: int = 192) -> Pilot:
    return Pilot(task or tiny.task(), "cpu", 0, total)


def double_count(model: nn.Module, batch: Any) -> Loss:
    """The same mean, over twice as many targets."""
    x, y = batch
    return Loss(2 * F.mse_loss(model(x), y, reduction="sum"), 2 * len(y))


def mean(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def test_an_update_is_the_optimizers_own_step_on_the_mean_loss() -> None:
    task = tiny.task(recipe=tiny.task().recipe.replace(momentum=0.9))
    mine = pilot(task)
    model = tiny.linear()
    model.load_state_dict(mine.model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batches = iter(pilot(task)._batches)  # pyright: ignore[reportPrivateUsage]
    for _ in range(5):
        mine.update()
        optimizer.zero_grad()
        mean(model, next(batches)).backward()
        optimizer.step()
    for ours, theirs in zip(mine.model.parameters(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert mine.examples_seen == 40


@pytest.mark.parametrize("loss", [double_count, mean])
def test_counting_other_targets_makes_the_same_update(loss: Any) -> None:
    ours, theirs = pilot(), pilot(tiny.task(loss=loss))
    for _ in range(3):
        ours.update()
        theirs.update()
    for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    assert ours.mean_loss() == pytest.approx(theirs.mean_loss(), rel=1e-5)


def test_the_rate_follows_the_schedule() -> None:
    recipe = tiny.task().recipe.replace(warmup_examples=16, schedule="linear")
    subject = pilot(tiny.task(recipe=recipe), total=32)
    rates = []
    for _ in range(4):
        subject.update()
        rates.append(subject.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0025, 0.0075, 0.0075, 0.0025])  # in the middle of each update


def test_gradients_are_clipped_as_the_recipe_says() -> None:
    task = tiny.task(recipe=tiny.task().recipe.replace(clip_norm=1e-3, lr=1.0))
    subject = pilot(task)
    before = [p.detach().clone() for p in subject.model.parameters()]
    subject.update()
    moved = [(p.detach() - q).norm() for p, q in zip(subject.model.parameters(), before, strict=True)]
    assert float(torch.stack(moved).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_epochs_are_reshuffled_and_a_partial_batch_is_left_out() -> None:
    subject = pilot(tiny.task(train_data=tiny.data(20)))
    batches = [next(subject._batches)[0] for _ in range(4)]  # pyright: ignore[reportPrivateUsage]
    assert [len(batch) for batch in batches] == [8, 8, 8, 8]
    assert not torch.equal(batches[0], batches[2])


@pytest.mark.parametrize("sampler", ["shuffle", "sequential", "replacement"])
def test_batches_follow_the_recipes_sampler_as_training_does(sampler: str) -> None:
    task = tiny.task(recipe=tiny.task().recipe.replace(sampler=sampler), train_data=tiny.data(24))
    subject = pilot(task)
    found = [next(subject._batches)[0] for _ in range(6)]  # pyright: ignore[reportPrivateUsage]
    plan = Plan.from_recipe(task.recipe, global_batch_size=8, micro_batch_size=8)
    loader = train_loader(task, Windows.of(plan, 24, seed=0), "cpu")
    expected = [batch[0] for batch, _ in zip(loader, range(6), strict=False)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    once = {tuple(row.tolist()) for batch in found[:3] for row in batch}
    assert (len(once) == 24) == (sampler != "replacement")


def test_the_mean_loss_starts_again_at_every_call() -> None:
    subject = pilot()
    assert math.isnan(subject.mean_loss())
    subject.update()
    assert subject.mean_loss() > 0
    assert math.isnan(subject.mean_loss())


def test_a_recipe_that_diverges_is_named_as_such() -> None:
    subject = pilot(tiny.task(recipe=tiny.task().recipe.replace(lr=1e30)))
    with pytest.raises(MeasurementError, match=r"the loss is (nan|inf) after \d+ examples of today's"):
        list(iter(subject.update, "never"))


def test_an_update_without_targets_is_refused() -> None:
    def nothing(model: nn.Module, batch: Any) -> Loss:
        return Loss(model(batch[0]).sum() * 0, 0)

    with pytest.raises(MeasurementError, match="0 counted targets in an update of 8 examples"):
        pilot(tiny.task(loss=nothing)).update()
