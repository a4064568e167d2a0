"""Models, optimizers, batches and losses from a task's factories."""

# pyright: reportUnknownLambdaType=false

from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import tiny
from rightbatch.core.errors import InvalidInputError, InvalidTaskError
from rightbatch.core.facts import OPTIMIZER_FAMILIES
from rightbatch.core.recipe import Recipe
from rightbatch.tasks.build import (
    batch_examples,
    batch_norm_layers,
    build_model,
    build_optimizer,
    collate,
    compute_loss,
    optimizer_classes,
    optimizer_family,
    smallest_micro_batch,
    to_device,
)
from rightbatch.tasks.step import forward_backward
from rightbatch.tasks.task import Loss


class Pair(NamedTuple):
    x: torch.Tensor
    note: int


@dataclass(frozen=True)
class Batch:
    names: list[str]
    x: torch.Tensor


def recipe(**changes: Any) -> Recipe:
    return tiny.task().recipe.replace(**changes)


def factory(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(parameters, lr=lr, alpha=0.5)


def broken_factory(parameters: Any, lr: float) -> torch.optim.Optimizer:
    raise OSError("no optimizer today")


def test_a_model_is_built_afresh_under_the_seed_and_in_train_mode() -> None:
    task = tiny.task(model=lambda: nn.Linear(3, 1).eval())
    first, again, other = build_model(task), build_model(task), build_model(task, seed=1)
    assert first is not again
    assert torch.equal(first.weight, again.weight)  # type: ignore[arg-type]
    assert not torch.equal(first.weight, other.weight)  # type: ignore[arg-type]
    assert first.training


def test_a_factory_that_gives_no_module_is_refused() -> None:
    with pytest.raises(InvalidTaskError, match=r"model\(\) returned NoneType; need a torch.nn.Module"):
        build_model(tiny.task(model=lambda: None))
    with pytest.raises(InvalidTaskError, match=r"model\(\) raised TypeError"):
        build_model(tiny.task(model=nn.Linear))


def test_layers_that_couple_examples_are_found_at_any_depth() -> None:
    assert len(batch_norm_layers(nn.Sequential(tiny.batch_norm(), nn.BatchNorm2d(2)))) == 2
    assert batch_norm_layers(nn.Sequential(nn.LayerNorm(2), nn.GroupNorm(1, 2))) == []
    assert (smallest_micro_batch(tiny.batch_norm()), smallest_micro_batch(tiny.linear())) == (2, 1)


def test_batch_norm_that_stays_in_evaluation_mode_couples_nothing() -> None:
    frozen = build_model(tiny.task(model=tiny.FrozenNorm))
    assert (batch_norm_layers(frozen), smallest_micro_batch(frozen)) == ([], 1)
    assert len(batch_norm_layers(tiny.batch_norm())) == 1
    assert batch_norm_layers(tiny.batch_norm().eval()) == []
    assert len(batch_norm_layers(nn.BatchNorm1d(2, track_running_stats=False).eval())) == 1


def test_every_optimizer_of_torch_has_a_family() -> None:
    names = {kind.__name__ for kind in optimizer_classes().values()}
    assert names <= set(OPTIMIZER_FAMILIES)


@pytest.mark.parametrize(("name", "kind"), [("SGD", "SGD"), ("adamw", "AdamW"), ("NAdam", "NAdam")])
def test_an_optimizer_is_found_by_name_in_any_case(name: str, kind: str) -> None:
    optimizer = build_optimizer(recipe(optimizer=name), tiny.linear(), 0.5)
    assert type(optimizer).__name__ == kind
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_constants_reach_the_optimizer_and_none_leaves_its_default() -> None:
    given = recipe(optimizer="adamw", betas=(0.5, 0.6), eps=1e-3, weight_decay=0.25)
    group = build_optimizer(given, tiny.linear(), 0.1).param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.5, 0.6), 1e-3, 0.25)
    group = build_optimizer(recipe(optimizer="adamw"), tiny.linear(), 0.1).param_groups[0]
    assert group["weight_decay"] == 0.01


def test_frozen_parameters_are_not_optimized() -> None:
    model = tiny.linear()
    model.bias.requires_grad_(False)  # type: ignore[union-attr]
    assert len(build_optimizer(recipe(), model, 0.1).param_groups[0]["params"]) == 1


def test_a_factory_is_called_with_parameters_and_rate() -> None:
    optimizer = build_optimizer(recipe(optimizer=factory), tiny.linear(), 0.5)
    assert optimizer.param_groups[0]["alpha"] == 0.5
    assert optimizer_family(optimizer) == "adam"


def test_an_unknown_optimizer_suggests_the_closest() -> None:
    with pytest.raises(InvalidInputError, match=r"optimizer 'adamv'.*\n.*did you mean `adam"):
        build_optimizer(recipe(optimizer="adamv"), tiny.linear(), 0.1)


@pytest.mark.parametrize(
    ("name", "constant"),
    [("adamw", {"momentum": 0.9}), ("sgd", {"betas": (0.9, 0.99)}), ("sgd", {"eps": 1e-8})],
)
def test_a_constant_that_the_optimizer_has_not_is_refused(name: str, constant: dict[str, Any]) -> None:
    given = recipe(optimizer=name, **constant)
    with pytest.raises(InvalidInputError, match=f"{next(iter(constant))} = .* for ") as caught:
        build_optimizer(given, tiny.linear(), 0.1)
    assert caught.value.hint == f"remove {next(iter(constant))}"


def test_constants_that_a_factory_would_not_see_are_refused() -> None:
    given = recipe(optimizer=factory, weight_decay=0.1, eps=1e-3)
    with pytest.raises(InvalidInputError, match=r"eps, weight_decay beside the factory .*:factory"):
        build_optimizer(given, tiny.linear(), 0.1)


def test_an_optimizer_that_cannot_be_built_says_why() -> None:
    frozen = tiny.linear().requires_grad_(False)
    with pytest.raises(InvalidTaskError, match="sgd raised ValueError: optimizer got an empty"):
        build_optimizer(recipe(), frozen, 0.1)
    with pytest.raises(InvalidTaskError, match="broken_factory raised OSError: no optimizer today"):
        build_optimizer(recipe(optimizer=broken_factory), tiny.linear(), 0.1)


@pytest.mark.parametrize(
    ("kind", "family"),
    [(torch.optim.SGD, "sgd"), (torch.optim.Adagrad, "adam"), (torch.optim.Rprop, "other")],
)
def test_the_family_is_that_of_the_class_or_its_nearest_known_base(
    kind: type[torch.optim.Optimizer], family: str
) -> None:
    class Derived(cast(Any, kind)):  # type: ignore[misc]
        pass

    class Unknown(torch.optim.Optimizer):
        def __init__(self, parameters: Any) -> None:
            super().__init__(parameters, {})

    assert optimizer_family(cast(Any, kind)(tiny.linear().parameters(), lr=0.1)) == family
    assert optimizer_family(cast(Any, Derived)(tiny.linear().parameters(), lr=0.1)) == family
    assert optimizer_family(Unknown(tiny.linear().parameters())) == "other"


def test_examples_are_joined_by_the_tasks_collate() -> None:
    x, y = collate(tiny.task(), [3, 1])
    assert torch.equal(x, tiny.data().tensors[0][[3, 1]])
    assert y.shape == (2, 1)
    assert collate(tiny.task(collate=len), range(5)) == 5


def test_every_tensor_of_a_batch_moves_and_its_shape_stays() -> None:
    batch = {"a": [torch.ones(1), "text"], "b": Pair(torch.ones(2), 3), "c": (torch.ones(3),)}
    moved = to_device(batch, "meta")
    assert moved["a"][0].device.type == "meta"
    assert moved["a"][1] == "text"
    assert type(moved["b"]) is Pair
    assert moved["b"].x.device.type == "meta"
    assert moved["c"][0].device.type == "meta"


def test_a_plain_mean_is_weighted_by_its_examples() -> None:
    loss = compute_loss(lambda *_: torch.tensor([2.5]), nn.Identity(), None, 4)
    assert (loss.total.shape, float(loss.total), loss.count) == (torch.Size([]), 10.0, 4)


def test_a_sum_of_shape_1_is_taken_as_the_number_that_it_is() -> None:
    loss = compute_loss(lambda *_: Loss(torch.tensor([2.5]), 2), nn.Identity(), None, 4)
    assert (loss.total.shape, float(loss.total), loss.count) == (torch.Size([]), 2.5, 2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3), r"loss returned Tensor of shape \[3\]"),
        (Loss(torch.ones(3), 3), r"loss returned Loss of shape \[3\]"),
        (Loss(1.0, 3), "loss returned Loss; need"),  # type: ignore[arg-type]
        (1.5, "loss returned float; need"),
        (None, "loss returned NoneType; need"),
    ],
)
def test_what_is_no_loss_is_refused(value: Any, message: str) -> None:
    with pytest.raises(InvalidTaskError, match=message):
        compute_loss(lambda *_: value, nn.Identity(), None, 3)


def test_gradients_add_up_and_the_returned_loss_is_detached() -> None:
    model, task = tiny.linear(), tiny.task()
    batch = collate(task, range(4))
    arguments: dict[str, Any] = {"num_examples": 4, "constants": task.recipe, "device": "cpu"}
    loss = forward_backward(task.loss, model, batch, divisor=2, **arguments)
    once = model.weight.grad.clone()  # type: ignore[union-attr]
    forward_backward(task.loss, model, batch, divisor=2, **arguments)
    assert torch.allclose(model.weight.grad, 2 * once)  # type: ignore[arg-type]
    assert not loss.total.requires_grad
    assert float(loss.total) == pytest.approx(float(tiny.squared_error(model, batch).total.detach()))


def test_bf16_is_autocast_around_the_forward() -> None:
    seen: list[torch.dtype] = []

    def loss(model: nn.Module, batch: Any) -> Loss:
        out = model(batch[0])
        seen.append(out.dtype)
        return Loss(out.float().square().sum(), len(out))

    model, batch = tiny.linear(), collate(tiny.task(), range(4))
    for precision in ("fp32", "bf16"):
        forward_backward(
            loss,
            model,
            batch,
            num_examples=4,
            divisor=4,
            constants=recipe(precision=precision),
            device="cpu",
        )
    assert seen == [torch.float32, torch.bfloat16]
    assert model.weight.grad is not None
    assert model.weight.grad.dtype == torch.float32  # type: ignore[union-attr]


class Many(Dataset[tuple[Tensor, int]]):
    """Reads a whole batch at once, and refuses to read one example."""

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        return [(torch.full((2,), float(i)), i) for i in indices]

    def __len__(self) -> int:
        return 9


def test_rows_of_tensors_make_the_batch_that_a_loader_makes_of_examples() -> None:
    task, indices = tiny.task(), [5, 0, 5, 47]
    (expected,) = DataLoader(task.train_data, batch_sampler=[indices])
    found = collate(task, iter(indices))
    assert isinstance(found, list)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert [x.stride() for x in found] == [x.stride() for x in expected]


def test_a_data_set_that_reads_batches_is_asked_for_batches() -> None:
    x, y = collate(tiny.task(train_data=Many()), [3, 1])
    assert x.tolist() == [[3.0, 3.0], [1.0, 1.0]]
    assert y.tolist() == [3, 1]


def test_an_optimizer_that_calls_the_loss_itself_is_refused() -> None:
    with pytest.raises(InvalidTaskError, match="whose step calls a closure"):
        build_optimizer(recipe(optimizer="lbfgs"), nn.Linear(3, 1), 0.1)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.ones(3, 2), 3),
        ((torch.ones(4), torch.ones(4)), 4),
        ([[torch.ones(5)], torch.ones(1)], 5),
        ({"x": torch.ones(6)}, 6),
        ((["id0", "id1"], torch.ones(2, 7), torch.ones(3)), 2),
        ({"id": ["a"], "scale": torch.tensor(2.0), "x": torch.ones(8)}, 8),
        (UserDict(n=9, x=torch.ones(9)), 9),
        (Batch(["a"], torch.ones(1, 5)), 1),
        ([[], (Pair(torch.tensor(1.0), 3), {"deep": torch.ones(0, 2)})], 0),
    ],
)
def test_examples_are_counted_by_the_first_tensor_that_has_rows(batch: Any, size: int) -> None:
    assert batch_examples(batch) == size


@pytest.mark.parametrize("batch", [3, [], {}, ["text"], torch.tensor(2.0), Batch])
def test_a_batch_without_rows_is_refused(batch: Any) -> None:
    with pytest.raises(InvalidTaskError, match="need a tensor to count examples by"):
        batch_examples(batch)
