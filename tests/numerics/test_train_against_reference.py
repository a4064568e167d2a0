"""Whole runs in float64 against a loop written out by hand on one big batch per update."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import tiny
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Recipe
from rightbatch.tasks.task import Loss, Task
from rightbatch.train.loop import train
from rightbatch.train.sampler import Windows

NUM_EXAMPLES, BATCH = 22, 8  # windows of 8, 8 and 6
RATE, DECAY, CLIP = 0.05, 0.7, 0.5
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(NUM_EXAMPLES, 3, dtype=torch.float64, generator=GENERATOR)
Y = torch.randn(NUM_EXAMPLES, 1, dtype=torch.float64, generator=GENERATOR)
# Example i counts for `WEIGHT[i]` targets, so micro-batches of one size differ in their counts.
WEIGHT = torch.arange(NUM_EXAMPLES, dtype=torch.float64).remainder(3)[:, None]


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def weighted(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Loss:
    x, y, weight = batch
    return Loss((weight * (model(x) - y).square()).sum(), weight.sum())


def task(**changes: Any) -> Task:
    values: dict[str, Any] = {
        "name": "weighted",
        "model": build,
        "train_data": TensorDataset(X, Y, WEIGHT),
        "valid_data": None,
        "loss": weighted,
        "recipe": Recipe(optimizer="sgd", lr=RATE, momentum=0.9, batch_size=BATCH, epochs=2),
    }
    return Task(**(values | changes))


def reference(
    clip_norm: float | None = None, rates: tuple[float, ...] = (RATE,) * 6
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Final weights and their moving average over the six updates of two epochs."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    order = Windows.of(Plan.from_recipe(task().recipe), NUM_EXAMPLES, seed=0).order
    average: dict[str, Tensor] = {}
    updates = ((epoch, start) for epoch in range(2) for start in range(0, NUM_EXAMPLES, BATCH))
    for (epoch, start), rate in zip(updates, rates, strict=True):
        rows = torch.from_numpy(order(epoch)[start : start + BATCH])
        loss = weighted(model, (X[rows], Y[rows], WEIGHT[rows]))
        optimizer.zero_grad()
        (loss.total / loss.count).backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        now = {name: value.clone() for name, value in model.state_dict().items()}
        average = {n: DECAY * average[n] + (1 - DECAY) * now[n] for n in now} if average else now
    return model.state_dict(), average


@pytest.mark.parametrize("micro", [8, 4, 2, 1])
@pytest.mark.parametrize("clip_norm", [None, CLIP])
def test_every_split_trains_as_the_big_batch_does_with_its_last_partial_window(
    tmp_path: Path, micro: int, clip_norm: float | None
) -> None:
    plan = Plan.from_recipe(
        task().recipe, micro_batch_size=micro, accumulation_steps=BATCH // micro, clip_norm=clip_norm
    )
    run = train(task(), plan, tmp_path)
    expected, _ = reference(clip_norm)
    assert (run.updates, run.examples) == (6, 44)
    torch.testing.assert_close(run.final_state_dict(), expected, rtol=1e-11, atol=1e-12)


def test_clipping_is_not_idle_in_this_comparison() -> None:
    clipped, _ = reference(CLIP)
    free, _ = reference()
    assert (clipped["0.weight"] - free["0.weight"]).abs().max() > 1e-3


def test_the_average_moves_once_per_update(tmp_path: Path) -> None:
    plan = Plan.from_recipe(task().recipe, micro_batch_size=2, accumulation_steps=4, ema_decay=DECAY)
    run = train(task(), plan, tmp_path)
    from safetensors.torch import load_file

    expected, average = reference()
    found = load_file(tmp_path / "checkpoints" / "ema.safetensors")
    torch.testing.assert_close(found, average, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(run.final_state_dict(), expected, rtol=1e-11, atol=1e-12)


def test_the_rate_of_an_update_is_the_schedule_in_the_middle_of_its_window(tmp_path: Path) -> None:
    plan = Plan.from_recipe(task().recipe, warmup_examples=16, schedule="linear")
    run = train(task(), plan, tmp_path)
    middles = (4, 12, 19, 26, 34, 41)
    rates = [RATE * (m / 16 if m < 16 else (44 - m) / 28) for m in middles]
    expected, _ = reference(rates=tuple(rates))
    torch.testing.assert_close(run.final_state_dict(), expected, rtol=1e-11, atol=1e-12)


def test_bf16_trains_near_fp32_with_fp32_weights(tmp_path: Path) -> None:
    recipe = tiny.task().recipe.replace(lr=0.05)
    runs = {
        precision: train(
            tiny.task(), Plan.from_recipe(recipe, precision=precision), tmp_path / precision
        )
        for precision in ("fp32", "bf16")
    }
    full, half = (run.final_state_dict()["weight"] for run in runs.values())
    assert half.dtype == torch.float32
    assert 0 < (full - half).abs().max() < 0.05
    assert F.cosine_similarity(full.flatten(), half.flatten(), dim=0) > 0.999
