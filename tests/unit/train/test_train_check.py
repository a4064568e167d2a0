"""A run that would fail later is refused before it starts, in words."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from rightbatch.core.errors import InvalidInputError, InvalidTaskError
from rightbatch.core.plan import Plan
from rightbatch.core.run import Outcome
from rightbatch.tasks.build import build_model
from rightbatch.tasks.task import Task
from rightbatch.train.loop import Saving, train


def plan(**changes: Any) -> Plan:
    return Plan.from_recipe(tiny.task().recipe, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "other"}, r"a plan for task 'other', and task 'tiny'; need a plan made for this"),
        (
            {"global_batch_size": 64},
            r"global batch 64 with 48 training examples; need a batch no larger",
        ),
        ({"warmup_examples": 193}, r"warmup_examples = 193 in a run of 192 examples"),
        ({"optimizer": "mine:build"}, r"optimizer 'mine:build', while the recipe has 'sgd'"),
        ({"optimizer": "sgdd"}, r"optimizer 'sgdd'"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_and_leaves_no_folder(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        train(tiny.task(), plan(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed = -1; need seed >= 0"),
        ({"max_updates": 0, "early_stopping": 0}, "max_updates = 0, early_stopping = 0; need max_up"),
        ({"saving": Saving(keep=0)}, "keep = 0; need keep >= 1"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        train(tiny.task(), plan(), tmp_path, **changes)


def build_sgd(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [{"params": parameters[:1], "lr": lr / 2}, {"params": parameters[1:]}], lr=lr
    )


def test_an_optimizer_factory_named_in_a_plan_file_is_the_recipes_own(tmp_path: Path) -> None:
    task = tiny.task(recipe=tiny.task().recipe.replace(optimizer=build_sgd))
    as_read = Plan(**Plan.from_recipe(task.recipe).model_dump())  # a file holds the name
    assert as_read.optimizer == f"{__name__}:build_sgd"
    halved = train(task, as_read, tmp_path / "halved", max_updates=1).final_state_dict()

    plain = train(tiny.task(), plan(), tmp_path / "plain", max_updates=1).final_state_dict()
    start = build_model(task, seed=0).state_dict()
    steps = {name: (halved[name] - start[name]) / (plain[name] - start[name]) for name in start}
    torch.testing.assert_close(steps["weight"], torch.full((1, 3), 0.5), rtol=1e-4, atol=0)
    torch.testing.assert_close(steps["bias"], torch.ones(1), rtol=1e-4, atol=0)


def test_a_task_without_a_usable_loss_is_refused(tmp_path: Path) -> None:
    task = tiny.task(loss=lambda model, batch: model(batch[0]).mean() * float("nan"))
    with pytest.raises(InvalidTaskError, match="the loss of the first two examples is nan"):
        train(task, plan(), tmp_path)


class Stateful(nn.Linear):
    def __init__(self) -> None:
        super().__init__(tiny.NUM_FEATURES, 1)

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_weights_that_could_not_be_saved_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(InvalidTaskError, match=r"state_dict\(\) holds a dict under '_extra_state'"):
        train(tiny.task(model=Stateful), plan(), tmp_path)


def normalised(num_examples: int) -> Task:
    return tiny.task(model=tiny.batch_norm, train_data=tiny.data(num_examples))


def test_a_last_update_of_one_example_under_batch_norm_is_refused(tmp_path: Path) -> None:
    message = (
        r"49 examples in updates of 8 come to one of 1, in micro-batches of 1;"
        r" need at least 2 examples in every micro-batch\.\n  hint: change global_batch_size"
    )
    with pytest.raises(InvalidInputError, match=message):
        train(normalised(49), plan(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_micro_batch_of_one_example_under_batch_norm_is_refused(tmp_path: Path) -> None:
    split = plan(micro_batch_size=2, accumulation_steps=4)
    with pytest.raises(InvalidInputError, match=r"come to one of 3, in micro-batches of 2 and 1;"):
        train(normalised(51), split, tmp_path)


@pytest.mark.parametrize(
    ("num_examples", "changes"),
    [
        (50, {}),
        (49, {"epochs": None, "steps": 6}),  # ends before the lone example
        (49, {"global_batch_size": 12, "micro_batch_size": 12, "epochs": 0.5}),
    ],
)
def test_batch_norm_trains_where_no_example_is_left_alone(
    tmp_path: Path, num_examples: int, changes: dict[str, Any]
) -> None:
    assert train(normalised(num_examples), plan(**changes), tmp_path).outcome is Outcome.FINISHED


class SpatialNorm(nn.Module):
    """Normalises one example over its positions, as BatchNorm2d does on images."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(1), nn.Linear(tiny.NUM_FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x[:, None, :])[:, 0])


def test_a_lone_example_that_batch_norm_can_normalise_is_trained_on(tmp_path: Path) -> None:
    task = tiny.task(model=SpatialNorm, train_data=tiny.data(49))
    run = train(task, plan(epochs=1), tmp_path)
    assert (run.updates, run.examples) == (7, 49)


def test_the_check_leaves_the_weights_untouched_by_its_probe(tmp_path: Path) -> None:
    run = train(normalised(50), plan(), tmp_path, max_updates=1)
    assert run.final_state_dict()["1.num_batches_tracked"] == 1
