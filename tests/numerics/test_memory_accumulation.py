"""Whether the engine adds two gradients in place decides how many of them are alive at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from memory_zoo import task
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from rightbatch.core.samples import MemoryTrace
from rightbatch.measure.memory.fake import trace_memory
from rightbatch.measure.memory.kernels import trace_kernels

torch.set_num_threads(1)
WIDTH, LENGTH = 64, 128


class UsedThrice(nn.Module):
    """One wide activation read by three narrow layers: its gradient is the sum of three."""

    def __init__(self, through_views: bool) -> None:
        super().__init__()
        self.through_views = through_views
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.readers = nn.ModuleList(nn.Linear(WIDTH, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Any:
        x = x * self.scale
        if self.through_views:  # three dimensions are flattened for the product, and back
            return sum(reader(x) for reader in self.readers)
        return x.exp().sum() + x.sin().sum() + x.cos().sum()


def total(model: nn.Module, batch: Any) -> Tensor:
    return model(batch[0]).mean()


def peak(trace: MemoryTrace) -> int:
    return int(np.cumsum(trace.delta_bytes).max())


@pytest.mark.parametrize("through_views", [True, False], ids=["views", "plain"])
def test_a_gradient_that_is_a_view_is_not_added_to_in_place(through_views: bool) -> None:
    data = TensorDataset(torch.randn(8, LENGTH, WIDTH))
    subject = task("thrice", lambda: UsedThrice(through_views), data, total, optimizer="sgd", lr=0.1)
    fake, real = peak(trace_memory(subject, 8)), peak(trace_kernels(subject, 8))
    one_gradient = 8 * LENGTH * WIDTH * 4
    assert abs(fake - real) < one_gradient / 100
