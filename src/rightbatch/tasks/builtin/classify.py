"""Loss and metric of the built-in classification tasks."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from rightbatch.tasks.task import Loss

Batch = tuple[Tensor, Tensor]


def cross_entropy(model: nn.Module, batch: Batch) -> Loss:
    """Summed cross-entropy of images [B, ...] against labels [B]."""
    images, labels = batch
    return Loss(F.cross_entropy(model(images), labels, reduction="sum"), count=len(labels))


def accuracy(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """Share of labels predicted, and mean cross-entropy, over all batches."""
    correct, total, loss = 0, 0, 0.0
    for images, labels in batches:
        logits = model(images)
        correct += int((logits.argmax(dim=1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
        total += len(labels)
    return {"accuracy": correct / total, "loss": loss / total}
