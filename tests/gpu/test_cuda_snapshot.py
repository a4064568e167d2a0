"""Predictions for CUDA against what a CUDA device does; skipped where there is none."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import rightbatch as rb
from rightbatch.fit.allocator_blocks import Block
from rightbatch.fit.caching_allocator import CachingAllocator
from rightbatch.fit.cuda_memory import predict_cuda_memory
from rightbatch.measure.memory.cuda_proxy import trace_cuda
from rightbatch.tasks.build import build_model, build_optimizer, collate, to_device
from rightbatch.tasks.step import forward_backward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BATCH, LENGTH, WORDS = 8, 256, 2000


class Layer(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, 8, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*qkv.unbind(0), is_causal=True)
        x = x + F.dropout(self.out(y.transpose(1, 2).flatten(-2)), self.dropout)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)))), self.dropout)


def transformer(dropout: float = 0.0) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Embedding(WORDS, 512), *(Layer(512, dropout) for _ in range(6)), nn.Linear(512, WORDS)
    )


def convolutions() -> nn.Module:
    layers = [
        nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU())
        for i, o in ((3, 64), (64, 128), (128, 256))
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


def next_word(model: nn.Module, batch: Any) -> Tensor:
    tokens = batch[0]
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def classify(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def task(name: str, model: Callable[[], nn.Module], precision: Any, loss: Any = next_word) -> rb.Task:
    if loss is classify:
        data = TensorDataset(torch.randn(BATCH, 3, 64, 64), torch.zeros(BATCH, dtype=torch.long))
    else:
        data = TensorDataset(torch.zeros(BATCH, LENGTH + 1, dtype=torch.long))
    recipe = rb.Recipe(optimizer="adamw", lr=1e-4, batch_size=BATCH, steps=2, precision=precision)
    return rb.Task(name=name, model=model, train_data=data, valid_data=None, loss=loss, recipe=recipe)


def clear_workspaces() -> None:
    """Drop what cuBLAS keeps between runs, so that each pays for its own."""
    bindings: Any = torch._C  # pyright: ignore[reportPrivateUsage]
    bindings._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def run_on_device(subject: rb.Task) -> tuple[int, int, int]:
    """Requested, allocated and reserved peak of two real steps, by the allocator's own statistics."""
    clear_workspaces()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()
    model = build_model(subject, "cuda")
    optimizer = build_optimizer(subject.recipe, model, subject.recipe.lr)
    batch = to_device(collate(subject, range(BATCH)), "cuda")
    for _ in range(2):
        forward_backward(
            subject.loss,
            model,
            batch,
            num_examples=BATCH,
            divisor=float(BATCH),
            constants=subject.recipe,
            device="cuda",
        )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    after = torch.cuda.memory_stats()
    kinds = ("requested_bytes", "allocated_bytes", "reserved_bytes")
    requested, allocated, reserved = (
        after[f"{kind}.all.peak"] - before[f"{kind}.all.current"] for kind in kinds
    )
    return requested, allocated, reserved


CASES = {
    "fp32": (task("fp32", transformer(), "fp32"), 0.01),
    "dropout": (task("dropout", transformer(0.1), "fp32"), 0.01),
    "autocast": (task("autocast", transformer(), "bf16"), 0.02),
    "convolution": (task("convolution", convolutions, "fp32", classify), 0.5),  # cuDNN's workspaces
}


@pytest.mark.parametrize("name", CASES)
def test_the_predicted_peaks_are_those_of_the_device(name: str) -> None:
    subject, tolerance = CASES[name]
    capability = torch.cuda.get_device_capability()
    predicted = predict_cuda_memory(
        [trace_cuda(subject, BATCH, capability=capability)], BATCH, capability=capability
    )
    requested, allocated, reserved = run_on_device(subject)
    assert predicted.requested_bytes == pytest.approx(requested, rel=tolerance)
    assert predicted.allocated_bytes == pytest.approx(allocated, rel=tolerance)
    assert predicted.reserved_bytes == pytest.approx(reserved, rel=max(tolerance, 0.05))


def test_two_small_sizes_predict_a_larger_one() -> None:
    subject, _ = CASES["autocast"]
    capability = torch.cuda.get_device_capability()
    traces = [trace_cuda(subject, size, capability=capability) for size in (2, 3)]
    predicted = predict_cuda_memory(traces, BATCH, capability=capability)
    _, allocated, _ = run_on_device(subject)
    assert predicted.allocated_bytes == pytest.approx(allocated, rel=0.02)


def continue_from(state: Any, allocator: CachingAllocator) -> dict[int, Block]:
    """Put recorded segments into an allocator; returns the blocks in use by address."""
    found: dict[int, Block] = {}
    for segment in state["segments"]:
        used: list[tuple[int, int, int]] = [
            (block["address"], block["size"], block["requested_size"])
            for block in segment["blocks"]
            if block["state"] != "inactive"
        ]
        small = segment["segment_type"] == "small"
        made = allocator.add_segment(
            segment["address"],
            segment["total_size"],
            used,
            small=small,
            stream=segment["stream"],
        )
        found |= {block.address: block for block in made}
    return found


def follow(before: Any, events: list[Any]) -> tuple[int, int, int]:
    """Replay recorded events; returns allocations, those at the same address, reserved bytes."""
    new_segments = deque(e["addr"] for e in events if e["action"] == "segment_alloc")
    allocator = CachingAllocator(place=lambda _: new_segments.popleft())
    blocks = continue_from(before, allocator)
    total = same = 0
    for event in events:
        if event["action"] == "alloc":
            block = allocator.allocate(event["size"], event["stream"])
            assert block is not None
            blocks[event["addr"]] = block
            total, same = total + 1, same + (block.address == event["addr"])
        elif event["action"] == "free_completed":
            allocator.free(blocks.pop(event["addr"]))
    return total, same, allocator.reserved_bytes


def test_every_address_of_a_recorded_run_is_reproduced() -> None:
    clear_workspaces()
    memory: Any = torch.cuda.memory
    before = memory._snapshot()
    memory._record_memory_history(max_entries=100_000, stacks="python")
    try:
        run_on_device(CASES["autocast"][0])
        after = memory._snapshot()
    finally:
        memory._record_memory_history(enabled=None)
    events = after["device_traces"][torch.cuda.current_device()]
    assert all(event["action"] != "segment_free" for event in events), "the cache was emptied"
    total, same, reserved = follow(before, events)
    assert total > 500
    assert same == total
    assert reserved == sum(segment["total_size"] for segment in after["segments"])
