"""Models of shapes alone, as large as no machine holds, can be traced and not run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import rightbatch as rb
from rightbatch.core.errors import InvalidTaskError
from rightbatch.fit.memory_model import fit_memory_model
from rightbatch.measure.memory import measure_memory
from rightbatch.measure.memory.fake import trace_memory
from rightbatch.measure.memory.kernels import trace_kernels
from rightbatch.tasks.build import build_model


class Tied(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(100, width), nn.Linear(width, 100, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.embed(x)))


def task(device: str, width: int = 16) -> rb.Task:
    def model() -> nn.Module:
        with torch.device(device):
            return Tied(width)

    words = torch.arange(40) % 100
    return rb.Task(
        name="tied",
        model=model,
        train_data=TensorDataset(words, words),
        valid_data=None,
        loss=lambda net, batch: nn.functional.cross_entropy(net(batch[0]), batch[1]),
        recipe=rb.Recipe(optimizer="adamw", lr=1e-3, batch_size=8, epochs=1, ema_decay=0.9),
    )


def test_weights_without_values_are_traced_like_weights_with_values() -> None:
    real, meta = trace_memory(task("cpu"), 5), trace_memory(task("meta"), 5)
    assert sum(d for d, p in zip(real.delta_bytes, real.phase, strict=True) if p == 0) > 100 * 16 * 4
    assert meta == real


def test_a_model_beyond_any_memory_gets_a_law_and_no_real_step() -> None:
    wide = 10**9
    traces = measure_memory(task("meta", wide))
    assert {trace.source for trace in traces} == {"fake"}
    model = fit_memory_model(traces)
    assert model.evidence == "derived"
    # weights, their average, two moments: each 100 rows; the norm's 2 rows alike
    assert model.peak_bytes(3) > 4 * 102 * wide * 4


def test_small_weights_without_values_are_not_run_either() -> None:
    assert {trace.source for trace in measure_memory(task("meta"))} == {"fake"}


@pytest.mark.parametrize(
    "run",
    [lambda t: trace_kernels(t, 2), build_model],
    ids=["a real step", "training"],
)
def test_what_has_to_compute_refuses_weights_without_values(run: object) -> None:
    with pytest.raises(InvalidTaskError, match=r"meta device.*no values.*\n.*rb.trace_memory"):
        run(task("meta"))  # type: ignore[operator]
