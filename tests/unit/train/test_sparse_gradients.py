"""Embeddings whose gradients are sparse: the exact step, the optimizer and the noise take them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from rightbatch.api import measure_noise
from rightbatch.core.errors import InvalidTaskError
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Recipe
from rightbatch.tasks.task import Loss, Task
from rightbatch.train.accumulate import accumulate
from rightbatch.train.exact import check_accumulation
from rightbatch.train.loop import train

GENERATOR = torch.Generator().manual_seed(0)
WORDS = torch.randint(0, 20, (48, 5), generator=GENERATOR)  # the same word twice in many examples
CLASSES = torch.randint(0, 3, (48,), generator=GENERATOR)


def bag(sparse: bool = True) -> nn.Module:
    return nn.EmbeddingBag(20, 3, mode="sum", sparse=sparse)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
    words, classes = batch
    return Loss(F.cross_entropy(model(words), classes, reduction="sum"), len(classes))


def task(**recipe: Any) -> Task:
    values = {"optimizer": "sparseadam", "lr": 0.01, "batch_size": 12, "epochs": 1} | recipe
    return Task(
        name="bag",
        model=bag,
        train_data=TensorDataset(WORDS, CLASSES),
        valid_data=None,
        loss=cross_entropy,
        recipe=Recipe(**values),
    )


def test_a_split_has_the_gradient_and_the_norm_of_the_dense_batch() -> None:
    torch.manual_seed(0)
    sparse, dense = bag().double(), bag(sparse=False).double()
    dense.load_state_dict(sparse.state_dict())
    pieces = [(WORDS[a:b], CLASSES[a:b]) for a, b in ((0, 5), (5, 6), (6, 16))]
    found = accumulate(sparse, cross_entropy, pieces)
    whole = cross_entropy(dense, (WORDS[:16], CLASSES[:16]))
    (whole.total / 16).backward()
    gradient = sparse.weight.grad
    assert gradient.is_sparse
    torch.testing.assert_close(gradient.to_dense(), dense.weight.grad, rtol=1e-12, atol=1e-14)
    assert found.norm == pytest.approx(float(dense.weight.grad.norm()), rel=1e-12)


def test_an_optimizer_for_sparse_gradients_trains_and_is_measured(tmp_path: Path) -> None:
    own = task()
    assert check_accumulation(own) is None
    plan = Plan.from_recipe(own.recipe, global_batch_size=12, micro_batch_size=6, accumulation_steps=2)
    assert train(own, plan, tmp_path / "run").updates == 4
    assert measure_noise(own, updates=12, batch_size=12).trace_covariance > 0


def test_clipping_sparse_gradients_is_refused_before_training(tmp_path: Path) -> None:
    own = task(clip_norm=1.0)
    with pytest.raises(InvalidTaskError, match=r"clip_norm = 1 with sparse gradients of weight"):
        train(own, Plan.from_recipe(own.recipe), tmp_path / "run")
