"""Small networks in float64 that use every layer the per-example norms know, each in its own way."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

torch.set_num_threads(1)

N = 9


class Tied(nn.Module):
    """A language model whose embedding is its head, looked up twice."""

    def __init__(self, *, functional: bool = False) -> None:
        super().__init__()
        self.word, self.inner = nn.Embedding(11, 5), nn.Linear(5, 5)
        self.head = nn.Linear(5, 11, bias=False)
        self.head.weight = self.word.weight
        self.functional = functional

    def forward(self, ids: Tensor) -> Tensor:
        x = self.inner(self.word(ids) + self.word(ids.flip(1)))
        return F.linear(x, self.word.weight) if self.functional else self.head(x)


class Positions(nn.Module):
    """Adds positions to words: a table looked up once for all examples, or a plain parameter."""

    def __init__(self, *, table: bool) -> None:
        super().__init__()
        self.word, self.head = nn.Embedding(11, 5), nn.Linear(5, 3)
        self.table = nn.Embedding(9, 5) if table else None
        self.raw = None if table else nn.Parameter(torch.randn(1, 9, 5))

    def forward(self, ids: Tensor) -> Tensor:
        t = ids.shape[1]
        if self.table is not None:
            where = self.table(torch.arange(t))
        else:
            assert self.raw is not None
            where = self.raw[:, :t]
        return self.head(torch.tanh(self.word(ids) + where))


class Reused(nn.Module):
    """One linear layer and one normalisation called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.layer(self.norm(x)))
        return self.head(x)


class Folded(nn.Module):
    """Folds positions or frames into rows of the batch, example by example."""

    def __init__(self) -> None:
        super().__init__()
        self.frames, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4)
        self.rows = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:  # [N, frames, 5, 5]
        maps = self.norm(self.frames(x.flatten(0, 1).unsqueeze(1)))
        return self.rows(maps.mean((2, 3))).view(len(x), -1)


class Scaled(nn.Module):
    """Owns a parameter and is no known layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(size) + 0.5)
        self.inner = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.inner(x * self.scale) * self.scale)


class Attention(nn.Module):
    """``nn.MultiheadAttention``, whose inner projection is never called as a module."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.attention(x, x, x, need_weights=False)[0]
        return y if self.batch_first else y.transpose(0, 1)


class Recurrent(nn.Module):
    """A recurrent layer and a head on its last state."""

    def __init__(self, kind: type[nn.RNNBase], *, batch_first: bool = True) -> None:
        super().__init__()
        self.cell = kind(3, 4, batch_first=batch_first)
        self.head = nn.Linear(4, 2)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x if self.batch_first else x.transpose(0, 1))[1]
        return self.head((state[0] if isinstance(state, tuple) else state)[-1])


@dataclass(frozen=True, slots=True)
class Case:
    """A network and its input, without and with examples in the first dimension."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]


def numbers(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(N, *shape, dtype=torch.float64)


def words(length: int, vocabulary: int = 11) -> Callable[[], Tensor]:
    return lambda: torch.randint(vocabulary, (N, length))


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers)


def conv1(*args: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv1d(*args, **options)


def conv2(*args: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*args, **options)


KNOWN = {
    "linear": Case(lambda: sequence(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), numbers(4)),
    "linear, no bias": Case(lambda: nn.Linear(4, 5, bias=False), numbers(4)),
    "linear, short sequence": Case(lambda: sequence(nn.Linear(8, 9), nn.Tanh()), numbers(2, 8)),
    "linear, long sequence": Case(lambda: sequence(nn.Linear(4, 5), nn.Tanh()), numbers(40, 4)),
    "linear, two positions dimensions": Case(lambda: sequence(nn.Linear(4, 5)), numbers(6, 5, 4)),
    "conv1d": Case(conv1(3, 4, 3), numbers(3, 20)),
    "conv1d dilated, same": Case(conv1(3, 4, 4, dilation=3, padding="same"), numbers(3, 21)),
    "conv1d stride": Case(conv1(4, 2, 5, stride=3, padding=2), numbers(4, 23)),
    "conv2d": Case(conv2(2, 6, 3, padding=1), numbers(2, 7, 6)),
    "conv2d, more in than out": Case(conv2(6, 2, 3, padding=(2, 1)), numbers(6, 7, 6)),
    "conv2d stride, dilation": Case(
        conv2(4, 3, (3, 2), stride=(2, 3), dilation=(1, 2), padding=(0, 2)), numbers(4, 9, 11)
    ),
    "conv2d groups": Case(conv2(4, 6, 3, groups=2, stride=2), numbers(4, 9, 8)),
    "conv2d depthwise": Case(conv2(4, 4, 3, groups=4, padding=1, bias=False), numbers(4, 9, 8)),
    "conv2d 1x1 stride": Case(conv2(6, 3, 1, stride=2), numbers(6, 9, 9)),
    "embedding": Case(lambda: sequence(nn.Embedding(11, 4), nn.Linear(4, 2)), words(7)),
    "embedding, padding": Case(lambda: nn.Embedding(11, 4, padding_idx=2), words(30)),
    "layer norm": Case(lambda: sequence(nn.Linear(4, 4), nn.LayerNorm(4)), numbers(5, 4)),
    "layer norm, two dimensions": Case(lambda: nn.LayerNorm((5, 4)), numbers(5, 4)),
    "layer norm, no bias": Case(lambda: nn.LayerNorm(4, bias=False), numbers(3, 4)),
    "rms norm": Case(lambda: sequence(nn.Linear(4, 4), nn.RMSNorm(4)), numbers(5, 4)),
    "group norm": Case(lambda: sequence(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)), numbers(2, 6, 6)),
    "tied": Case(Tied, words(6)),
    "reused": Case(Reused, numbers(4)),
    "reused, sequence": Case(Reused, numbers(20, 4)),
    "folded": Case(Folded, numbers(3, 5, 5)),
    "positions, table": Case(lambda: Positions(table=True), words(N)),
}
OTHERS = {
    "positions, parameter": Case(lambda: Positions(table=False), words(6)),
    "scaled": Case(lambda: sequence(Scaled(4), Scaled(4)), numbers(4)),
    "attention": Case(lambda: Attention(batch_first=True), numbers(5, 4)),
    "attention, sequence first": Case(lambda: Attention(batch_first=False), numbers(5, 4)),
    "instance norm": Case(lambda: nn.InstanceNorm1d(3, affine=True), numbers(3, 8)),
    "bilinear": Case(lambda: _Twice(nn.Bilinear(4, 4, 2)), numbers(4)),
    "conv3d": Case(lambda: nn.Conv3d(2, 3, 2), numbers(2, 4, 4, 4)),
    "conv transpose": Case(lambda: nn.ConvTranspose2d(3, 2, 3, stride=2), numbers(3, 4, 4)),
    "circular": Case(conv1(3, 4, 3, padding=1, padding_mode="circular"), numbers(3, 9)),
}


class _Twice(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x)


def example_loss(output: Tensor, weights: Tensor) -> Tensor:
    """One example's loss, [*] to []; not linear, so that the layers' order matters."""
    return (torch.sin(output) * weights).sum()


def forward_loss(model: nn.Module, x: Tensor) -> Tensor:
    """Mean over examples."""
    output = model(x)
    return torch.stack([example_loss(o, weights_like(o)) for o in output]).mean()


def weights_like(output: Tensor) -> Tensor:
    return torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).view(output.shape)


def reference(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Per-example gradients by ``torch.func``, one example at a time, [N, *]."""
    values = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], example: Tensor) -> Tensor:
        output = functional_call(model, parameters, (example.unsqueeze(0),))[0]
        return example_loss(output, weights_like(output))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        return vmap(grad(loss), in_dims=(None, 0))(values, x)
