"""Two and three processes make the updates that one makes, whatever does not divide evenly."""

import signal
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from ranks import run_ranks
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Recipe
from rightbatch.core.run import Outcome, Run
from rightbatch.tasks.task import Loss, Task
from rightbatch.train.accumulate import accumulate
from rightbatch.train.loop import train

CASES = 30
NUM_EXAMPLES = 26  # in updates of 6 the last of an epoch has two examples, for up to three processes
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(NUM_EXAMPLES, 3, dtype=torch.float64, generator=GENERATOR)
Y = torch.randn(NUM_EXAMPLES, 1, dtype=torch.float64, generator=GENERATOR)
WEIGHT = torch.arange(1, NUM_EXAMPLES + 1, dtype=torch.float64).remainder(3)[:, None]
RECIPE = Recipe(
    optimizer="adamw", lr=0.02, batch_size=6, epochs=3, schedule="cosine", clip_norm=0.5, ema_decay=0.9
)


class Net(nn.Module):
    """Calls beside ``forward`` and a parameter that no loss reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 5), nn.Linear(5, 1)
        self.unused = nn.Parameter(torch.ones(2))

    def encode(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode(x))


def build() -> nn.Module:
    return Net().double()


def two_terms(model: Any, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Loss]:
    x, y, weight = batch
    error = (weight * (model(x) - y).square()).sum()
    return {
        "error": Loss(error, weight.sum()),
        "code": Loss(0.1 * model.encode(x).square().sum(), len(x)),
    }


def mean_error(model: nn.Module, batches: Any) -> dict[str, float]:
    counted = [len(x) for x, _, _ in batches]
    return {"examples": float(sum(counted)), "loss": 1.0 / (1 + len(counted))}


def task(**changes: Any) -> Task:
    values: dict[str, Any] = {
        "name": "ranks",
        "model": build,
        "train_data": TensorDataset(X, Y, WEIGHT),
        "valid_data": TensorDataset(X[:7], Y[:7], WEIGHT[:7]),
        "loss": two_terms,
        "evaluate": mean_error,
        "recipe": RECIPE,
    }
    return Task(**(values | changes))


PLAN = Plan.from_recipe(RECIPE, "ranks", micro_batch_size=2, accumulation_steps=3)


class Found(NamedTuple):
    errors: list[float]
    reduces: Counter[int]
    run: Run
    nan: Run
    stopped: Run


def random_case(seed: int, count: int) -> tuple[list[list[Any]], bool]:
    """Micro-batches for every rank, as many on each, of any sizes and with any mask."""
    draw = torch.Generator().manual_seed(seed)
    pieces = int(torch.randint(1, 4, (), generator=draw))
    ranks = [
        [
            (
                torch.randn(size, 3, dtype=torch.float64, generator=draw),
                torch.randn(size, 1, dtype=torch.float64, generator=draw),
                (torch.rand(size, 1, dtype=torch.float64, generator=draw) > 0.4).double(),
            )
            for size in torch.randint(1, 6, (pieces,), generator=draw).tolist()
        ]
        for _ in range(count)
    ]
    ranks[0][0][2][0] = 1.0  # at least one target
    return ranks, bool(torch.rand((), generator=draw) < 0.5)


def gradient_error(seed: int) -> float:
    """Relative error of the gradient on all ranks against the one big batch."""
    ranks, single = random_case(seed, dist.get_world_size())
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()

    def terms(model: Any, batch: Any) -> Any:
        x, y, weight = batch
        out = model(x)
        error = Loss((weight * (out - y).square()).sum(), weight.sum())
        return error if single else {"error": error, "size": Loss(out.abs().sum(), len(x))}

    big = tuple(map(torch.cat, zip(*(piece for rank in ranks for piece in rank), strict=True)))
    found = terms(net, big)
    losses = [found] if single else found.values()
    objective = sum(loss.total / loss.count for loss in losses)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(objective, list(net.parameters()))])
    accumulate(DistributedDataParallel(net), terms, ranks[dist.get_rank()])
    flat = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    return float((flat - expected).norm() / expected.norm())


def count_reduces(seen: Counter[int]) -> None:
    """Count how often DDP hands over each of its buckets, by standing before its usual all-reduce."""
    original = DistributedDataParallel.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        original(
            self, *args, bucket_cap_mb=1e-4, **kwargs
        )  # a hundred bytes, so that there are several

        def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
            seen[bucket.index()] += 1
            future = dist.all_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
            return future.get_future().then(lambda done: done.value()[0])

        self.register_comm_hook(None, hook)

    DistributedDataParallel.__init__ = counted  # type: ignore[method-assign]


def poisoned() -> Task:
    x = X.clone()
    x[3] = torch.nan
    return task(train_data=TensorDataset(x, Y, WEIGHT))


def signalled(model: Any, batch: Any) -> Any:
    if dist.get_rank() == 1 and torch.is_grad_enabled() and len(batch[0]) == 1:
        signal.raise_signal(signal.SIGTERM)
    return two_terms(model, batch)


def work(folder: Path) -> Found:
    errors = [gradient_error(seed) for seed in range(CASES)]
    stopped = train(task(loss=signalled), PLAN, folder / "stopped")
    nan = train(poisoned(), PLAN, folder / "nan")
    seen: Counter[int] = Counter()
    count_reduces(seen)
    run = train(task(), PLAN, folder / "run", 0, 7)  # mid-epoch
    return Found(errors, seen, run, nan, stopped)


def go_on(folder: Path) -> Run:
    return train(task(), PLAN, folder / "run", resume=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[Found]:
    return run_ranks(2, work, folder)


@pytest.fixture(scope="module")
def alone(folder: Path) -> Run:
    return train(task(), PLAN, folder / "alone")


def test_the_gradient_over_ranks_is_that_of_the_one_batch(two: list[Found]) -> None:
    assert max(error for found in two for error in found.errors) <= 1e-12


def test_every_bucket_of_gradients_is_reduced_once_per_update(two: list[Found]) -> None:
    assert all(len(found.reduces) > 1 for found in two)
    assert all(set(found.reduces.values()) == {7} for found in two)


def test_every_example_is_evaluated_once_and_all_ranks_know_the_metrics(two: list[Found]) -> None:
    assert [e.metrics["examples"] for found in two for e in found.run.evaluations] == [7.0] * 4


def test_a_bad_example_on_one_rank_stops_all_before_the_update_and_is_named(two: list[Found]) -> None:
    first, second = (found.nan for found in two)
    assert first.outcome is second.outcome is Outcome.DIVERGED
    assert (first.updates, first.suspects) == (second.updates, second.suspects)
    assert first.suspects == (3,)
    assert "look at training example 3, whose loss is not finite by itself" in first.message
    assert all(value.isfinite().all() for value in first.final_state_dict().values())


def test_sigterm_to_one_rank_stops_all_at_one_update(two: list[Found]) -> None:
    first, second = (found.stopped for found in two)
    assert first.outcome is second.outcome is Outcome.TERMINATED
    assert first.updates == second.updates < 15


def test_a_run_on_two_then_one_then_three_processes_is_the_run_on_one(
    folder: Path, two: list[Found], alone: Run
) -> None:
    assert two[0].run.updates == 7
    assert train(task(), PLAN, folder / "run", 0, 11, resume=True).updates == 11
    last = run_ranks(3, go_on, folder)
    assert {run.updates for run in last} == {alone.updates}
    for name in ("final", "ema"):
        found = load_file(folder / "run" / "checkpoints" / f"{name}.safetensors")
        wanted = load_file(folder / "alone" / "checkpoints" / f"{name}.safetensors")
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
