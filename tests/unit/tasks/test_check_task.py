"""What would fail later in a trace is refused in words at the start."""

# pyright: reportUnknownLambdaType=false

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

import tiny
from rightbatch.core.errors import InvalidInputError, InvalidTaskError, MissingDataError
from rightbatch.core.recipe import LoaderOptions, Target
from rightbatch.tasks.check import check_task, evaluate
from rightbatch.tasks.task import Loss


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        raise NotImplementedError


class Unreadable:
    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> Any:
        raise KeyError(f"no example {index}")


def recipe(**changes: Any) -> Any:
    return tiny.task().recipe.replace(**changes)


def raising(*_: Any) -> Any:
    raise ZeroDivisionError("in the user's code")


def test_facts_describe_the_task() -> None:
    model: Any = tiny.batch_norm()
    model[0].bias.requires_grad_(False)
    facts = check_task(tiny.task(model=lambda: model, recipe=recipe(optimizer="adamw")))
    assert (facts.name, facts.spec) == ("tiny", "tiny")
    assert (facts.num_train_examples, facts.num_valid_examples) == (48, 16)
    assert facts.num_parameters == 3 * 4 + 4 + 8 + 5
    assert facts.num_trainable_parameters == facts.num_parameters - 4
    assert facts.num_batch_norm_layers == 1
    assert (facts.optimizer_class, facts.optimizer_family) == ("AdamW", "adam")
    assert facts.target == Target("mse", 1e-6, higher_is_better=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_data": []}, "train_data is empty"),
        ({"valid_data": []}, "valid_data is empty"),
        ({"train_data": Endless()}, "train_data of type Endless has no length; need a map-style"),
        ({"recipe": recipe(batch_size=49)}, "batch_size 49 with 48 training examples"),
        ({"train_data": Unreadable()}, "reading train_data raised KeyError: 'no example 0'"),
        ({"valid_data": Unreadable()}, "reading valid_data raised KeyError"),
        ({"collate": raising}, "reading train_data raised ZeroDivisionError"),
        ({"model": lambda: "a model"}, r"model\(\) returned str"),
        ({"model": raising}, r"model\(\) raised ZeroDivisionError: in the user's code"),
        ({"loss": raising}, "loss raised ZeroDivisionError: in the user's code"),
        ({"loss": lambda m, b: m(b[0])}, r"loss returned Tensor of shape \[2, 1\]"),
        ({"loss": lambda m, b: m(b[0]).sum().detach()}, "the loss has no gradient"),
        ({"loss": lambda m, b: m(b[0]).sum() * float("nan")}, "first two examples is nan"),
        ({"loss": lambda m, b: Loss(m(b[0]).sum() / 0, 2)}, "first two examples is -?inf"),
        ({"evaluate": raising}, "evaluate raised ZeroDivisionError"),
        ({"evaluate": lambda *_: 3}, "evaluate returned 3; need a dict"),
        ({"evaluate": lambda *_: {"mse": "low"}}, "evaluate raised ValueError"),
        ({"valid_data": None}, "target mse <= 1e-06 without valid_data"),
        ({"target": Target("ms", 1)}, r"evaluate returned mse, without 'ms'.*\n.*did you mean `mse`"),
        ({"evaluate": lambda *_: {}}, "evaluate returned nothing, without 'mse'"),
        ({"evaluate": None}, "evaluate returned loss, without 'mse'"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidTaskError, match=message):
        check_task(tiny.task(**changes))


def test_an_optimizer_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="optimizer 'sdg'"):
        check_task(tiny.task(recipe=recipe(optimizer="sdg")))


def test_a_deliberate_error_of_the_users_code_passes_through() -> None:
    def missing(*_: Any) -> Any:
        raise MissingDataError("no labels", "labels", "fetch them")

    for changes in ({"loss": missing}, {"evaluate": missing}):
        with pytest.raises(MissingDataError, match="no labels"):
            check_task(tiny.task(**changes))


def test_without_metric_and_target_the_mean_loss_is_the_metric() -> None:
    task = tiny.task(evaluate=None, target=Target("loss", 0.1, higher_is_better=False))
    check_task(task)
    model = tiny.linear()
    x, y = tiny.data(16, seed=1).tensors
    expected = float((model(x) - y).square().mean().detach())
    batches = [(x[:10], y[:10]), (x[10:], y[10:])]
    assert evaluate(task, model, batches)["loss"] == pytest.approx(expected, rel=1e-5)
    plain = tiny.task(evaluate=None, loss=lambda m, b: (m(b[0]) - b[1]).square().mean())
    assert evaluate(plain, model, batches)["loss"] == pytest.approx(expected, rel=1e-5)


def test_evaluation_is_in_eval_mode_without_gradients_and_leaves_train_mode() -> None:
    seen: list[tuple[bool, bool]] = []

    def metric(model: nn.Module, batches: Any) -> dict[str, float]:
        seen.append((model.training, torch.is_grad_enabled()))
        return {"mse": 1}

    model = tiny.linear()
    assert evaluate(tiny.task(evaluate=metric), model, []) == {"mse": 1.0}
    assert seen == [(False, False)]
    assert model.training
    with pytest.raises(InvalidTaskError, match="evaluate raised"):
        evaluate(tiny.task(evaluate=raising), model, [])
    assert model.training


def test_a_single_example_is_enough() -> None:
    one = TensorDataset(*(t[:1] for t in tiny.data().tensors))
    facts = check_task(tiny.task(train_data=one, valid_data=one, recipe=recipe(batch_size=1)))
    assert facts.num_train_examples == 1


def test_a_loss_that_counts_its_targets_is_evaluated_on_any_batch() -> None:
    def loss(model: nn.Module, batch: list[str]) -> Loss:
        return Loss(model(torch.ones(len(batch), tiny.NUM_FEATURES)).sum() * 0 + 6, len(batch))

    task = tiny.task(loss=loss, evaluate=None)
    assert evaluate(task, tiny.linear(), [["a text"], ["another", "text"]]) == {"loss": 4.0}


def test_the_fingerprint_changes_with_what_measurements_depend_on() -> None:
    base = check_task(tiny.task()).fingerprint
    assert check_task(tiny.task()).fingerprint == base
    changed = [
        {"name": "other"},
        {"model": tiny.batch_norm},
        {"train_data": tiny.data(47)},
        {"recipe": recipe(lr=0.02)},
        {"target": None},
        {"loader": LoaderOptions(num_workers=1)},
        {"source_sha256": "abc"},
    ]
    prints = {check_task(tiny.task(**changes)).fingerprint for changes in changed}
    assert len(prints | {base}) == len(changed) + 1
