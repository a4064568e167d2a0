"""The two terms of the noise scale against the float64 gradients of every single example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import tiny
from rightbatch.core.samples import GradientSample
from rightbatch.fit.noise_scale import estimate_noise_scale
from rightbatch.measure.gradients import (
    adam_preconditioner,
    draw_examples,
    sample_gradients,
    split_evenly,
)
from rightbatch.measure.noise import measure_noise_updates
from rightbatch.tasks.build import build_model
from rightbatch.tasks.task import Loss, Task

DRAWS = 300
OUTPUTS = 2


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(tiny.NUM_FEATURES, 4), nn.Tanh(), nn.Linear(4, OUTPUTS))


def per_target(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
    """Two targets in each example, so that targets and examples are counted apart."""
    x, y = batch
    return Loss(F.mse_loss(model(x), y.expand(-1, OUTPUTS), reduction="sum"), OUTPUTS * len(y))


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.mse_loss(model(x), y.expand(-1, OUTPUTS))


def per_example_gradients(model: nn.Module) -> list[Tensor]:
    """Float64 gradients of each example's mean loss, [N, ...] for each parameter."""
    parameters = {n: p.detach().double() for n, p in model.named_parameters()}
    x, y = (t.double() for t in tiny.data().tensors)

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(functional_call(model, values, (x,)), y.expand(OUTPUTS))

    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    return list(found.values())


def moments(gradients: Sequence[Tensor], weights: Sequence[Tensor] | None) -> tuple[float, float]:
    """|G|^2 and tr(Sigma) over draws with replacement, each square weighted if asked."""
    weights = weights or [torch.ones(()).double()] * len(gradients)
    signal = sum(float((w * g.mean(0) ** 2).sum()) for g, w in zip(gradients, weights, strict=True))
    mean_square = sum(float((w * g**2).sum()) for g, w in zip(gradients, weights, strict=True))
    return signal, mean_square / len(gradients[0]) - signal


def task(loss: Callable[..., Any] = per_target, **changes: Any) -> Task:
    return tiny.task(**({"model": net, "loss": loss, "target": None, "evaluate": None} | changes))


def terms(sample: GradientSample, weighted: bool = False) -> tuple[float, float]:
    """Estimates of |G|^2 and tr(Sigma) from one pair: McCandlish et al. (2018), Eq. A.2."""
    b, big = sample.small_batch_size, sample.big_batch_size
    small_norm, big_norm = sample.small_sq_norm, sample.big_sq_norm
    if weighted:
        assert sample.preconditioned_small_sq_norm is not None
        assert sample.preconditioned_big_sq_norm is not None
        small_norm, big_norm = sample.preconditioned_small_sq_norm, sample.preconditioned_big_sq_norm
    signal = (big * big_norm - b * small_norm) / (big - b)
    return signal, (small_norm - big_norm) / (1 / b - 1 / big)


def draw(
    subject: Task, model: nn.Module, size: int, groups: int, weights: list[Tensor] | None = None
) -> list[GradientSample]:
    generator = torch.Generator().manual_seed(0)
    return [
        sample_gradients(
            subject,
            model,
            split_evenly(draw_examples(tiny.NUM_EXAMPLES, size, generator), groups),
            examples_seen=0,
            preconditioner=weights,
        )
        for _ in range(DRAWS)
    ]


def assert_unbiased(estimates: list[tuple[float, float]], truth: tuple[float, float]) -> None:
    values = np.array(estimates)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    assert (np.abs(values.mean(axis=0) - truth) < 3 * error).all()
    assert (error < 0.2 * np.abs(truth)).all()  # narrow enough to notice a mistake


@pytest.mark.parametrize("loss", [per_target, mean_loss])
@pytest.mark.parametrize(("size", "groups"), [(16, 4), (11, 4), (6, 6)])
def test_both_terms_are_unbiased(loss: Callable[..., Any], size: int, groups: int) -> None:
    subject = task(loss)
    model = build_model(subject)
    truth = moments(per_example_gradients(model), None)
    assert_unbiased([terms(s) for s in draw(subject, model, size, groups)], truth)


def test_unequal_groups_enter_by_their_harmonic_mean() -> None:
    subject = task()
    sample = sample_gradients(subject, build_model(subject), [[0, 1, 2], [3]], examples_seen=0)
    assert sample.small_batch_size == pytest.approx(2 / (1 / 3 + 1))
    assert sample.big_batch_size == 4


def test_preconditioned_terms_are_unbiased() -> None:
    subject = task()
    model = build_model(subject)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.rand(p.shape, generator=generator).double() * 10 for p in model.parameters()]
    truth = moments(per_example_gradients(model), weights)
    samples = draw(subject, model, 12, 4, weights)
    assert_unbiased([terms(s, weighted=True) for s in samples], truth)


def test_norms_are_those_of_the_groups_and_of_the_whole_to_rounding() -> None:
    subject = task()
    model = build_model(subject)
    weights = [torch.rand(p.shape).double() for p in model.parameters()]
    groups = [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11]]
    sample = sample_gradients(subject, model, groups, examples_seen=7, preconditioner=weights)
    gradients = per_example_gradients(model)

    def norm(indices: list[int], by: Sequence[Tensor | float]) -> float:
        pairs = zip(gradients, by, strict=True)
        return sum(float((w * g[indices].mean(0) ** 2).sum()) for g, w in pairs)

    ones: list[float] = [1.0] * len(gradients)
    whole = [i for group in groups for i in group]
    assert sample.small_sq_norm == pytest.approx(np.mean([norm(g, ones) for g in groups]), rel=1e-5)
    assert sample.big_sq_norm == pytest.approx(norm(whole, ones), rel=1e-5)
    assert sample.preconditioned_small_sq_norm == pytest.approx(
        np.mean([norm(g, weights) for g in groups]), rel=1e-5
    )
    assert sample.preconditioned_big_sq_norm == pytest.approx(norm(whole, weights), rel=1e-5)
    assert sample.examples_seen == 7
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.double() == pytest.approx(gradient[whole].mean(0), rel=1e-4, abs=1e-6)


def test_positives_and_negatives_are_the_parts_of_the_whole() -> None:
    def whole(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
        x, y = batch
        return Loss(F.mse_loss(model(x), y.expand(-1, OUTPUTS), reduction="sum"), len(y))

    def positive(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
        x, y = batch
        rare = y[:, 0] > 1
        wanted = y[rare].expand(-1, OUTPUTS)
        return Loss(F.mse_loss(model(x)[rare], wanted, reduction="sum"), int(rare.sum()))

    def with_dropout() -> nn.Module:
        return nn.Sequential(net(), nn.Dropout(0.5))

    subject = task(whole, positive_loss=positive)
    model = build_model(subject)
    groups = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    sample = sample_gradients(subject, model, groups, examples_seen=0)
    gradients = [OUTPUTS * g for g in per_example_gradients(model)]
    rare = (tiny.data().tensors[1][:, 0] > 1).double()

    def norms(weights: Tensor) -> tuple[float, float]:
        parts = [torch.einsum("n,n...->n...", weights, g) for g in gradients]
        small = [sum(float((g[i].mean(0) ** 2).sum()) for g in parts) for i in groups]
        return float(np.mean(small)), sum(float((g[:12].mean(0) ** 2).sum()) for g in parts)

    found = sample.positives
    assert found is not None
    assert norms(rare) == pytest.approx(
        (found.positive_small_sq_norm, found.positive_big_sq_norm), rel=1e-4
    )
    assert norms(1 - rare) == pytest.approx(
        (found.negative_small_sq_norm, found.negative_big_sq_norm), rel=1e-4
    )
    assert found.positives_per_example == pytest.approx(float(rare[:12].mean()))
    assert 0 < found.positives_per_example < 1
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):  # the whole stays
        assert parameter.grad is not None
        assert parameter.grad.double() == pytest.approx(gradient[:12].mean(0), rel=1e-4, abs=1e-6)
    # With every target positive nothing is left over, though dropout draws its masks anew.
    same = task(whole, positive_loss=whole, model=with_dropout)
    dropped = sample_gradients(same, build_model(same), groups, examples_seen=0).positives
    assert dropped is not None
    assert dropped.negative_small_sq_norm == 0.0


def test_adams_preconditioner_is_its_own_denominator() -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.5, 0.9), eps=1e-3)
    assert adam_preconditioner(model, optimizer) is None
    history: list[list[Tensor]] = []
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape)
        history.append([p.grad.double() for p in model.parameters() if p.grad is not None])
        optimizer.step()
    weights = adam_preconditioner(model, optimizer)
    assert weights is not None
    for k, weight in enumerate(weights):
        v = torch.zeros_like(history[0][k])
        for gradients in history:
            v = 0.9 * v + 0.1 * gradients[k] ** 2
        expected = 1 / ((v / (1 - 0.9**3)).sqrt() + 1e-3)
        assert weight.numpy() == pytest.approx(expected.numpy(), rel=1e-5)
    assert adam_preconditioner(net(), torch.optim.SGD(model.parameters(), lr=0.1)) is None


def test_a_parameter_that_the_loss_does_not_use_is_left_out_of_adams_preconditioner() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "unused": nn.Linear(2, 2)})
    optimizer = torch.optim.Adam(model.parameters())
    model["used"](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    weights = adam_preconditioner(model, optimizer)
    assert weights is not None
    assert [bool(w.any()) for w in weights] == [True, True, False, False]
    assert [w.shape for w in weights] == [p.shape for p in model.parameters()]


def test_an_optimizer_of_a_part_of_the_model_gives_no_preconditioner() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "moved by another": nn.Linear(3, 2)})
    optimizer = torch.optim.Adam(model["used"].parameters())
    sum(layer(torch.ones(1, 3)).sum() for layer in model.values()).backward()
    optimizer.step()
    assert adam_preconditioner(model, optimizer) is None


def test_gradients_of_one_or_three_give_a_ratio_of_exactly_one_quarter() -> None:
    # G = 2, so |G|^2 = 4; the variance is 1. Over all draws of two the averages are exact.
    class Weight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))

    def loss(model: Any, batch: tuple[Tensor]) -> Loss:
        return Loss((model.w * batch[0]).sum(), len(batch[0]))

    subject = tiny.task(
        model=Weight, loss=loss, train_data=TensorDataset(torch.tensor([1.0, 3.0])), target=None
    )
    samples = [
        sample_gradients(subject, Weight(), [[i], [j]], examples_seen=0)
        for i, j in product(range(2), repeat=2)
    ]
    scale = estimate_noise_scale(samples)
    assert (scale.grad_sq_norm, scale.trace_covariance) == pytest.approx((4.0, 1.0), rel=1e-12)
    assert scale.noise_scale == pytest.approx(0.25, rel=1e-12)
    ratios = [noise / signal for signal, noise in map(terms, samples)]
    assert np.mean(ratios) == pytest.approx(1 / 3)  # what averaging ratios would have given


def test_updates_that_hardly_move_recover_the_truth_within_their_interval() -> None:
    recipe = tiny.task().recipe.replace(lr=1e-9)
    found = []
    for seed in range(12):
        subject = task(recipe=recipe)
        signal, covariance = moments(per_example_gradients(build_model(subject, seed=seed)), None)
        scale = measure_noise_updates(subject, updates=12, batch_size=32, seed=seed)
        assert scale.num_samples == 12
        assert scale.examples_seen == 11 * 32
        high = scale.high or np.inf
        found.append(scale.low <= covariance / signal <= high)
    assert sum(found) >= 9  # of 12 at a nominal 90 %: fewer happen once in 40
