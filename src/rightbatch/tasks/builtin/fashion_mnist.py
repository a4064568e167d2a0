"""Fashion-MNIST: 60,000 + 10,000 grey images of clothes, 28x28, from Debian's package (MIT licence)."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from rightbatch.core.errors import MissingDataError
from rightbatch.core.recipe import Recipe, Target
from rightbatch.tasks.builtin import FASHION_MNIST_VARIABLE, fashion_mnist_root
from rightbatch.tasks.builtin.classify import accuracy, cross_entropy
from rightbatch.tasks.task import Task

MEAN, STD = 0.286, 0.353  # of the training pixels in 0..1


def load_fashion_mnist(split: str) -> TensorDataset:
    """Images float32 [N, 1, 28, 28], standardised, and labels int64 [N]; split ``train`` or ``t10k``.

    Raises:
        MissingDataError: the files are absent; names the package and the two ways to get it.
    """
    images = _read_idx(f"{split}-images-idx3-ubyte.gz", header_bytes=16).reshape(-1, 1, 28, 28)
    labels = _read_idx(f"{split}-labels-idx1-ubyte.gz", header_bytes=8)
    x = (torch.tensor(images, dtype=torch.float32) / 255.0 - MEAN) / STD
    return TensorDataset(x, torch.tensor(labels, dtype=torch.int64))


def _read_idx(name: str, header_bytes: int) -> np.ndarray:
    path: Path = fashion_mnist_root() / name
    if not path.is_file():
        hint = (
            "as root: apt-get install dataset-fashion-mnist; without root:"
            " apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist_*.deb DIR"
            f" && export {FASHION_MNIST_VARIABLE}=DIR/usr/share/datasets/fashion-mnist"
        )
        raise MissingDataError(
            f"no {path}", need="the files of Debian's package dataset-fashion-mnist", hint=hint
        )
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header_bytes)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps [B, C_out, H / stride, W / stride] from [B, C_in, H, W]."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def build_resnet() -> nn.Module:
    """A strided stem, three residual blocks, pooling, a linear layer: about 43,000 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        ResidualBlock(16, 16, stride=1),
        ResidualBlock(16, 32, stride=2),
        ResidualBlock(32, 32, stride=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def fashion_mnist() -> Task:
    """A small residual net and SGD with momentum, to 87 % validation accuracy."""
    return Task(
        name="fashion-mnist",
        model=build_resnet,
        train_data=load_fashion_mnist("train"),
        valid_data=load_fashion_mnist("t10k"),
        loss=cross_entropy,
        evaluate=accuracy,
        recipe=Recipe(
            optimizer="sgd", lr=0.01, momentum=0.9, batch_size=32, epochs=5, weight_decay=5e-4
        ),
        target=Target("accuracy", 0.87),
    )
