"""A run that was stopped and goes on ends as if it had never been stopped, to the last bit."""

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import tiny
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import LoaderOptions, Recipe
from rightbatch.core.run import Outcome, Run
from rightbatch.tasks.task import Task
from rightbatch.train.loop import Saving, train
from rightbatch.train.record import Progress

EVERY = Saving(seconds=0.0)


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Examples with noise from every generator that a data set may use."""

    def __len__(self) -> int:
        return tiny.NUM_EXAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = tiny.data()[index]
        noise = random.gauss(0, 0.1) + np.random.normal(0, 0.1) + 0.1 * torch.randn(())
        return (x + noise).float(), y


def build() -> nn.Module:
    return nn.Sequential(
        nn.Linear(tiny.NUM_FEATURES, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 1)
    )


RECIPE = Recipe(
    optimizer="adamw",
    lr=0.01,
    batch_size=9,  # 48 examples come to windows of 9, 9, 9, 9, 9 and 3
    epochs=4,
    schedule="cosine",
    warmup_examples=30,
    clip_norm=1.0,
    ema_decay=0.9,
)


def task(**changes: Any) -> Task:
    return tiny.task(**({"model": build, "train_data": Augmented(), "recipe": RECIPE} | changes))


def plan(**changes: Any) -> Plan:
    values = {"micro_batch_size": 3, "accumulation_steps": 3}
    return Plan.from_recipe(RECIPE, **(values | changes))


def stop_at(update: int) -> Callable[[Progress], None]:
    def stop(progress: Progress) -> None:
        if progress.updates >= update and progress.metrics is None:
            signal.raise_signal(signal.SIGTERM)

    return stop


def weights(run: Run) -> dict[str, bytes]:
    folder = run.run_dir / "checkpoints"
    names = ("final.safetensors", "ema.safetensors", "best.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


def same(run: Run, whole: Run) -> None:
    assert weights(run) == weights(whole)
    assert [e.metrics for e in run.evaluations] == [e.metrics for e in whole.evaluations]
    assert [e.train_loss for e in run.evaluations] == [e.train_loss for e in whole.evaluations]
    assert (run.updates, run.examples, run.outcome) == (whole.updates, whole.examples, whole.outcome)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(task(), plan(), tmp_path_factory.mktemp("whole"), seed=3)


@pytest.mark.parametrize("update", [1, 5, 6, 13])
def test_a_run_that_goes_on_after_max_updates_is_the_run(
    tmp_path: Path, whole: Run, update: int
) -> None:
    stopped = train(task(), plan(), tmp_path, 3, update)
    assert (stopped.outcome, stopped.updates) == (Outcome.STOPPED, update)
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    run = train(task(), plan(), tmp_path, 3, resume=True)
    assert weights(run) == weights(whole)
    assert (run.updates, run.outcome) == (whole.updates, Outcome.FINISHED)


def test_a_run_that_goes_on_after_sigterm_is_the_run(tmp_path: Path, whole: Run) -> None:
    times = {"seconds": 0.0}

    def stop(progress: Progress) -> None:
        if progress.updates >= 9 and progress.metrics is not None:
            signal.raise_signal(signal.SIGTERM)

    stopped = train(task(), plan(), tmp_path, 3, on_progress=stop)
    assert (stopped.outcome, stopped.updates) == (Outcome.TERMINATED, 13)
    times["seconds"] = stopped.seconds
    run = train(task(), plan(), tmp_path, 3, resume=True)
    same(run, whole)
    assert run.seconds > times["seconds"]


def test_saving_after_every_update_changes_nothing_and_keeps_the_last_two(
    tmp_path: Path, whole: Run
) -> None:
    run = train(task(), plan(), tmp_path, 3, saving=EVERY)
    same(run, whole)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("update*")) == [
        "update-000000023.json",
        "update-000000023.safetensors",
        "update-000000024.json",
        "update-000000024.safetensors",
    ]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker")
def test_random_augmentation_in_workers_does_not_depend_on_their_number_nor_on_a_stop(
    tmp_path: Path,
) -> None:
    def with_workers(count: int) -> Task:
        return task(loader=LoaderOptions(num_workers=count))

    one = train(with_workers(1), plan(), tmp_path / "one", 3, 8)
    train(with_workers(2), plan(), tmp_path / "two", 3, 4)
    two = train(with_workers(2), plan(), tmp_path / "two", 3, 8, resume=True)
    assert weights(two)["final.safetensors"] == weights(one)["final.safetensors"]


def test_a_killed_run_goes_on_from_its_newest_checkpoint(tmp_path: Path, whole: Run) -> None:
    train(task(), plan(), tmp_path, 3, saving=Saving(seconds=0.0, keep=30))
    for name in ("outcome.json", "checkpoints/final.safetensors", "checkpoints/ema.safetensors"):
        (tmp_path / name).unlink()
    for manifest in sorted((tmp_path / "checkpoints").glob("*.json"))[10:]:
        manifest.unlink()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"updates": 3, "exam')  # cut off
    with pytest.raises(InvalidInputError, match=r"update-000000010\.json is the checkpoint of a run"):
        train(task(), plan(), tmp_path, 3)
    same(train(task(), plan(), tmp_path, 3, resume=True), whole)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["updates"] for line in lines if "metrics" in line] == [6, 12, 18, 24]


def test_a_run_that_died_before_its_first_checkpoint_starts_again(tmp_path: Path, whole: Run) -> None:
    train(task(), plan(), tmp_path, 3, 5)
    for path in [tmp_path / "outcome.json", *(tmp_path / "checkpoints").iterdir()]:
        path.unlink()
    same(train(task(), plan(), tmp_path, 3, resume=True), whole)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    run = train(task(), plan(), tmp_path, 3)
    before = weights(run)
    assert train(task(), plan(), tmp_path, 3, resume=True) == run
    assert weights(run) == before


@pytest.mark.parametrize(
    ("changes", "seed", "message"),
    [
        ({"learning_rate": 0.02}, 3, r"learning_rate = 0\.02, while .*plan\.json has 0\.01; need the"),
        ({}, 4, r"seed = 4, while .*start\.json has 3; need the same to resume"),
    ],
)
def test_another_plan_or_seed_does_not_resume(
    tmp_path: Path, changes: dict[str, Any], seed: int, message: str
) -> None:
    train(task(), plan(), tmp_path, 3, 2)
    with pytest.raises(InvalidInputError, match=message):
        train(task(), plan(**changes), tmp_path, seed, resume=True)


def test_a_folder_without_a_run_does_not_resume(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"no .*start\.json; need the folder of a run"):
        train(task(), plan(), tmp_path, 3, resume=True)


def wider() -> nn.Module:
    return nn.Sequential(
        nn.Linear(tiny.NUM_FEATURES, 5), nn.BatchNorm1d(5), nn.Dropout(0.3), nn.Linear(5, 1)
    )


def test_another_model_does_not_resume(tmp_path: Path) -> None:
    train(task(), plan(), tmp_path, 3, 2)
    message = r"weight '0\.bias' is float32 \[4\]; need float32 \[5\]"
    with pytest.raises(InvalidInputError, match=message):
        train(task(model=wider), plan(), tmp_path, 3, resume=True)


def test_a_diverged_run_does_not_resume(tmp_path: Path) -> None:
    diverging = tiny.task(model=build, evaluate=lambda model, batches: {"mse": float("nan")})
    assert train(diverging, plan(), tmp_path).outcome is Outcome.DIVERGED
    with pytest.raises(InvalidInputError, match=r"diverged: evaluation after update 6 gave mse = nan"):
        train(diverging, plan(), tmp_path, resume=True)


class Remembering(torch.optim.SGD):
    """An optimizer whose state no file can hold without running code."""

    def step(self, closure: Any = None) -> Any:
        self.state[self.param_groups[0]["params"][0]]["hook"] = lambda: None
        return super().step(closure)


def remembering(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return Remembering(parameters, lr)


def test_an_optimizer_that_cannot_be_saved_is_refused_at_the_first_update(tmp_path: Path) -> None:
    from rightbatch.core.errors import InvalidTaskError

    with pytest.raises(InvalidTaskError, match=r"optimizer holds a function; need tensors and plain"):
        train(tiny.task(), Plan.from_recipe(tiny.task().recipe, optimizer=remembering), tmp_path)


@pytest.mark.parametrize(
    "optimizer",
    [
        "SGD",
        "Adam",
        "Adamax",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Adagrad",
        "Adadelta",
        "ASGD",
        "Rprop",
        "Adafactor",
    ],
)
def test_every_optimizer_of_torch_goes_on_to_the_same_bits(tmp_path: Path, optimizer: str) -> None:
    chosen = Plan.from_recipe(Recipe(optimizer=optimizer, lr=0.01, batch_size=16, epochs=2))
    whole = train(tiny.task(), chosen, tmp_path / "whole")
    train(tiny.task(), chosen, tmp_path / "parts", 0, 2)
    parts = train(tiny.task(), chosen, tmp_path / "parts", resume=True)
    torch.testing.assert_close(parts.final_state_dict(), whole.final_state_dict(), rtol=0, atol=0)


class Factored(torch.optim.Optimizer):
    """Keeps a number for each row and column of a matrix, not for each element."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                square = p.grad.square().reshape(len(p), -1) + 1e-8
                state = self.state[p]
                if not state:
                    state |= {"row": torch.zeros(len(square)), "col": torch.zeros(square.shape[1])}
                state["row"] += square.mean(1)
                state["col"] += square.mean(0)
                scale = (torch.outer(state["row"], state["col"]) / state["row"].mean()).rsqrt()
                p.sub_(group["lr"] * p.grad * scale.reshape(p.shape))


def factored(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return Factored(parameters, lr)


def test_an_optimizer_with_state_of_any_shape_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = RECIPE.replace(optimizer=factored, ema_decay=None)
    mine, chosen = task(recipe=recipe), Plan.from_recipe(recipe)
    whole = train(mine, chosen, tmp_path / "whole")
    train(mine, chosen, tmp_path / "parts", max_updates=5)
    parts = train(mine, chosen, tmp_path / "parts", resume=True)
    torch.testing.assert_close(parts.final_state_dict(), whole.final_state_dict(), rtol=0, atol=0)
    train(mine, chosen, tmp_path / "other", max_updates=5)
    monkeypatch.setattr(Factored, "__init__", _reversed)
    with pytest.raises(InvalidInputError, match=r"parameter 0 has shape \[1\]; need \[4, 3\], as it"):
        train(mine, chosen, tmp_path / "other", resume=True)


def _reversed(self: Factored, parameters: list[nn.Parameter], lr: float) -> None:
    torch.optim.Optimizer.__init__(self, [*parameters][::-1], {"lr": lr})
