"""scikit-learn's 1,797 handwritten digits: small enough to measure and train in seconds."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from rightbatch.core.errors import MissingDataError
from rightbatch.core.recipe import Recipe, Target
from rightbatch.tasks.builtin.classify import accuracy, cross_entropy
from rightbatch.tasks.task import Task

NUM_TRAIN = 1437  # 80 %, as in scikit-learn's own examples; the split is fixed


def load_digits() -> tuple[TensorDataset, TensorDataset]:
    """Images float32 [N, 1, 8, 8] in 0..1 and labels int64 [N], as training and validation sets.

    Raises:
        MissingDataError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        hint = "pip install 'rightbatch[examples]'"
        raise MissingDataError(
            "scikit-learn is not installed", need="its digits data set", hint=hint
        ) from error
    images, labels = cast("tuple[np.ndarray, np.ndarray]", datasets.load_digits(return_X_y=True))
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.tensor(images[order] / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels[order], dtype=torch.int64)
    return TensorDataset(x[:NUM_TRAIN], y[:NUM_TRAIN]), TensorDataset(x[NUM_TRAIN:], y[NUM_TRAIN:])


def build_mlp() -> nn.Module:
    """Two hidden layers of 128, 26,122 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


class DigitsCNN(nn.Module):
    """Two 3x3 convolutions with BatchNorm, global average pooling, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 10] from images [B, 1, 8, 8]."""
        return self.head(self.features(x).mean(dim=(2, 3)))


def digits() -> Task:
    """An MLP with AdamW, to 97 % validation accuracy."""
    train, valid = load_digits()
    return Task(
        name="digits",
        model=build_mlp,
        train_data=train,
        valid_data=valid,
        loss=cross_entropy,
        evaluate=accuracy,
        recipe=Recipe(optimizer="adamw", lr=1e-3, batch_size=32, epochs=30, weight_decay=0.01),
        target=Target("accuracy", 0.97),
    )


def digits_cnn() -> Task:
    """A convolution net with BatchNorm and SGD with momentum, to 97 % validation accuracy."""
    train, valid = load_digits()
    return Task(
        name="digits-cnn",
        model=DigitsCNN,
        train_data=train,
        valid_data=valid,
        loss=cross_entropy,
        evaluate=accuracy,
        recipe=Recipe(
            optimizer="sgd", lr=0.05, momentum=0.9, batch_size=32, epochs=30, weight_decay=5e-4
        ),
        target=Target("accuracy", 0.97),
    )
