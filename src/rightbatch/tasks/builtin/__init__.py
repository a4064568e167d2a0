"""Built-in tasks, on real data that installs from a package and is never downloaded."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

FASHION_MNIST_ROOT = "/usr/share/datasets/fashion-mnist"
FASHION_MNIST_VARIABLE = "RIGHTBATCH_FASHION_MNIST"


class Builtin(NamedTuple):
    """Where a built-in task is defined and where its data comes from."""

    module: str
    factory: str
    summary: str
    data: str
    """The package that brings the data."""


_DIGITS, _FASHION = "rightbatch.tasks.builtin.digits", "rightbatch.tasks.builtin.fashion_mnist"
BUILTIN_TASKS = {
    "digits": Builtin(_DIGITS, "digits", "8x8 digits, an MLP, AdamW", "scikit-learn"),
    "digits-cnn": Builtin(
        _DIGITS,
        "digits_cnn",
        "8x8 digits, a convolution net with BatchNorm, SGD with momentum",
        "scikit-learn",
    ),
    "fashion-mnist": Builtin(
        _FASHION,
        "fashion_mnist",
        "28x28 clothes, a small residual net, SGD with momentum",
        "Debian's dataset-fashion-mnist",
    ),
}


def fashion_mnist_root() -> Path:
    """The folder of Debian's package, or the one that RIGHTBATCH_FASHION_MNIST names."""
    return Path(os.environ.get(FASHION_MNIST_VARIABLE, FASHION_MNIST_ROOT))


def is_data_present(name: str) -> bool:
    """Whether a built-in task can be built on this machine, found out without importing its data."""
    if BUILTIN_TASKS[name].data == "scikit-learn":
        return importlib.util.find_spec("sklearn") is not None
    return (fashion_mnist_root() / "train-images-idx3-ubyte.gz").is_file()
