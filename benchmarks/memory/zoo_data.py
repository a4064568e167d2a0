"""Synthetic examples and losses of the zoo: few stored, many claimed, read by index like real data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import rightbatch as rb

NUM_EXAMPLES = 2**12


class Examples(Dataset[tuple[Tensor, ...]]):
    """``NUM_EXAMPLES`` examples that repeat the rows of a few stored ones."""

    def __init__(self, *columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return NUM_EXAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(column[index % len(column)] for column in self.columns)


def vectors(width: int, classes: int = 10, stored: int = 4096) -> Examples:
    torch.manual_seed(0)
    return Examples(torch.randn(stored, width), torch.randint(0, classes, (stored,)))


def images(side: int, classes: int = 1000, stored: int = 16) -> Examples:
    torch.manual_seed(0)
    return Examples(torch.randn(stored, 3, side, side), torch.randint(0, classes, (stored,)))


def masks(side: int, stored: int = 16) -> Examples:
    """Images with a class for every pixel."""
    torch.manual_seed(0)
    return Examples(torch.randn(stored, 3, side, side), torch.randint(0, 2, (stored, side, side)))


def tokens(length: int, vocabulary: int, stored: int = 64) -> Examples:
    torch.manual_seed(0)
    text = torch.randint(0, vocabulary, (stored, length + 1))
    return Examples(text[:, :-1].contiguous(), text[:, 1:].contiguous())


def sequences(length: int, stored: int = 16) -> Examples:
    """One-hot DNA with one of three classes at every position."""
    torch.manual_seed(0)
    bases = F.one_hot(torch.randint(0, 4, (stored, length)), 4).transpose(1, 2).float().contiguous()
    return Examples(bases, torch.randint(0, 3, (stored, length)))


def spectrograms(bands: int, frames: int, labels: int, stored: int = 64) -> Examples:
    """Features over time and the transcript, always ``labels`` long."""
    torch.manual_seed(0)
    return Examples(torch.randn(stored, bands, frames), torch.randint(1, 32, (stored, labels)))


def lengths(longest: int, width: int, stored: int = 4096) -> Examples:
    """Padded series with their true length."""
    torch.manual_seed(0)
    sizes, classes = torch.randint(10, longest + 1, (stored,)), torch.randint(0, 10, (stored,))
    return Examples(torch.randn(stored, longest, width), sizes, classes)


def classify(model: nn.Module, batch: Any) -> rb.Loss:
    """Cross-entropy over examples, pixels or positions."""
    x, y = batch
    return rb.Loss(F.cross_entropy(model(x), y, reduction="sum"), y.numel())


def language(model: nn.Module, batch: Any) -> rb.Loss:
    x, y = batch
    logits = model(x)
    loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1), reduction="sum")
    return rb.Loss(loss, y.numel())


def masked_language(model: nn.Module, batch: Any) -> rb.Loss:
    """Every seventh token is to be predicted, the others are ignored; logits are for all."""
    x, _ = batch
    ignored = torch.arange(x.shape[1]) % 7 > 0
    labels = x.masked_fill(ignored, -100)
    logits = model(x)
    loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), reduction="sum")
    return rb.Loss(loss, len(x) * len(range(0, x.shape[1], 7)))


def transcribe(model: nn.Module, batch: Any) -> Tensor:
    """CTC over log-probabilities [frames, batch, symbols]."""
    x, y = batch
    scores = model(x)
    frames = torch.full((len(y),), scores.shape[0])
    return F.ctc_loss(scores, y, frames, torch.full((len(y),), y.shape[1]))


def contrast(model: nn.Module, batch: Any) -> Tensor:
    """InfoNCE over all pairs of a batch: logits [2B, 2B]."""
    x, _ = batch
    z = F.normalize(model(torch.cat([x, x + 0.1])), dim=-1)
    similarity = z @ z.T / 0.1
    n = len(similarity)
    similarity = similarity.masked_fill(torch.eye(n, dtype=torch.bool), -1e9)
    return F.cross_entropy(similarity, torch.arange(n).roll(n // 2))


def gathered(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy written out with ``gather``, whose derivative is in place in a plain run."""
    x, y = batch
    logits = model(x)
    logits = logits - logits.max(dim=-1, keepdim=True)[0]
    negative = torch.log(torch.exp(logits).sum(dim=-1, keepdim=True)) - logits
    return torch.gather(negative, -1, y.unsqueeze(-1)).mean()


def packed(model: nn.Module, batch: Any) -> rb.Loss:
    x, sizes, y = batch
    return rb.Loss(F.cross_entropy(model(x, sizes), y, reduction="sum"), len(y))


def guarded(model: nn.Module, batch: Any) -> rb.Loss:
    """Read the loss, as guards against bad batches do."""
    loss = classify(model, batch)
    return loss if loss.total.item() < 1e6 else rb.Loss(loss.total * 0, loss.count)


def through_numpy(model: nn.Module, batch: Any) -> rb.Loss:
    """Weigh the loss by a number that is computed outside torch."""
    x, y = batch
    weight = float(np.abs(x.numpy()).mean())
    return rb.Loss(F.cross_entropy(model(x), y, reduction="sum") * weight, len(y))


def bag_of_words(model: nn.Module, batch: Any) -> rb.Loss:
    x, y = batch
    return rb.Loss(F.cross_entropy(model(x), y[:, 0], reduction="sum"), len(y))
