from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from rightbatch.core.work import StepWork
from rightbatch.measure.operations import trace_work
from rightbatch.tasks.task import Loss, Task
from tiny import task as tiny_task

WIDTHS = (8, 16, 4)


def mlp() -> nn.Module:
    first, second, last = WIDTHS
    return nn.Sequential(nn.Linear(first, second), nn.ReLU(), nn.Linear(second, last))


def total_error(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> Loss:
    return Loss(model(batch[0]).square().sum(), len(batch[0]))


@pytest.fixture
def task() -> Task:
    data = TensorDataset(torch.randn(64, WIDTHS[0]))
    return tiny_task(model=mlp, train_data=data, valid_data=data, loss=total_error)


def by_operator(work: StepWork) -> dict[str, int]:
    return {entry.operator: entry.flops for entry in work.operators if entry.flops}


def test_matrix_products_are_counted_as_by_hand(task: Task) -> None:
    size = 5
    first, second, last = WIDTHS
    forward = 2 * size * (first * second + second * last)
    # Backward: both weights, and the input of the second layer; the data needs no gradient.
    backward = forward + 2 * size * second * last
    work = trace_work(task, size)
    assert work.flops == forward + backward
    assert set(by_operator(work)) == {"aten.addmm", "aten.mm"}


def test_one_step_is_counted_and_not_two(task: Task) -> None:
    forward = next(w for w in trace_work(task, 5).operators if w.operator == "aten.addmm")
    assert forward.calls == 2


def test_work_is_a_line_in_the_batch_size(task: Task) -> None:
    two, three, nine = (trace_work(task, size) for size in (2, 3, 9))
    assert nine.flops == two.flops + 7 * (three.flops - two.flops)
    assert nine.moved_bytes == two.moved_bytes + 7 * (three.moved_bytes - two.moved_bytes)


def test_an_elementwise_operator_moves_what_it_reads_and_writes(task: Task) -> None:
    relu = next(w for w in trace_work(task, 5).operators if w.operator == "aten.relu")
    assert (relu.calls, relu.flops, relu.moved_bytes) == (1, 0, 2 * 5 * WIDTHS[1] * 4)


def test_views_and_questions_move_nothing(task: Task) -> None:
    names = {entry.operator for entry in trace_work(task, 5).operators}
    assert not names & {"aten.t", "aten.view", "aten.detach", "prim.device"}


def test_autocast_computes_products_in_sixteen_bits(task: Task) -> None:
    half = replace(task, recipe=task.recipe.replace(precision="bf16"))
    for capability in (None, (8, 0)):
        work = trace_work(half, 4, capability=capability)
        assert {entry.dtype for entry in work.operators if entry.flops} == {"bfloat16"}


def test_a_cuda_device_takes_the_multi_tensor_optimizer(task: Task) -> None:
    names = {entry.operator for entry in trace_work(task, 4, capability=(8, 0)).operators}
    assert any(name.startswith("aten._foreach") for name in names)
