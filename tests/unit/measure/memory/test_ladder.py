from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import rightbatch as rb
from rightbatch.core.errors import MeasurementError
from rightbatch.measure.memory import ladder, measure_memory
from rightbatch.measure.memory.stream import Event, to_trace


def loss(model: nn.Module, batch: Any) -> rb.Loss:
    x, y = batch
    return rb.Loss(F.cross_entropy(model(x), y, reduction="sum"), len(y))


def pairs(model: nn.Module, batch: Any) -> torch.Tensor:
    logits = model(batch[0])
    return (logits @ logits.T).mean()


def to_numpy(model: nn.Module, batch: Any) -> rb.Loss:
    batch[0].numpy()
    return loss(model, batch)


def fails(model: nn.Module, batch: Any) -> rb.Loss:
    raise ZeroDivisionError("no such luck")


def make(task_loss: Any = loss, examples: int = 40) -> rb.Task:
    data = TensorDataset(torch.randn(examples, 8), torch.randint(0, 3, (examples,)))
    recipe = rb.Recipe(optimizer="sgd", lr=0.1, batch_size=2, epochs=1)
    return rb.Task(
        name="t",
        model=lambda: nn.Linear(8, 3),
        train_data=data,
        valid_data=None,
        loss=task_loss,
        recipe=recipe,
    )


def sizes(task: rb.Task, **options: Any) -> list[tuple[str, int]]:
    return [(t.source, t.micro_batch_size) for t in measure_memory(task, **options)]


def test_a_straight_law_takes_three_traces_of_each_kind_and_never_size_1() -> None:
    expected = [("fake", 2), ("fake", 3), ("fake", 64), ("kernels", 2), ("kernels", 3), ("kernels", 16)]
    assert sizes(make()) == expected


def test_a_loss_over_pairs_takes_one_more_of_each_kind() -> None:
    found = sizes(make(pairs))
    assert [b for source, b in found if source == "fake"] == [2, 3, 64, 4]
    assert [b for source, b in found if source == "kernels"] == [2, 3, 4, 16]


def test_no_real_step_is_larger_than_the_largest_asked_for() -> None:
    assert [b for s, b in sizes(make(), max_micro_batch_size=8) if s == "kernels"] == [2, 3, 8]


def test_real_steps_that_would_not_fit_are_not_run() -> None:
    assert {source for source, _ in sizes(make(), memory_bytes=10_000)} == {"fake", "kernels"}
    assert {source for source, _ in sizes(make(), memory_bytes=300)} == {"fake"}


def test_what_fake_tensors_cannot_do_is_named_and_measured_instead() -> None:
    traces = measure_memory(make(to_numpy))
    assert {t.source for t in traces} == {"kernels"}
    assert "no trace under fake tensors at size 2: RuntimeError: .numpy()" in traces[0].caveats[0]


def test_a_step_that_fails_for_real_is_an_error() -> None:
    with pytest.raises(MeasurementError, match=r"2 examples raised ZeroDivisionError: no such luck"):
        measure_memory(make(fails))


def test_a_rung_that_refutes_the_law_is_doubled_by_a_second_size() -> None:
    def step(size: int) -> Any:
        nbytes = 10 * size if size < 16 else 1000 + 7 * size
        events = [Event(0, nbytes, "a", "forward"), Event(0, -nbytes, "a", "forward")]
        return to_trace(events, {}, micro_batch_size=size, source="kernels")

    traces = ladder._climb(step, [2, 16, 64, 256], 2, 100.0, 1e9)
    assert [t.micro_batch_size for t in traces] == [2, 3, 16, 17, 64]


def test_free_memory_is_positive_and_at_most_the_machines() -> None:
    assert 2**20 < ladder.free_memory_bytes() < 2**50
