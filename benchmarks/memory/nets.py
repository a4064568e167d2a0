"""Three small nets with synthetic data, in plain torch: other tools' environments import this too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

NUM_EXAMPLES = 16384


class Net(NamedTuple):
    build: Callable[[], nn.Module]
    data: Callable[[], TensorDataset]
    optimizer: Callable[[Any], torch.optim.Optimizer]


def loss(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy over examples or tokens."""
    x, y = batch
    logits = model(x)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            part.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(c, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


def mlp() -> nn.Module:
    """Much to remember and little to compute, so that a hundred runs are affordable."""
    return nn.Sequential(
        nn.Linear(512, 4096),
        *(part for _ in range(8) for part in (nn.GELU(), nn.LayerNorm(4096))),
        nn.Linear(4096, 10),
    )


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False),
        *(Residual(32) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def transformer() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(1000, 128),
        *(Block(128, 4) for _ in range(4)),
        nn.LayerNorm(128),
        nn.Linear(128, 1000),
    )


def _data(inputs: Tensor, classes: int, *shape: int) -> TensorDataset:
    return TensorDataset(inputs, torch.randint(0, classes, (len(inputs), *shape)))


def vectors() -> TensorDataset:
    torch.manual_seed(0)
    return _data(torch.randn(NUM_EXAMPLES, 512), 10)


def images() -> TensorDataset:
    torch.manual_seed(0)
    return _data(torch.randn(NUM_EXAMPLES // 16, 3, 32, 32), 10)


def tokens() -> TensorDataset:
    torch.manual_seed(0)
    return _data(torch.randint(0, 1000, (NUM_EXAMPLES // 16, 64)), 1000, 64)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


NETS = {
    "mlp": Net(mlp, vectors, adamw),
    "residual": Net(residual, images, sgd),
    "transformer": Net(transformer, tokens, adamw),
}
