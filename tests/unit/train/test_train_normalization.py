"""BatchNorm becomes what the plan says, with its weights, and nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.train.loop import train
from rightbatch.train.normalization import planned_model


def plan(**changes: Any) -> Plan:
    return Plan.from_recipe(tiny.task().recipe, **changes)


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 12, 3), nn.Sequential(nn.BatchNorm2d(12), nn.ReLU()))


GHOST = {"batch_norm": "ghost", "ghost_batch_size": 4}


def test_ghost_batch_norm_normalises_each_group_by_itself() -> None:
    task = tiny.task(model=tiny.batch_norm)
    ghost, plain = planned_model(task, plan(**GHOST), "cpu"), planned_model(task, plan(), "cpu")
    assert ghost.state_dict().keys() == plain.state_dict().keys()
    x, _ = tiny.data(10).tensors
    found = ghost(x)  # 10 examples are nearest to two groups of 4: 5 and 5
    torch.testing.assert_close(found, torch.cat([plain(x[:5]), plain(x[5:])]), rtol=0, atol=0)
    torch.testing.assert_close(dict(ghost.state_dict()), dict(plain.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(ghost.eval()(x), plain.eval()(x), rtol=0, atol=0)


def test_ghost_batch_norm_does_not_depend_on_the_micro_batch(tmp_path: Path) -> None:
    task = tiny.task(model=tiny.batch_norm)
    whole = train(task, plan(**GHOST), tmp_path / "whole", max_updates=1)
    split = train(
        task, plan(**GHOST, micro_batch_size=4, accumulation_steps=2), tmp_path / "split", max_updates=1
    )
    torch.testing.assert_close(whole.final_state_dict(), split.final_state_dict(), rtol=1e-4, atol=1e-6)


def test_group_norm_takes_the_place_and_the_weights() -> None:
    model = planned_model(tiny.task(model=convolutional), plan(batch_norm="group"), "cpu")
    assert [type(module).__name__ for module in model.modules()] == [
        "Sequential",
        "Conv2d",
        "Sequential",
        "GroupNorm",
        "ReLU",
    ]
    norm: Any = model[1][0]  # type: ignore[index]
    assert (norm.num_groups, norm.num_channels) == (6, 12)
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))  # no example sees another


def test_a_run_with_group_norm_takes_a_lone_example(tmp_path: Path) -> None:
    task = tiny.task(model=tiny.batch_norm, train_data=tiny.data(49))
    run = train(task, plan(batch_norm="group", ema_decay=0.9), tmp_path, max_updates=7)
    assert run.examples == 49
    assert not any("running" in name for name in run.final_state_dict())


def test_ghosts_are_averaged_and_resumed_like_batch_norm(tmp_path: Path) -> None:
    task = tiny.task(model=tiny.batch_norm)
    chosen = plan(**GHOST, ema_decay=0.9)
    whole = train(task, chosen, tmp_path / "whole")
    train(task, chosen, tmp_path / "parts", 0, 4)
    parts = train(task, chosen, tmp_path / "parts", resume=True)
    torch.testing.assert_close(parts.final_state_dict(), whole.final_state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (tiny.linear, GHOST, r"batch_norm = 'ghost' for a model without BatchNorm; need a BatchNorm"),
        (tiny.batch_norm, {"batch_norm": "sync"}, r"batch_norm = 'sync' on the CPU; need GPUs"),
    ],
)
def test_what_cannot_be_done_is_refused(model: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        planned_model(tiny.task(model=model), plan(**changes), "cpu")


def test_ghosts_need_a_size() -> None:
    with pytest.raises(InvalidInputError, match=r"batch_norm = 'ghost' with ghost_batch_size = None"):
        plan(batch_norm="ghost")
