"""The check says nothing of an exact loss, and names what breaks another one."""

from collections import UserDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from rightbatch.core.errors import InvalidTaskError
from rightbatch.core.finding import Finding
from rightbatch.core.plan import Plan
from rightbatch.tasks.task import Loss, Task
from rightbatch.train.accumulate import accumulate
from rightbatch.train.exact import check_accumulation, measure_drifts, split_sizes


def causes(task: Task, plan: Plan | None = None) -> dict[str, float]:
    finding = check_accumulation(task, plan)
    return {} if finding is None else {drift.cause: drift.value for drift in finding.drifts}


def test_a_summed_loss_on_a_plain_model_is_exact() -> None:
    assert check_accumulation(tiny.task()) is None
    assert all(drift.value < 1e-14 for drift in measure_drifts(tiny.task(), (4, 2, 2)))


def positive_mean(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A mean over the positive targets only, whose number differs from piece to piece."""
    x, y = batch
    kept = (y > 0).to(x)
    return (kept * (model(x) - y).square()).sum() / kept.sum().clamp(min=1)


def contrastive(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Every example against every other of its batch."""
    z = model(batch[0])
    return F.cross_entropy(z @ z.T, torch.arange(len(z)))


@pytest.mark.parametrize("loss", [positive_mean, contrastive])
def test_a_mean_over_part_of_a_batch_and_a_coupled_loss_are_found(loss: Any) -> None:
    found = causes(tiny.task(loss=loss))
    assert set(found) == {"loss"}
    assert found["loss"] > 0.01


def test_a_small_drift_is_not_printed_as_none() -> None:
    def coupled(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
        loss = tiny.squared_error(model, batch)
        return Loss(loss.total * (1 + 1e-8 * len(batch[1])), loss.count)

    finding = check_accumulation(tiny.task(loss=coupled))
    assert finding is not None
    value = finding.drifts[0].value
    assert 1e-9 < value < 1e-7
    assert f"{100 * value:.3g}% by the loss" in finding.found


def test_batch_norm_is_named_with_its_drift() -> None:
    found = causes(tiny.task(model=tiny.batch_norm))
    assert set(found) == {"batch-norm"}
    assert 0.01 < found["batch-norm"] < 2


def test_frozen_batch_norm_is_exact() -> None:
    assert check_accumulation(tiny.task(model=tiny.FrozenNorm)) is None


def dropped() -> nn.Module:
    return nn.Sequential(nn.Linear(tiny.NUM_FEATURES, 8), nn.Dropout(0.5), nn.Linear(8, 1))


def test_dropout_is_told_from_bias_by_two_passes_of_the_one_batch() -> None:
    finding = check_accumulation(tiny.task(model=dropped))
    assert finding is not None
    (drift,) = finding.drifts
    assert (drift.cause, drift.chance > 0.01) == ("dropout", True)
    assert "two passes of the one batch differ by" in finding.found
    assert "it averages out over updates" in finding.hint


class Centred(nn.Module):
    """Subtracts the batch's mean, but only while training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(tiny.NUM_FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(dim=0) if self.training else x)


def test_a_model_that_couples_examples_while_training_is_found() -> None:
    assert set(causes(tiny.task(model=Centred))) == {"model"}


def test_causes_are_told_apart_where_there_are_several() -> None:
    def build() -> nn.Module:
        return nn.Sequential(tiny.batch_norm(), nn.Dropout(0.2))

    assert set(causes(tiny.task(model=build))) == {"batch-norm", "dropout"}


def test_a_plan_gives_the_split_that_is_checked() -> None:
    recipe = tiny.task().recipe
    plan = Plan.from_recipe(recipe, global_batch_size=12, micro_batch_size=4, accumulation_steps=3)
    assert split_sizes(tiny.task(), plan) == (4, 4, 4)
    assert split_sizes(tiny.task(), Plan.from_recipe(recipe)) == (4, 2, 2)
    small = causes(tiny.task(model=tiny.batch_norm), plan)["batch-norm"]
    halves = Plan.from_recipe(recipe, global_batch_size=12, micro_batch_size=6, accumulation_steps=2)
    assert small > causes(tiny.task(model=tiny.batch_norm), halves)["batch-norm"] > 0


def single(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) @ torch.ones(1, 1)).mean()


def test_a_loss_that_is_written_for_single_precision_is_refused() -> None:
    with pytest.raises(InvalidTaskError, match=r"in float64 it raised RuntimeError: .*need a model"):
        check_accumulation(tiny.task(loss=single))


def test_a_finding_is_a_record() -> None:
    finding = check_accumulation(tiny.task(model=tiny.batch_norm))
    assert finding is not None
    assert Finding.model_validate_json(finding.model_dump_json()) == finding
    assert str(finding).startswith("8 examples in micro-batches of 4, 2, 2 have another gradient")


@dataclass(frozen=True)
class Rows:
    """A batch with names before its tensors."""

    names: list[str]
    x: Tensor
    y: Tensor


class Encoding(UserDict[str, Any]):
    """A mapping whose entries are attributes too, as tokenizers give it."""

    x = property(lambda self: self["x"])
    y = property(lambda self: self["y"])

    def to(self, device: str) -> "Encoding":
        return self


@pytest.mark.parametrize("kind", [Rows, Encoding, tuple])
def test_batches_of_any_kind_are_checked(kind: Any) -> None:
    def collate(examples: list[Any]) -> Any:
        x, y = (torch.stack(column) for column in zip(*examples, strict=True))
        names = [f"id{i}" for i in range(len(x))]
        return (names, torch.tensor(2.0), x, y) if kind is tuple else kind(names=names, x=x, y=y)

    def loss(model: nn.Module, batch: Any) -> Any:
        x, y = batch[2:] if kind is tuple else (batch.x, batch.y)
        return tiny.squared_error(model, (x, y))

    task = tiny.task(collate=collate, loss=loss)
    assert check_accumulation(task) is None
    batches = [collate([task.train_data[i] for i in piece]) for piece in (range(3), range(3, 8))]
    assert accumulate(tiny.linear(), loss, batches).count == 8
