"""What fake traces and real streams say of small steps whose bytes can be counted by hand."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import rightbatch as rb
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.samples import MemoryTrace
from rightbatch.measure.memory import compat, kernels, trace_kernels, trace_memory
from rightbatch.measure.memory.options import StepOptions

FLOAT = 4
TRACERS = [trace_memory, trace_kernels]
Trace = Callable[..., MemoryTrace]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loss(model: nn.Module, batch: Any) -> rb.Loss:
    x, y = batch
    return rb.Loss(F.cross_entropy(model(x), y, reduction="sum"), len(y))


def make(model: Callable[[], nn.Module], task_loss: Any = loss, **recipe: Any) -> rb.Task:
    data = TensorDataset(torch.randn(5, 8), torch.randint(0, 3, (5,)))
    constants = {"optimizer": "sgd", "lr": 0.1} | recipe
    recipe_today = rb.Recipe(batch_size=2, epochs=1, **constants)
    return rb.Task(
        name="t", model=model, train_data=data, valid_data=None, loss=task_loss, recipe=recipe_today
    )


def linear() -> nn.Module:
    return nn.Linear(8, 3)  # 27 parameters


def owned(trace: MemoryTrace, owner: str) -> int:
    """Largest number of bytes that one owner ever holds."""
    mine = np.array(trace.owner) == trace.owners.index(owner)
    return int(np.cumsum(np.where(mine, trace.delta_bytes, 0)).max())


@pytest.mark.parametrize("trace", TRACERS)
def test_every_owner_holds_what_can_be_counted(trace: Trace) -> None:
    found = trace(make(linear, optimizer="adamw", lr=1e-3), 4)
    assert owned(found, "parameters") == 27 * FLOAT
    assert owned(found, "gradients") == 27 * FLOAT
    assert owned(found, "optimizer_state") == 2 * 27 * FLOAT + 2 * FLOAT  # and a step count for each
    assert owned(found, "inputs") == 4 * (8 * FLOAT + 8)


@pytest.mark.parametrize("trace", TRACERS)
def test_averaged_weights_and_momentum_are_optimizer_state(trace: Trace) -> None:
    found = trace(make(linear, momentum=0.9, ema_decay=0.9), 2)
    assert owned(found, "optimizer_state") == 2 * 27 * FLOAT


@pytest.mark.parametrize("trace", TRACERS)
def test_accumulation_holds_every_micro_batch(trace: Trace) -> None:
    one, three = (trace(make(linear), 2, options=StepOptions(accumulation_steps=k)) for k in (1, 3))
    assert owned(three, "inputs") == 3 * owned(one, "inputs")
    assert owned(three, "gradients") == owned(one, "gradients")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.two.weight = self.one.weight
        self.mask = torch.ones(8)  # neither parameter nor buffer

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.relu(self.one(x), inplace=True)) * self.mask


@pytest.mark.parametrize("trace", TRACERS)
def test_tied_weights_count_once_and_bare_tensors_count(trace: Trace) -> None:
    found = trace(make(Tied), 2)
    assert owned(found, "parameters") == owned(found, "gradients") == 64 * FLOAT
    assert owned(found, "buffers") == 8 * FLOAT


@pytest.mark.parametrize("trace", TRACERS)
def test_phases_come_in_order_twice(trace: Trace) -> None:
    found = trace(make(linear, optimizer="adamw", lr=1e-3), 2)
    names = [found.phases[i] for i in found.phase]
    changes = [name for name, before in zip(names, [None, *names], strict=False) if name != before]
    assert changes == ["setup", *["forward", "backward", "optimizer"] * 2]


@pytest.mark.parametrize("trace", TRACERS)
def test_no_owner_ever_holds_a_negative_amount(trace: Trace) -> None:
    found = trace(make(Tied, optimizer="adamw", lr=1e-3, clip_norm=1.0), 3)
    for owner in range(len(found.owners)):
        mine = np.where(np.array(found.owner) == owner, found.delta_bytes, 0)
        assert np.cumsum(mine).min() >= 0


@pytest.mark.parametrize("trace", TRACERS)
def test_the_caller_keeps_its_random_states_and_dtype(trace: Trace) -> None:
    def changes_everything() -> nn.Module:
        random.seed(1)
        np.random.seed(1)
        model = linear()
        torch.set_default_dtype(torch.float64)
        return model

    task = make(changes_everything)
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    trace(task, 2)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert (np.random.get_state()[1] == states[2]).all()
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("trace", TRACERS)
def test_an_impossible_size_is_refused(trace: Trace) -> None:
    with pytest.raises(InvalidInputError, match=r"micro_batch_size 0.*\n  hint: trace sizes 2 and 3"):
        trace(make(linear), 0)


def test_a_real_step_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    trace_kernels(make(linear), 2)
    assert capfd.readouterr() == ("", "")


def gather(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return -model(x).log_softmax(-1).gather(1, y[:, None]).mean()


def residual() -> nn.Module:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return h + torch.tanh(self.b(h)) + h * h

    return Sum()


@pytest.mark.parametrize("task_loss", [loss, gather])
def test_observing_does_not_change_how_gradients_are_summed(task_loss: Any) -> None:
    task = make(residual, task_loss)
    peaks = [int(np.cumsum(trace(task, 64).delta_bytes).max()) for trace in TRACERS]
    assert peaks[0] == peaks[1]


def reads_a_value(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    total = F.cross_entropy(model(x), y)
    return total if bool(torch.isfinite(total)) else total * 0


def test_a_value_that_the_loss_reads_is_assumed_and_named() -> None:
    found = trace_memory(make(linear, reads_a_value, optimizer="adamw", lr=1e-3), 2)
    read = r"a tensor's value was read \(aten._local_scalar_dense\) in forward at .*test_trace.py:\d+"
    assert re.fullmatch(read + r": assumed True \(2 times\)", found.caveats[0])


def selects(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    losses = F.cross_entropy(model(x), y, reduction="none")
    return torch.masked_select(losses, losses > losses.mean()).sum()


def test_a_selection_is_assumed_to_keep_everything() -> None:
    found = trace_memory(make(linear, selects), 2)
    selected = r"aten.masked_select keeps a part of its input at .*test_trace.py:\d+: assumed all"
    assert re.fullmatch(selected + r" \(2 times\)", found.caveats[0])


def log(*deltas: tuple[int, int], call: int = 1) -> list[compat.AllocatorEvent]:
    return [compat.AllocatorEvent("memory", "aten.sdpa", call, address, d) for address, d in deltas]


def test_a_loop_inside_a_kernel_leaves_one_turn_whatever_its_length() -> None:
    turn = ((7, 64), (8, 4), (8, -4), (7, -64))
    assert all(kernels._without_repeats(log(*turn * n)) == log(*turn) for n in (1, 2, 9))


def test_repeated_calls_and_storages_handed_on_stay() -> None:
    turn = ((7, 64), (7, -64))
    calls = [*log(*turn, call=1), *log(*turn, call=2)]
    assert kernels._without_repeats(calls) == calls
    handed_on = log((1, 64), (2, 64), (1, -64), (3, 64), (2, -64), (4, 64), (3, -64))
    assert kernels._without_repeats(handed_on) == handed_on
