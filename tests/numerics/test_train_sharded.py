"""Weights in shards over two processes are trained as on one, and go on on any number."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from ranks import run_ranks
from rightbatch.core.errors import InvalidInputError, InvalidTaskError
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Recipe
from rightbatch.core.run import Outcome, Run
from rightbatch.tasks.task import Loss, Task
from rightbatch.train.loop import train

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(26, 3, dtype=torch.float64, generator=GENERATOR)
WEIGHT = torch.arange(1, 27, dtype=torch.float64).remainder(3)[:, None]
RECIPE = Recipe(optimizer="adamw", lr=0.02, batch_size=6, epochs=2, schedule="cosine", clip_norm=0.5)


class Centre(nn.Module):
    """Its statistics are used while training, so that every process must have the same."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(5, dtype=torch.float64))
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return torch.tanh(self.layer(x - self.mean))


class Net(nn.Module):
    """Repeated blocks, a call beside ``forward``, parameters without a row for every process."""

    def __init__(self, make_block: Any) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 5), nn.Linear(5, 1)
        self.blocks = nn.ModuleList(make_block() for _ in range(2))
        self.unused = nn.Parameter(torch.ones(2))

    def encode(self, x: Tensor) -> Tensor:
        code = self.first(x)
        for block in self.blocks:
            code = block(code)
        return code

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode(x))


def plain() -> nn.Module:
    return Net(lambda: nn.Sequential(nn.Linear(5, 5), nn.Tanh())).double()


def with_statistics() -> nn.Module:
    return Net(Centre).double()


def tied() -> nn.Module:
    net = with_statistics()
    net.blocks[1].layer.weight = net.blocks[0].layer.weight  # type: ignore[union-attr]
    return net


def sparse() -> nn.Module:
    net = plain()
    net.words = nn.Embedding(4, 5, sparse=True)
    return net


def with_a_scale() -> nn.Module:
    net = plain()
    net.scale = nn.Parameter(torch.tensor(1.0))
    return net


def two_terms(model: Any, batch: tuple[Tensor, Tensor]) -> dict[str, Loss]:
    x, weight = batch
    error = (weight * (model(x) - x.sum(1, keepdim=True)).square()).sum()
    code = 0.1 * model.encode(x).square().sum()
    return {"error": Loss(error, weight.sum()), "code": Loss(code, len(x))}


def one_call(model: Any, batch: tuple[Tensor, Tensor]) -> Loss:
    """Where ``two_terms`` calls each block twice."""
    return Loss(model(batch[0]).square().sum(), len(batch[0]))


def task(x: Tensor = X, model: Any = plain, loss: Any = two_terms) -> Task:
    return Task(
        name="sharded",
        model=model,
        train_data=TensorDataset(x, WEIGHT),
        valid_data=TensorDataset(X[:7], WEIGHT[:7]),
        loss=loss,
        evaluate=lambda model, batches: {"loss": float(sum(model(x).sum() for x, _ in batches))},
        recipe=RECIPE,
    )


PLAN = Plan.from_recipe(RECIPE, "sharded", micro_batch_size=2, accumulation_steps=3)
WHOLE = Plan.from_recipe(RECIPE, "sharded", micro_batch_size=3, accumulation_steps=2)


class Found(NamedTuple):
    run: Run
    reduces: int
    nan: Run
    refused: list[str]


class Reduces(TorchDispatchMode):
    """Counts the reduce-scatters that are started, in backward too."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.namespace == "c10d" and "reduce_scatter" in func.__name__
        return func(*args, **(kwargs or {}))


def refusal(folder: Path, plan: Plan = PLAN, **how: Any) -> str:
    made = task(model=how.pop("model", plain))
    with pytest.raises((InvalidInputError, InvalidTaskError), match="shard=False") as caught:
        train(made, plan, folder, shard=True, **how)
    return str(caught.value)


def work(folder: Path) -> Found:
    bad = X.clone()
    bad[3] = torch.nan
    nan = train(task(bad), PLAN, folder / "nan", shard=True)
    train(task(), PLAN.replace(checkpointing=True), folder / "checkpointed", shard=True)
    for shard in (False, True):
        train(task(model=with_statistics), WHOLE, folder / f"statistics-{shard}", shard=shard)
    refused = [
        refusal(folder / "none", PLAN.replace(ema_decay=0.9)),
        refusal(folder / "none", meter=lambda *given: None),
        refusal(folder / "none", model=tied),
        refusal(folder / "none", model=sparse),
        refusal(folder / "none", model=with_a_scale),
    ]
    with Reduces() as reduces:
        train(task(loss=one_call), PLAN, folder / "counted", 0, 4, shard=True)
    return Found(train(task(), PLAN, folder / "run", 0, 4, shard=True), reduces.count, nan, refused)


def go_on(folder: Path) -> Run:
    return train(task(), PLAN, folder / "run", resume=True, shard=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[Found]:
    return run_ranks(2, work, folder)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Run:
    return train(task(), PLAN, folder / "alone")


def same_weights(folder: Path, found: str, wanted: str) -> None:
    for name in ("final", "best"):
        ours, theirs = (
            load_file(folder / run / "checkpoints" / f"{name}.safetensors") for run in (found, wanted)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_run_on_two_shards_then_one_process_then_three_shards_is_the_run_on_one(
    folder: Path, two: list[Found], alone: Run
) -> None:
    assert [found.run.updates for found in two] == [4, 4]
    assert train(task(), PLAN, folder / "run", 0, 7, resume=True).updates == 7
    assert {run.updates for run in run_ranks(3, go_on, folder)} == {alone.updates}
    same_weights(folder, "run", "alone")


def test_each_part_of_the_model_reduces_its_gradients_once_per_update(two: list[Found]) -> None:
    """Three parts, the two blocks and the rest; two micro-batches in each of four updates."""
    assert [found.reduces for found in two] == [3 * 4] * 2


@pytest.mark.usefixtures("two", "alone")
def test_checkpointed_blocks_are_trained_as_others(folder: Path) -> None:
    same_weights(folder, "checkpointed", "alone")


@pytest.mark.usefixtures("two")
def test_statistics_are_those_of_whole_replicas(folder: Path) -> None:
    same_weights(folder, "statistics-True", "statistics-False")


def test_a_bad_example_is_named_although_no_process_has_whole_weights(two: list[Found]) -> None:
    assert {(found.nan.outcome, found.nan.suspects) for found in two} == {(Outcome.DIVERGED, (3,))}


def test_what_needs_whole_weights_is_refused(tmp_path: Path, two: list[Found]) -> None:
    average, meter, shared, words, scale = two[1].refused
    assert words.startswith("words has sparse gradients; need dense ones")
    assert average.startswith("sharding with ema_decay = 0.9; need 2 processes or more")
    assert meter.startswith("sharding with a meter of the gradient noise; need 2 processes")
    assert scale.startswith("parameter 'scale' has no dimension to shard along")
    assert shared.startswith("parameter 'blocks.1.layer.weight' is shared between parts of the model")
    assert refusal(tmp_path).startswith("sharding over 1 process; need 2 processes or more")
