"""Built-in tasks pass their own check, and absent data names the package that brings it."""

import builtins
import importlib
from pathlib import Path
from typing import Any

import pytest

from rightbatch.core.errors import MissingDataError
from rightbatch.tasks.builtin import (
    BUILTIN_TASKS,
    FASHION_MNIST_ROOT,
    FASHION_MNIST_VARIABLE,
    fashion_mnist_root,
    is_data_present,
)
from rightbatch.tasks.check import check_task
from rightbatch.tasks.load import load_task


@pytest.mark.parametrize("name", BUILTIN_TASKS)
def test_a_built_in_task_passes_its_own_check(name: str) -> None:
    if not is_data_present(name):
        pytest.skip(f"the data of {name} is not installed")
    facts = check_task(load_task(name))
    assert (facts.name, facts.spec) == (name, name)
    assert facts.target is not None
    assert facts.num_valid_examples > 0


@pytest.mark.parametrize("name", BUILTIN_TASKS)
def test_the_table_points_to_functions_that_are_there(name: str) -> None:
    task = BUILTIN_TASKS[name]
    assert callable(getattr(importlib.import_module(task.module), task.factory))


def test_digits_are_split_once_and_scaled() -> None:
    task = load_task("digits")
    assert (task.num_train_examples, task.num_valid_examples) == (1437, 360)
    image, label = task.train_data[0]
    assert image.shape == (1, 8, 8)
    assert 0 <= float(image.min()) <= float(image.max()) <= 1
    again = load_task("digits").train_data[0]
    assert (image == again[0]).all()
    assert label == again[1]
    assert sum(p.numel() for p in task.model().parameters()) == 26_122


def test_absent_fashion_mnist_names_the_package_and_both_ways_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FASHION_MNIST_VARIABLE, str(tmp_path))
    assert fashion_mnist_root() == tmp_path
    assert not is_data_present("fashion-mnist")
    with pytest.raises(MissingDataError, match="package dataset-fashion-mnist") as caught:
        load_task("fashion-mnist")
    assert str(tmp_path) in caught.value.found
    assert "apt-get install dataset-fashion-mnist" in caught.value.hint
    assert "apt-get download dataset-fashion-mnist && dpkg -x" in caught.value.hint
    assert f"export {FASHION_MNIST_VARIABLE}=" in caught.value.hint


def test_the_data_lies_where_debian_puts_it_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FASHION_MNIST_VARIABLE, raising=False)
    assert fashion_mnist_root() == Path(FASHION_MNIST_ROOT)


def test_absent_scikit_learn_names_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_sklearn(name: str, *rest: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError("No module named 'sklearn'")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(
        MissingDataError, match=r"scikit-learn is not installed.*\n.*rightbatch\[examples\]"
    ):
        load_task("digits")
