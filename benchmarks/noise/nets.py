"""Seven nets of six kinds on data that needs no download, each in two sizes.

``NETS`` are small enough that every example's gradient in float64 is exact truth; ``LARGE`` are the
same kinds at the size and batch at which the cost of a meter is timed. Digits and source text are
real data; the sequence with dense, rare labels is synthetic.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY = 96
Data = tuple[Tensor, Tensor]


class Net(NamedTuple):
    model: Callable[[], nn.Module]
    data: Callable[[int], Data]
    """How many examples -> inputs [N, ...], targets [N, ...]."""
    example_losses: Callable[[Tensor, Tensor], Tensor]
    """``(outputs, targets) -> [B]``: each example's mean loss over its targets."""
    batch_size: int
    coupled: bool = False
    """Whether BatchNorm couples the examples of a batch."""


def mean_loss(net: Net, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean over the examples of a batch, shape []."""
    return net.example_losses(model(x), y).mean()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


# Models


def mlp(inputs: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


def cnn(widths: tuple[int, ...], norm: str) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in zip((1, *widths[:-1]), widths, strict=True):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, stride=1 if before == 1 else 2),
            nn.BatchNorm2d(after) if norm == "batch" else nn.GroupNorm(4, after),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * widths[-1], 10))


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
            part.reshape(b, t, self.heads, c // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(c, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Characters to the next character; positions enter as ids, so that each example has its own."""

    def __init__(self, width: int, layers: int, length: int, *, tied: bool) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.05)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        where = torch.arange(ids.shape[1], device=ids.device).repeat(len(ids), 1)
        return self.head(self.norm(self.blocks(self.tokens(ids) + self.positions(where))))


class Dilated(nn.Module):
    """One-hot letters to one logit for each position, through residual dilated convolutions."""

    def __init__(self, width: int, dilations: tuple[int, ...], kernel: int = 3) -> None:
        super().__init__()
        self.enter = nn.Conv1d(4, width, 11, padding=5)
        self.norms = nn.ModuleList(nn.GroupNorm(4, width) for _ in dilations)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=d * (kernel // 2), dilation=d) for d in dilations
        )
        self.out = nn.Conv1d(width, 1, 1)
        nn.init.constant_(self.out.bias, -3.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = h + convolution(F.relu(norm(h)))
        return self.out(F.relu(h))[:, 0]


class Recurrent(nn.Module):
    """Rows of an image, one a step, through a GRU; the last state is classified."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(inputs, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(x[:, 0])
        return self.head(states[:, -1])


# Data


@cache
def digits() -> Data:
    """1,797 handwritten digits, [N, 1, 8, 8], shuffled once."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order], torch.tensor(found.target).long()[order]


def images(num_examples: int, *, enlarged: int = 1) -> Data:
    """The digits, repeated where more are asked for, each pixel ``enlarged`` times."""
    x, y = digits()
    which = torch.arange(num_examples) % len(y)
    return F.interpolate(x[which], scale_factor=enlarged) if enlarged > 1 else x[which], y[which]


@cache
def source_text() -> Tensor:
    """Characters of Python's own standard library as ids below 96."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:60]
    text = "".join(file.read_text("utf-8", "ignore") for file in files)
    codes = np.frombuffer(text.encode("ascii", "replace"), np.uint8).astype(np.int64)
    return torch.tensor(np.where((codes >= 32) & (codes < 127), codes - 31, 0))


def characters(num_examples: int, *, length: int) -> Data:
    text = source_text()
    starts = torch.randint(len(text) - length - 1, (num_examples,), generator=_generator())
    rows = text[starts[:, None] + torch.arange(length + 1)]
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def letters(num_examples: int, *, length: int) -> Data:
    """Random letters; about 2 % of positions are positive, by a motif around a fixed pair."""
    generator = _generator()
    ids = torch.randint(4, (num_examples, length), generator=generator)
    x = F.one_hot(ids, 4).transpose(1, 2).float()
    motif = torch.randn(1, 4, 9, generator=generator)
    score = F.conv1d(x, motif, padding=4)[:, 0]
    pair = (ids == 2) & (ids.roll(-1, 1) == 3)
    return x, (pair & (score > score[pair].quantile(0.7))).float()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


# Losses of single examples


def of_classes(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def of_characters(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)


def of_positions(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1)


NETS = {
    "mlp": Net(partial(mlp, 64, 32), images, of_classes, 64),
    "cnn-groupnorm": Net(partial(cnn, (8, 16), "group"), images, of_classes, 64),
    "cnn-batchnorm": Net(partial(cnn, (8, 16), "batch"), images, of_classes, 64, coupled=True),
    "transformer": Net(
        partial(Transformer, 24, 1, 24, tied=False), partial(characters, length=24), of_characters, 32
    ),
    "transformer-tied": Net(
        partial(Transformer, 24, 1, 24, tied=True), partial(characters, length=24), of_characters, 32
    ),
    "dilated": Net(partial(Dilated, 12, (1, 2, 4)), partial(letters, length=96), of_positions, 32),
    "gru": Net(partial(Recurrent, 8, 32), images, of_classes, 64),
}

LARGE = {
    "mlp": Net(partial(mlp, 1024, 512), partial(images, enlarged=4), of_classes, 128),
    "cnn-groupnorm": Net(
        partial(cnn, (32, 64, 128), "group"), partial(images, enlarged=4), of_classes, 32
    ),
    "cnn-batchnorm": Net(
        partial(cnn, (32, 64, 128), "batch"), partial(images, enlarged=4), of_classes, 32, coupled=True
    ),
    "transformer": Net(
        partial(Transformer, 192, 4, 128, tied=False), partial(characters, length=128), of_characters, 8
    ),
    "transformer-tied": Net(
        partial(Transformer, 192, 4, 128, tied=True), partial(characters, length=128), of_characters, 8
    ),
    "dilated": Net(  # the first two groups of SpliceAI's blocks
        partial(Dilated, 32, (1, 1, 2, 2, 4, 4, 8, 8), 11),
        partial(letters, length=1000),
        of_positions,
        8,
    ),
    "dilated-kernel-3": Net(
        partial(Dilated, 32, (1, 2, 4, 8)), partial(letters, length=1000), of_positions, 8
    ),
    "gru": Net(partial(Recurrent, 32, 256), partial(images, enlarged=4), of_classes, 32),
}
