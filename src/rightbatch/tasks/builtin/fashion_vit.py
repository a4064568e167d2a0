"""Fashion-MNIST with a small vision transformer: no normalization over the batch, AdamW."""

from __future__ import annotations

from torch import Tensor, nn

from rightbatch.core.recipe import Recipe, Target
from rightbatch.tasks.builtin.attention import Transformer
from rightbatch.tasks.builtin.classify import accuracy, cross_entropy
from rightbatch.tasks.builtin.fashion_mnist import load_fashion_mnist
from rightbatch.tasks.task import Task

_PATCH, _WIDTH, _DEPTH, _HEADS = 7, 48, 2, 4


class VisionTransformer(nn.Module):
    """16 patches of 7x7 pixels, two layers of width 48, the mean token: about 60,000 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, _WIDTH, _PATCH, stride=_PATCH)
        self.body = Transformer(_WIDTH, _DEPTH, _HEADS, (28 // _PATCH) ** 2, causal=False)
        self.head = nn.Linear(_WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, 10] from images [B, 1, 28, 28]."""
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.body(tokens).mean(dim=1))


def fashion_vit() -> Task:
    """A small vision transformer and AdamW, to 84 % validation accuracy."""
    return Task(
        name="fashion-vit",
        model=VisionTransformer,
        train_data=load_fashion_mnist("train"),
        valid_data=load_fashion_mnist("t10k"),
        loss=cross_entropy,
        evaluate=accuracy,
        recipe=Recipe(optimizer="adamw", lr=1e-3, batch_size=64, epochs=4, weight_decay=0.01),
        target=Target("accuracy", 0.84),
    )
