"""A loop of somebody's own takes exact steps, the last and shorter one too."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import rightbatch as rb
import tiny
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Recipe
from rightbatch.train.loop import train
from rightbatch.train.own_loop import batch_sampler, windows

EXAMPLES = Path(__file__).parents[3] / "examples"
PLAN = Plan.from_recipe(
    Recipe(optimizer="sgd", lr=0.01, batch_size=20, epochs=2), micro_batch_size=5, accumulation_steps=4
)


def gradient(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_every_window_of_a_plain_loader_has_the_gradient_of_its_examples() -> None:
    loader = DataLoader(tiny.data(48), batch_size=5)
    made = list(windows(loader, PLAN))
    assert [(len(window), window.ends_epoch) for window in made] == [(4, False), (4, False), (2, True)]
    x, y = tiny.data(48).tensors
    model = tiny.linear()
    for window, rows in zip(made, torch.arange(48).split(20), strict=True):
        told = window.accumulate(model, tiny.squared_error)
        found = gradient(model)
        model.zero_grad()
        loss = tiny.squared_error(model, (x[rows], y[rows]))
        (loss.total / loss.count).backward()
        torch.testing.assert_close(found, gradient(model), rtol=1e-5, atol=1e-6)
        assert told.mean == pytest.approx(float(loss.total.detach()) / len(rows), rel=1e-5)
        assert [len(batch[0]) for batch in window][-1] in {5, 3}


def test_a_loader_of_whole_batches_is_refused_before_updates_become_larger_than_planned() -> None:
    with pytest.raises(
        InvalidInputError, match="batch_size = 20, and a plan of micro 5 x acc"
    ) as error:
        windows(DataLoader(tiny.data(48), batch_size=20), PLAN)
    assert error.value.hint.startswith("DataLoader(..., batch_size=5)")


def test_a_loop_of_ones_own_over_the_sampler_trains_as_train_does(tmp_path: Path) -> None:
    run = train(tiny.task(), PLAN, tmp_path, seed=5)
    torch.manual_seed(5)
    model = tiny.linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    data = tiny.data()
    loader = DataLoader(data, batch_sampler=batch_sampler(PLAN, len(data), seed=5))
    ends = []
    for window in rb.windows(loader, PLAN):
        window.accumulate(model, tiny.squared_error)
        optimizer.step()
        ends.append(window.ends_epoch)
    assert ends == [False, False, True] * 2
    torch.testing.assert_close(dict(model.state_dict()), run.final_state_dict(), rtol=0, atol=0)


def test_the_example_runs_and_learns(capsys: pytest.CaptureFixture[str]) -> None:
    example: dict[str, Any] = runpy.run_path(str(EXAMPLES / "own_loop.py"))
    example["main"]()
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 5
    assert losses[-1] < 0.75 * losses[0]
