"""Tasks so small that any stage runs on them in a fraction of a second."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from rightbatch.core.recipe import Recipe, Target
from rightbatch.tasks.task import Loss, Task

torch.set_num_threads(1)

NUM_EXAMPLES, NUM_FEATURES = 48, 3


def data(num_examples: int = NUM_EXAMPLES, seed: int = 0) -> TensorDataset:
    """Noisy values of a fixed linear function: inputs [N, 3], targets [N, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_examples, NUM_FEATURES, generator=generator)
    noise = 0.5 * torch.randn(num_examples, 1, generator=generator)
    return TensorDataset(x, x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3 + noise)


def linear() -> nn.Module:
    """Four parameters."""
    return nn.Linear(NUM_FEATURES, 1)


def batch_norm() -> nn.Module:
    """Normalises over the batch, so that a single example fails."""
    return nn.Sequential(nn.Linear(NUM_FEATURES, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))


class FrozenNorm(nn.Module):
    """Keeps its BatchNorm in evaluation mode, as fine-tuning does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = batch_norm()

    def train(self, mode: bool = True) -> Self:
        """Evaluation mode for every BatchNorm, whatever the rest is in."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Values [N, 1]."""
        return self.layers(x)


def squared_error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
    """Summed over the batch."""
    x, y = batch
    return Loss(F.mse_loss(model(x), y, reduction="sum"), len(y))


def mean_squared_error(model: nn.Module, batches: Any) -> dict[str, float]:
    """Over all batches."""
    losses = [squared_error(model, batch) for batch in batches]
    return {"mse": float(sum(loss.total for loss in losses)) / sum(int(loss.count) for loss in losses)}


def task(**changes: Any) -> Task:
    """A linear regression on 48 examples, SGD at batch 8."""
    values: dict[str, Any] = {
        "name": "tiny",
        "model": linear,
        "train_data": data(),
        "valid_data": data(16, seed=1),
        "loss": squared_error,
        "evaluate": mean_squared_error,
        "recipe": Recipe(optimizer="sgd", lr=0.01, batch_size=8, epochs=4),
        "target": Target("mse", 1e-6, higher_is_better=False),
    }
    return Task(**(values | changes))
