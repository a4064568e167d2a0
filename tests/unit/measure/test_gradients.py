"""What taking gradients needs and leaves behind; the numbers themselves are in numerics."""

from typing import Any

import pytest
import torch
from torch import nn

import tiny
from rightbatch.core.errors import MeasurementError
from rightbatch.measure.gradients import (
    adam_preconditioner,
    draw_examples,
    sample_gradients,
    split_evenly,
    undisturbed,
)
from rightbatch.tasks.task import Loss


def test_one_group_has_no_spread() -> None:
    with pytest.raises(MeasurementError, match=r"1 group\(s\) of examples; need at least 2"):
        sample_gradients(tiny.task(), tiny.linear(), [[0, 1]], examples_seen=0)


def test_a_batch_without_targets_is_refused_as_such() -> None:
    def nothing(model: nn.Module, batch: Any) -> Loss:
        return Loss(model(batch[0]).sum() * 0, 0)

    task = tiny.task(loss=nothing)
    with pytest.raises(MeasurementError, match="0 counted targets in 4 examples"):
        sample_gradients(task, tiny.linear(), [[0, 1], [2, 3]], examples_seen=0)


class Spectral(nn.Module):
    """A complex weight beside real ones, as Fourier layers have."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, dtype=torch.cfloat))
        self.head = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=3))


def test_a_complex_gradient_counts_as_the_pair_of_numbers_that_it_is() -> None:
    model, task = Spectral(), tiny.task()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sample_gradients(task, model, [[0, 1], [2, 3]], examples_seen=0)
    optimizer.step()
    weights = adam_preconditioner(model, optimizer)
    assert weights is not None
    sample = sample_gradients(task, model, [[0, 1], [2, 3]], examples_seen=0, preconditioner=weights)
    gradients = [p.grad for p in model.parameters()]
    assert [g.dtype for g in gradients if g is not None] == [p.dtype for p in model.parameters()]
    pairs = [torch.view_as_real(g) if g.is_complex() else g for g in gradients if g is not None]
    assert sample.big_sq_norm == pytest.approx(sum(float(g.square().sum()) for g in pairs))
    weighted = sum(float((g.square() * w).sum()) for g, w in zip(pairs, weights, strict=True))
    assert sample.preconditioned_big_sq_norm == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_refused(value: float) -> None:
    def bad(model: nn.Module, batch: Any) -> Loss:
        return Loss(model(batch[0]).sum() * value, len(batch[0]))

    with pytest.raises(MeasurementError, match=r"squared norm (nan|inf) after 7 examples"):
        sample_gradients(tiny.task(loss=bad), tiny.linear(), [[0], [1]], examples_seen=7)


def test_a_parameter_without_a_gradient_counts_as_zero_and_a_frozen_one_not_at_all() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 1), nn.Linear(3, 1)
            self.frozen = nn.Linear(3, 1).requires_grad_(False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x) + self.frozen(x)

    model = Half()
    sample = sample_gradients(tiny.task(), model, [[0], [1]], examples_seen=0)
    assert sample.big_sq_norm > 0
    assert model.unused.weight.grad is not None
    assert not model.unused.weight.grad.any()
    assert model.frozen.weight.grad is None


def test_running_statistics_and_random_numbers_are_put_back_even_after_an_error() -> None:
    model = tiny.batch_norm()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with pytest.raises(RuntimeError, match="stop"), undisturbed(model):  # noqa: PT012
        model(torch.randn(8, 3))
        changed = any(not torch.equal(before[n], b) for n, b in model.named_buffers())
        assert changed
        raise RuntimeError("stop")
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(("count", "groups"), [(7, 3), (8, 8), (64, 8), (9, 2)])
def test_groups_are_even_and_keep_the_order(count: int, groups: int) -> None:
    cut = split_evenly(range(count), groups)
    assert [i for group in cut for i in group] == list(range(count))
    assert len(cut) == groups
    assert max(map(len, cut)) - min(map(len, cut)) <= 1


def test_draws_are_with_replacement_and_follow_the_generator() -> None:
    first, again = (draw_examples(5, 50, torch.Generator().manual_seed(0)) for _ in range(2))
    assert first == again
    assert (len(first), set(first)) == (50, set(range(5)))
