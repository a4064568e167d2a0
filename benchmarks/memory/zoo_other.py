"""Nets that are neither images nor transformers, each with something that predictors get wrong."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


def mlp(*widths: int, dropout: float = 0.0) -> nn.Module:
    parts: list[nn.Module] = []
    for i, o in pairwise(widths[:-1]):
        parts += [nn.Linear(i, o), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*parts, nn.Linear(*widths[-2:]))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], width: int = 256, vocabulary: int = 2000) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = kind(width, width, num_layers=2, batch_first=True, dropout=0.2)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0])


class Packed(nn.Module):
    """Only the true lengths are computed, so shapes depend on data."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(64, 128, batch_first=True), nn.Linear(128, 10)

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
        sequence = nn.utils.rnn.pack_padded_sequence(x, sizes, batch_first=True, enforce_sorted=False)
        y, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(sequence)[0], batch_first=True)
        return self.head(y.mean(1))


class Experts(nn.Module):
    """Each example goes to one of four experts: shapes depend on weights and data."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.embed, self.gate, self.head = (
            nn.Linear(i, o) for i, o in ((784, width), (width, 4), (width, 10))
        )
        self.experts = nn.ModuleList(mlp(width, 4 * width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        chosen, y = self.gate(x).argmax(-1), torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero().squeeze(1)
            y = y.index_add(0, rows, expert(x[rows]))
        return self.head(x + y)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grads[0] * (s + x * s * (1 - s))


class CustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(784, 2048), nn.Linear(2048, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(Swish.apply(self.one(x)))


class Transcriber(nn.Module):
    """Log-probabilities [frames, batch, symbols] for CTC."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(40, 256, 5, padding=2), nn.ReLU(), nn.Conv1d(256, 32, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).permute(2, 0, 1).log_softmax(-1)


class Encoder(nn.Module):
    """torch's own transformer layers, whose attention is ``nn.MultiheadAttention``."""

    def __init__(self, width: int = 256, vocabulary: int = 1000) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.1, batch_first=True)
        self.embed = nn.Embedding(vocabulary, width)
        self.body = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)))


def bag() -> nn.Module:
    """An embedding whose gradient is sparse."""
    return nn.Sequential(nn.Embedding(50000, 64, sparse=True), nn.Flatten(), nn.Linear(64 * 20, 10))
