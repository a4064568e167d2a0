from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import TensorDataset

import rightbatch as rb
from rightbatch.core.errors import InvalidTaskError, MeasurementError
from rightbatch.core.samples import WorstCase
from rightbatch.fit.memory_model import fit_memory_model
from rightbatch.measure.memory import ladder, measure_memory, trace_kernels
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


def test_a_straight_law_takes_three_traces_of_each_kind_and_size_1_one_of_its_own() -> None:
    fakes = [("fake", 2), ("fake", 3), ("fake", 64)]
    assert sizes(make()) == [*fakes, *(("kernels", b) for b in (2, 3, 16, 1))]


def test_a_lone_example_that_cannot_be_trained_on_is_left_out() -> None:
    task = replace(make(), model=lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3)))
    assert [b for source, b in sizes(task) if source == "kernels"] == [2, 3, 16]


def test_a_lone_example_is_left_out_where_the_costliest_batch_takes_two() -> None:
    data: Any = [(torch.zeros(n, 8), torch.zeros(m, 8)) for n, m in ((3, 9), (9, 3), (3, 3))]

    def pad(examples: list[Any]) -> list[torch.Tensor]:
        return [pad_sequence(list(field), batch_first=True) for field in zip(*examples, strict=True)]

    def means(model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch[0]).mean() + model(batch[1]).mean()

    traces = measure_memory(replace(make(means), train_data=data, collate=pad))
    assert traces[0].worst_case is not None
    assert len(traces[0].worst_case.indices) == 2
    assert 1 not in [t.micro_batch_size for t in traces]


def test_a_loss_over_pairs_takes_one_more_of_each_kind() -> None:
    found = sizes(make(pairs))
    assert [b for source, b in found if source == "fake"] == [2, 3, 64, 4]
    assert [b for source, b in found if source == "kernels"] == [2, 3, 4, 16, 1]


def test_a_loss_over_triples_takes_two_more_of_each_kind_and_is_met_to_the_byte() -> None:
    def triples(model: nn.Module, batch: Any) -> torch.Tensor:
        z = model(batch[0])
        near = z @ z.T
        return (near[:, :, None] - near[:, None, :] + 1).relu().mean()

    task = make(triples)
    found = measure_memory(task)
    assert [t.micro_batch_size for t in found if t.source == "fake"] == [2, 3, 64, 4, 5]
    assert [t.micro_batch_size for t in found if t.source == "kernels"] == [2, 3, 4, 5, 16, 1]
    model = fit_memory_model(found)
    assert model.exact
    assert model.peak_bytes(40) == ladder.peak_bytes(trace_kernels(task, 40))


def test_no_real_step_is_larger_than_the_largest_asked_for() -> None:
    assert [b for s, b in sizes(make(), max_micro_batch_size=8) if s == "kernels"] == [2, 3, 8, 1]


def test_real_steps_that_would_not_fit_are_not_run() -> None:
    assert {source for source, _ in sizes(make(), memory_bytes=10_000)} == {"fake", "kernels"}
    assert {source for source, _ in sizes(make(), memory_bytes=300)} == {"fake"}


def test_what_fake_tensors_cannot_do_is_named_and_measured_instead() -> None:
    traces = measure_memory(make(to_numpy))
    assert {t.source for t in traces} == {"kernels"}
    assert re.match(
        r"no trace under fake tensors at .*test_ladder.py:\d+: RuntimeError: .numpy\(\)",
        traces[0].caveats[0],
    )


def test_a_step_that_fails_for_real_is_an_error() -> None:
    with pytest.raises(MeasurementError, match=r"2 examples raised ZeroDivisionError: no such luck"):
        measure_memory(make(fails))


def refuting(size: int) -> Any:
    """A step whose law for 2 and 3 examples does not hold at 16."""
    nbytes = 10 * size if size < 16 else 1000 + 7 * size
    events = [Event(0, nbytes, "a", "forward"), Event(0, -nbytes, "a", "forward")]
    return to_trace(events, {}, micro_batch_size=size, source="kernels")


def test_a_rung_that_refutes_the_law_is_doubled_by_a_second_size() -> None:
    traces = ladder._climb(refuting, [2, 16, 64, 256], 2, 100.0, 1e9)
    assert [t.micro_batch_size for t in traces] == [2, 3, 16, 17, 64]


def test_time_that_ends_within_a_rung_lets_it_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def step(size: int) -> Any:
        nonlocal now
        now += size
        return refuting(size)

    clock = SimpleNamespace(perf_counter=lambda: now, process_time=lambda: now)
    monkeypatch.setattr(ladder, "time", clock)
    traces = ladder._climb(step, [2, 16, 64, 256], 2, 20.0, 1e9)
    assert [t.micro_batch_size for t in traces] == [2, 3, 16, 17]


def test_free_memory_is_positive_and_at_most_the_machines() -> None:
    assert 2**20 < ladder.free_memory_bytes() < 2**50


def test_every_traced_batch_is_made_of_the_costliest_examples() -> None:
    lengths = [3, 20, 7, 50]
    data: Any = [(torch.zeros(n, 8), torch.tensor(0)) for n in lengths]

    def pad(examples: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        return pad_sequence([x for x, _ in examples], batch_first=True), torch.zeros(len(examples))

    def mean(model: nn.Module, batch: Any) -> torch.Tensor:
        return model(batch[0]).mean()

    traces = measure_memory(replace(make(mean), train_data=data, collate=pad))
    assert {t.source for t in traces} == {"fake", "kernels"}
    for trace in traces:
        assert trace.worst_case == WorstCase(indices=(3,), key="longest", scanned=4, of=4)
        assert ladder._input_bytes(trace) == trace.micro_batch_size * (50 * 8 + 1) * 4


@pytest.mark.parametrize(
    ("task_loss", "memory_bytes"), [(loss, 300), (to_numpy, None)], ids=["traces", "real steps"]
)
def test_a_collate_that_ignores_its_examples_is_refused(
    task_loss: Any, memory_bytes: float | None
) -> None:
    task = make(task_loss)
    four: Any = task.train_data[:4]
    with pytest.raises(InvalidTaskError, match=r"batches of 2 and of \d+ examples are the same"):
        measure_memory(replace(task, collate=lambda examples: four), memory_bytes=memory_bytes)


def test_one_size_says_nothing_about_growth() -> None:
    traces = measure_memory(make(), memory_bytes=300)
    ladder.check_growth([])
    ladder.check_growth(traces[:1])
    ladder.check_growth(traces)
