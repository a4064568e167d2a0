"""One AdamW update that also gives squared per-example norms, as other libraries offer it.

Each entry builds ``step(x, y)`` for a net, or raises as the library does where it cannot.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from nets import Net, mean_loss
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.optim import Optimizer

Step = Callable[[Tensor, Tensor], None]
Build = Callable[[Net, nn.Module, Optimizer], Step]


def vmap_grad(net: Net, model: nn.Module, optimizer: Optimizer) -> Step:
    """Per-example gradients by ``torch.func``; their mean is the update's gradient."""
    if net.coupled:
        raise ValueError("examples have no gradients of their own under BatchNorm")
    parameters = dict(model.named_parameters())

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return net.example_losses(functional_call(model, values, (x[None],)), y[None]).mean()

    per_example = vmap(grad(loss), in_dims=(None, 0, 0))

    def step(x: Tensor, y: Tensor) -> None:
        found = per_example({n: p.detach() for n, p in parameters.items()}, x, y)
        float(sum(g.flatten(1).square().sum(1) for g in found.values()).sum())
        for name, p in parameters.items():
            p.grad = found[name].mean(0)
        optimizer.step()

    step(*net.data(2))
    return step


def backpack_norms(net: Net, model: nn.Module, optimizer: Optimizer) -> Step:
    """BackPACK's ``BatchL2Grad``."""
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    x, y = net.data(2)
    if model(x).dim() != 2 or y.dim() != 1:
        raise ValueError("its losses take one class an example")
    model, loss = extend(model), extend(nn.CrossEntropyLoss())

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        with backpack(BatchL2Grad()):
            loss(model(x), y).backward()
        float(torch.stack([p.batch_l2 for p in model.parameters()]).sum())
        optimizer.step()

    step(*net.data(8))
    return step


def opacus_samples(net: Net, model: nn.Module, optimizer: Optimizer) -> Step:
    """Opacus with materialised per-example gradients."""
    from opacus.grad_sample import GradSampleModule

    wrapped = GradSampleModule(model, loss_reduction="mean")

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        mean_loss(net, wrapped, x, y).backward()
        float(sum(p.grad_sample.flatten(1).square().sum() for p in model.parameters()))
        for p in model.parameters():
            p.grad_sample = None
        optimizer.step()

    step(*net.data(8))
    return step


def opacus_ghost(net: Net, model: nn.Module, optimizer: Optimizer) -> Step:
    """Opacus's ghost clipping: norms without gradients."""
    from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
        GradSampleModuleFastGradientClipping,
    )

    wrapped = GradSampleModuleFastGradientClipping(
        model, loss_reduction="mean", max_grad_norm=1.0, use_ghost_clipping=True
    )

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        mean_loss(net, wrapped, x, y).backward()
        float(wrapped.get_norm_sample().square().sum())
        optimizer.step()

    step(*net.data(8))
    return step


def gns_pytorch(net: Net, model: nn.Module, optimizer: Optimizer) -> Step:
    """gns-pytorch over all parameters and examples: a backward for each example."""
    from gns_pytorch import compute_gns

    if net.coupled:
        raise ValueError("accepts BatchNorm, and is wrong: examples have no gradients of their own")

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        losses = net.example_losses(model(x), y)
        compute_gns(losses, model, param_percentage=1.0, batch_percentage=1.0)
        losses.mean().backward()
        optimizer.step()

    step(*net.data(8))
    return step


def differenced(net: Net, model: nn.Module, optimizer: Optimizer) -> Step:
    """AdaptDL's estimator for a single micro-batch: consecutive gradients; biased, as it says."""
    before: list[Tensor] = []

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        mean_loss(net, model, x, y).backward()
        now = [p.grad for p in model.parameters() if p.grad is not None]
        if before:
            total = torch._foreach_add(now, before)
            float(torch.stack(torch._foreach_norm(total)).square().sum())
        float(torch.stack(torch._foreach_norm(now)).square().sum())
        before[:] = [g.clone() for g in now]
        optimizer.step()

    return step


PEERS: dict[str, Build] = {
    "vmap(grad)": vmap_grad,
    "BackPACK BatchL2Grad": backpack_norms,
    "Opacus grad_sample": opacus_samples,
    "Opacus ghost": opacus_ghost,
    "gns-pytorch": gns_pytorch,
    "AdaptDL differenced": differenced,
}
