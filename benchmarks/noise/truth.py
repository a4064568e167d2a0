"""What the noise scale truly is: every example's gradient in float64, and nothing estimated."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from nets import Net
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import TensorDataset

import rightbatch as rb


class Truth(NamedTuple):
    """|G|^2 and tr(Sigma) of draws with replacement, and how uncertain they are (0: not at all)."""

    grad_sq_norm: float
    trace_covariance: float
    errors: tuple[float, float] = (0.0, 0.0)

    @property
    def noise_scale(self) -> float:
        return self.trace_covariance / self.grad_sq_norm


def task_of(net: Net, x: Tensor, y: Tensor) -> rb.Task:
    """A net as a task, so that the package's own measurement runs on it."""

    def loss(model: nn.Module, batch: Any) -> rb.Loss:
        inputs, targets = batch
        return rb.Loss(net.example_losses(model(inputs), targets).sum(), len(inputs))

    return rb.Task(
        name="net",
        model=net.model,
        train_data=TensorDataset(x, y),
        valid_data=None,
        loss=loss,
        recipe=rb.Recipe(optimizer="adamw", lr=1e-3, batch_size=net.batch_size, epochs=1),
    )


def example_gradients(net: Net, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Gradients of every example's loss in float64: [N, D]."""
    twin = copy.deepcopy(model).double().train()
    x = x.double() if x.is_floating_point() else x
    y = y.double() if y.is_floating_point() else y
    values = {name: p.detach() for name, p in twin.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(twin, values, (x[None],), tie_weights=True)
        return net.example_losses(outputs, y[None])[0]

    if any(isinstance(module, nn.RNNBase) for module in model.modules()):  # vmap has no rule for them
        parameters = list(twin.parameters())
        losses = (net.example_losses(twin(x[i : i + 1]), y[i : i + 1])[0] for i in range(len(x)))
        rows = (torch.autograd.grad(one, parameters) for one in losses)
        return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    per_example = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=64)(values, x, y)
    return torch.cat([g.detach().flatten(1) for g in per_example.values()], dim=1)


def exact_truth(net: Net, model: nn.Module, x: Tensor, y: Tensor) -> Truth:
    """From every example's gradient."""
    gradients = example_gradients(net, model, x, y)
    signal = float(gradients.mean(0).square().sum())
    return Truth(signal, float(gradients.square().sum(1).mean()) - signal)


def group_truth(
    net: Net, model: nn.Module, x: Tensor, y: Tensor, *, size: int, num_groups: int, seed: int
) -> Truth:
    """From many groups in float64, where BatchNorm leaves no example a gradient of its own.

    Errors are standard errors over ten parts of the groups.
    """
    twin = copy.deepcopy(model).double().train()
    generator = torch.Generator().manual_seed(seed)
    rows: list[tuple[float, float]] = []
    for _ in range(10):
        total, squares, n = torch.zeros(()), 0.0, num_groups // 10
        for _ in range(n):
            which = torch.randint(len(x), (size,), generator=generator)
            loss = net.example_losses(twin(x[which].double()), y[which]).mean()
            found = torch.autograd.grad(loss, list(twin.parameters()))
            flat = torch.cat([g.flatten() for g in found])
            total, squares = total + flat, squares + float(flat.square().sum())
        mean_square = squares / n
        signal = (n * float((total / n).square().sum()) - mean_square) / (n - 1)
        rows.append((signal, size * (mean_square - signal)))
    values = np.array(rows)
    errors = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    return Truth(*values.mean(axis=0).tolist(), (float(errors[0]), float(errors[1])))
