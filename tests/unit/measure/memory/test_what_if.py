"""Options beside today's step: ranked by bytes, priced, and honest about what cannot be traced."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import rightbatch as rb
from rightbatch.core.devices import parse_accelerator
from rightbatch.fit.cuda_memory import predict_cuda_memory
from rightbatch.measure.memory import trace_cuda, trace_kernels
from rightbatch.measure.memory.ladder import peak_bytes
from rightbatch.measure.memory.options import StepOptions
from rightbatch.measure.memory.variants import Variant, variants
from rightbatch.measure.memory.what_if import WhatIf, what_if

LIMIT = 2**30
module = importlib.import_module("rightbatch.measure.memory.what_if")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def blocks() -> nn.Module:
    pairs = [nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32)) for _ in range(4)]
    return nn.Sequential(*pairs, nn.Linear(32, 10))


def loss(model: nn.Module, batch: Any) -> rb.Loss:
    x, y = batch
    return rb.Loss(F.cross_entropy(model(x), y, reduction="sum"), len(y))


def task(**changes: Any) -> rb.Task:
    recipe = rb.Recipe(
        optimizer="adamw", lr=0.001, batch_size=64, epochs=1, ema_decay=0.9, clip_norm=1.0
    )
    values: dict[str, Any] = {
        "name": "t",
        "model": blocks,
        "train_data": TensorDataset(torch.randn(64, 32), torch.randint(0, 10, (64,))),
        "valid_data": None,
        "loss": loss,
        "recipe": recipe,
    }
    return rb.Task(**(values | changes))


@pytest.fixture(scope="module")
def rows() -> tuple[WhatIf, ...]:
    torch.set_num_threads(1)
    return what_if(task(), 64, usable_bytes=LIMIT, seconds=10)


def only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Leave out the other options, which take their time."""

    def few(today: Variant, accelerator: Any) -> list[Variant]:
        return [v for v in variants(today, accelerator) if v.option in names]

    monkeypatch.setattr(module, "variants", few)


def by_option(found: tuple[WhatIf, ...]) -> dict[str, WhatIf]:
    return {row.option: row for row in found}


def test_today_comes_first_and_the_rest_by_bytes_saved(rows: tuple[WhatIf, ...]) -> None:
    assert (rows[0].option, rows[0].saved_bytes) == ("today", 0)
    saved = [row.saved_bytes for row in rows[1:] if row.saved_bytes is not None]
    assert saved == sorted(saved, reverse=True)
    assert len(saved) == len(rows) - 1 > 15


@pytest.mark.parametrize(
    ("option", "options"),
    [
        ("today", StepOptions()),
        ("checkpointing", StepOptions(checkpointing=True)),
        ("fused optimizer", StepOptions(optimizer_form="fused")),
        ("fsdp over 2", StepOptions(parallel="fsdp", world_size=2)),
    ],
)
def test_bytes_are_those_of_the_real_step(
    option: str, options: StepOptions, rows: tuple[WhatIf, ...]
) -> None:
    row = by_option(rows)[option]
    expected = peak_bytes(trace_kernels(task(), 64, options=options))
    assert (row.peak_bytes, row.evidence) == (expected, "measured")
    assert row.saved_bytes == (rows[0].peak_bytes or 0) - expected


def test_a_split_step_has_the_same_examples(rows: tuple[WhatIf, ...]) -> None:
    row = by_option(rows)["4 micro-batches of 16"]
    expected = trace_kernels(task(), 16, options=StepOptions(accumulation_steps=4))
    assert row.peak_bytes == peak_bytes(expected)


class Turned(nn.Module):
    """Its input is copied, unless there is one example: that lies as wanted already."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = x[:, None].expand(-1, 64, -1).contiguous()
        turned = rows.transpose(0, 1).contiguous()
        return self.last(turned.square()).mean(0)


@pytest.mark.parametrize("accelerator", [None, parse_accelerator("a100-40gb")])
def test_a_micro_batch_of_1_is_traced_at_1(monkeypatch: pytest.MonkeyPatch, accelerator: Any) -> None:
    only(monkeypatch, "sgd")
    turned = task(model=Turned)
    today = what_if(turned, 1, usable_bytes=2**34, accelerator=accelerator, seconds=0)[0]
    if accelerator is None:
        assert today.peak_bytes == peak_bytes(trace_kernels(turned, 1))
    else:
        expected = predict_cuda_memory([trace_cuda(turned, 1)], 1)
        assert today.peak_bytes == expected.allocated_bytes


def test_steps_are_timed_only_where_they_run(rows: tuple[WhatIf, ...]) -> None:
    found = by_option(rows)
    for option in ("checkpointing", "bf16 autocast", "4 micro-batches of 16"):
        assert found[option].seconds_evidence == "measured"
        assert 0.3 < (found[option].seconds_ratio or 0) < 30
    for option in ("fsdp over 2", "ddp", "evaluation"):
        assert (found[option].seconds_ratio, found[option].seconds_evidence) == (None, None)


def test_steps_that_are_too_long_to_time_have_their_operations_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only(monkeypatch, "checkpointing", "bf16 autocast")
    found = by_option(what_if(task(), 64, usable_bytes=LIMIT, seconds=0))
    row = found["checkpointing"]
    # Of nine layers with forward 1 and backward 2, but the first's input needs no gradient, and the
    # last layer of a block is not run again: its output is not needed.
    forward = 8 * 32 * 32 + 32 * 10
    expected = 1 + 4 * 32 * 32 / (3 * forward - 32 * 32)
    assert row.seconds_evidence == "derived"
    assert row.seconds_ratio == pytest.approx(expected)
    assert found["bf16 autocast"].seconds_ratio is None


def test_an_accelerator_is_replayed_through_its_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "checkpointing")
    device = parse_accelerator("cuda:t4")
    found = by_option(what_if(task(), 64, usable_bytes=device.memory_bytes, accelerator=device))
    options = StepOptions(checkpointing=True)
    trace = trace_cuda(task(), 64, options=options, capability=(7, 5))
    expected = predict_cuda_memory([trace], 64, capability=(7, 5)).allocated_bytes
    assert found["checkpointing"].peak_bytes == expected
    assert found["checkpointing"].evidence == "derived"


@pytest.mark.parametrize("power", [2, 3])
def test_the_largest_that_fits_follows_what_examples_make_together(
    monkeypatch: pytest.MonkeyPatch, power: int
) -> None:
    def together(model: nn.Module, batch: Any) -> Tensor:
        z = model(batch[0]).flatten(1)
        near = z @ z.T
        return (near if power == 2 else near[:, :, None] - near[:, None, :]).relu().mean()

    only(monkeypatch, "sgd")
    base, room = task(loss=together), 2**26
    largest = what_if(base, 4, usable_bytes=room, seconds=0)[0].max_micro_batch_size
    assert largest is not None
    assert largest < 3000  # else the step below takes all memory there is
    held = peak_bytes(trace_kernels(base, largest))
    assert 0.85 * room < held <= room  # 12 % are kept where no step of 16 was run


def test_an_accelerator_has_other_defaults() -> None:
    today = Variant(option="today", task=task(), micro_batch_size=8)
    found = {v.option for v in variants(today, parse_accelerator("cuda:t4"))}
    assert {"fp16 autocast", "for-loop optimizer"} < found  # the T4 has no bf16 units
    assert not {"bf16 autocast", "foreach optimizer"} & found


def test_an_option_that_fails_is_listed_last_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "checkpointing", "bf16 weights", "sgd")

    def needs_fp32(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        assert x.dtype is torch.float32, "float32 it has to be"
        return F.cross_entropy(model(x), y)

    flat = task(model=lambda: nn.Linear(32, 10), loss=needs_fp32)
    found = what_if(flat, 2, usable_bytes=LIMIT, seconds=0)
    assert [row.option for row in found] == ["today", "sgd", "checkpointing", "bf16 weights"]
    assert found[2].note == "cannot be traced: no block of Linear is repeated"
    assert found[3].note == "cannot be traced: AssertionError: float32 it has to be"
    assert (found[3].peak_bytes, found[3].saved_bytes, found[3].evidence) == (None, None, None)


def test_a_limit_that_holds_no_example_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "sgd")
    today, sgd = what_if(task(), 64, usable_bytes=150_000, seconds=0)
    assert today.max_micro_batch_size == 0
    assert (sgd.max_micro_batch_size or 0) > 0


def test_what_today_has_already_is_no_option() -> None:
    base = StepOptions(checkpointing=True, precision="pure-bf16", optimizer_form="fused")
    today = Variant(option="today", task=task(), options=base, micro_batch_size=8)
    names = {variant.option for variant in variants(today, None)}
    assert not names & {"checkpointing", "bf16 autocast", "bf16 weights", "fused optimizer"}
    assert all(v.options.checkpointing for v in variants(today, None))


def test_a_batch_norm_is_never_left_with_one_example() -> None:
    normed = task(model=lambda: nn.Sequential(nn.Linear(32, 10), nn.BatchNorm1d(10)))
    today = Variant(option="today", task=normed, micro_batch_size=4)
    found = {v.option: v for v in variants(today, None)}
    assert "2 micro-batches of 2" in found
    assert "4 micro-batches of 1" not in found
    assert "batch statistics of fewer examples" in found["2 micro-batches of 2"].note


def test_another_optimizer_drops_the_constants_of_todays() -> None:
    recipe = task().recipe.replace(betas=(0.9, 0.95), weight_decay=0.1)
    today = Variant(option="today", task=dataclasses.replace(task(), recipe=recipe), micro_batch_size=4)
    found = {v.option: v.task.recipe for v in variants(today, None)}
    assert (found["sgd with momentum"].optimizer, found["sgd with momentum"].momentum) == ("sgd", 0.9)
    assert found["adafactor"].betas is None
    assert found["no averaged weights"].ema_decay is None
    assert found["no clipping"].clip_norm is None
