"""Eigenvalues, trace and products against the whole Hessian of small models, in float64."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tiny
from rightbatch.core.errors import InvalidTaskError
from rightbatch.tasks.build import build_model
from rightbatch.tasks.task import Loss, Task
from rightbatch.validate.session import validate
from rightbatch.validate.sharpness import (
    SAMPLES,
    Curvature,
    estimate_trace,
    inspect_sharpness,
    sam_sharpness,
    top_eigenvalues,
)


def tanh_net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))


def with_batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1)
    )


def curvature(model: object = tanh_net, **changes: int) -> Curvature:
    task = tiny.task(model=model)
    return Curvature.at(task, build_model(task), double=True, micro_batch_size=20, **changes)


def dense(found: Curvature) -> Tensor:
    """The Hessian by torch's own second derivatives of one mean over all the examples."""
    names = [name for name, _ in found.model.named_parameters()]
    batch = [torch.cat([b[i] for b, _ in found.batches]) for i in range(2)]

    def loss(flat: Tensor) -> Tensor:
        pieces, at = {}, 0
        for name, parameter in found.model.named_parameters():
            pieces[name] = flat[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
        assert set(pieces) == set(names)
        return F.mse_loss(torch.func.functional_call(found.model, pieces, (batch[0],)), batch[1])

    start = torch.cat([p.detach().reshape(-1) for p in found.parameters])
    return torch.autograd.functional.hessian(loss, start)


def flat(found: Curvature) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in found.parameters])


@pytest.mark.parametrize("model", [tanh_net, with_batch_norm, tiny.linear])
def test_eigenvalues_are_those_of_the_whole_hessian(model: object) -> None:
    found = curvature(model)
    whole = dense(found)
    values = torch.linalg.eigvalsh(whole).flip(0)[:3].numpy()
    top = top_eigenvalues(found.product, flat(found), count=3)
    np.testing.assert_allclose(top.values, values, rtol=1e-9, atol=1e-12)
    assert max(top.residuals) <= 1e-9 * abs(values[0])


def test_products_are_those_of_the_whole_hessian() -> None:
    found = curvature()
    vector = torch.randn(
        len(flat(found)), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(found.product(vector), dense(found) @ vector, rtol=1e-10, atol=1e-12)


def test_a_few_products_bound_the_largest_eigenvalue_by_their_residual() -> None:
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(200, 200, dtype=torch.float64, generator=generator)
    matrix = root + root.T
    exact = float(torch.linalg.eigvalsh(matrix)[-1])
    for iterations in (5, 10, 20):
        top = top_eigenvalues(lambda v: matrix @ v, matrix[0], iterations=iterations)
        assert abs(top.values[0] - exact) <= top.residuals[0]
        assert top.residuals[0] > 1e-9


def test_the_trace_lies_within_two_standard_errors_in_nineteen_of_twenty_repeats() -> None:
    found = curvature()
    whole = dense(found)
    exact = float(whole.trace())
    repeats = [
        estimate_trace(lambda vs: [whole @ v for v in vs], flat(found), seed=seed)
        for seed in range(200)
    ]
    inside = sum(abs(trace.value - exact) <= 2 * trace.standard_error for trace in repeats)
    assert 183 <= inside <= 198  # 95 % of 200, give or take two standard errors
    variance = 2 * (float((whole**2).sum()) - float((whole.diagonal() ** 2).sum()))
    spread = float(np.std([trace.value for trace in repeats]))
    assert spread == pytest.approx((variance / SAMPLES) ** 0.5, rel=0.15)
    one = estimate_trace(found.products, flat(found))
    assert one.value == pytest.approx(repeats[0].value, rel=1e-9)


def test_sam_sharpness_of_a_quadratic_is_known_in_closed_form() -> None:
    found = curvature(tiny.linear)
    whole, gradient, rho = dense(found), found.gradient(), 0.05
    step = rho * gradient / gradient.norm()
    rise = float(gradient @ step + step @ whole @ step / 2)
    before = flat(found)
    assert sam_sharpness(found, rho) == pytest.approx(rise, rel=1e-9)
    assert torch.equal(flat(found), before)


def test_the_adaptive_variant_ignores_a_rescaling_that_the_plain_one_sees() -> None:
    def relu_net() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1))

    plain, scaled = curvature(relu_net), curvature(relu_net)
    with torch.no_grad():
        first, last = scaled.model[0], scaled.model[2]  # type: ignore[index]
        first.weight *= 5
        first.bias *= 5
        last.weight /= 5
    assert scaled.loss() == pytest.approx(plain.loss(), rel=1e-9)
    adaptive = [sam_sharpness(one, adaptive=True) for one in (plain, scaled)]
    assert adaptive[1] == pytest.approx(adaptive[0], rel=1e-6)
    usual = [sam_sharpness(one) for one in (plain, scaled)]
    assert usual[1] > 1.5 * usual[0]
    tops = [top_eigenvalues(one.product, flat(one)).values[0] for one in (plain, scaled)]
    assert tops[1] > 2 * tops[0]


def test_the_model_is_left_as_it_was_and_looked_at_in_evaluation_mode() -> None:
    task = tiny.task(model=with_batch_norm)
    model = build_model(task)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (inspect_sharpness(task, model) for _ in range(2))
    assert first == second
    assert first["examples"] == tiny.NUM_EXAMPLES
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_attention_is_differentiated_twice_though_its_fast_kernel_is_not() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            rows = (x @ self.weight).view(1, 1, -1, 3)
            return F.scaled_dot_product_attention(rows, rows, rows)[0, 0, :, :1]

    found = curvature(Attention)
    top = top_eigenvalues(found.product, flat(found))
    assert top.residuals[0] <= 1e-8 * abs(top.values[0])


def test_a_weight_that_the_loss_does_not_use_has_no_curvature() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.used = nn.Linear(3, 2), tanh_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    found = curvature(Half)
    whole = dense(found)
    assert torch.all(whole[:8] == 0)
    vectors = torch.randn(3, len(whole), generator=torch.Generator().manual_seed(1)).double()
    for vector, image in zip(vectors, found.products(list(vectors)), strict=True):
        torch.testing.assert_close(image, whole @ vector, rtol=1e-10, atol=1e-12)
    assert torch.all(found.gradient()[:8] == 0)
    assert sam_sharpness(found) > 0


def test_a_loss_that_is_linear_in_its_weights_has_no_curvature() -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
        return Loss(model(batch[0]).sum(), len(batch[0]))

    task: Task = dataclasses.replace(tiny.task(), loss=loss)
    seen = inspect_sharpness(task, build_model(task))
    assert (seen["largest_eigenvalue"], seen["trace"]) == (0, 0)
    assert seen["sam"] > 0


class Once(torch.autograd.Function):
    """The identity, without a second derivative."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("no second derivative")
        return gradient


def differentiable_once() -> Task:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
        return Loss(Once.apply(model(batch[0])).square().sum(), len(batch[0]))

    return dataclasses.replace(tiny.task(), loss=loss)


def test_a_loss_without_second_derivatives_is_refused() -> None:
    task = differentiable_once()
    found = Curvature.at(task, build_model(task))
    with pytest.raises(InvalidTaskError, match="the Hessian of the loss raised"):
        found.product(flat(found))


def test_and_refused_before_a_comparison_is_begun(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    with pytest.raises(InvalidTaskError, match="the Hessian of the loss raised"):
        validate(differentiable_once(), 16, out=folder, seeds=2, sharpness=True)
    assert not folder.exists()
