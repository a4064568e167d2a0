"""Predict two recorded training runs of a GPU from what they computed.

The model is the public "medium" transformer of Stanford's CS336, assignment 2: 24 pre-norm layers of
width 1024 with 16 heads, SwiGLU of 4096, RMSNorm, rotary positions, no biases, untied embeddings of
10,000 words, and attention, softmax, loss and AdamW written out in elementary operators. Four
sequences a step. The recorded peaks are those of ``torch.cuda.memory._snapshot()`` (torch 2.11,
cu128).

Not a blind test: which operators things are written in, in which order, and that the loop holds its
logits, was settled by comparing the order of allocation sizes with the recordings.

    python benchmarks/memory/cuda_end_to_end.py
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import rightbatch as rb
from rightbatch.fit.caching_allocator import AllocatorOptions
from rightbatch.fit.cuda_memory import predict_cuda_memory
from rightbatch.measure.memory.cuda_proxy import trace_cuda

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import save

MIB = 1 << 20
VOCABULARY, WIDTH, LAYERS, HEADS, INNER, BATCH = 10_000, 1024, 24, 16, 4096, 4
# context, precision, requested and reserved bytes at the peak of the recorded steps
RECORDED = (
    (128, "fp32", 7_013_335_044, 6900 * MIB),
    (1024, "bf16", 24_207_167_496, 24_012 * MIB),
)


class Linear(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...i,oi->...o", x, self.weight)


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        given, x = x.dtype, x.float()
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        return (self.weight * x).to(given)


class Rotary(nn.Module):
    def __init__(self, context: int) -> None:
        super().__init__()
        size = WIDTH // HEADS
        angles = torch.outer(torch.arange(context), 10_000.0 ** -(torch.arange(0, size, 2) / size))
        self.cache: Tensor
        self.register_buffer("cache", torch.stack((angles.cos(), angles.sin())), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        even, odd = x.unflatten(-1, (-1, 2)).movedim(-1, 0).unbind(0)
        cos, sin = self.cache[:, : x.shape[-2]].unbind(0)
        return torch.stack((cos * even - sin * odd, sin * even + cos * odd), -1).flatten(-2)


def softmax(x: Tensor) -> Tensor:
    x = torch.exp(x - torch.max(x, dim=-1, keepdim=True)[0])
    return x / torch.sum(x, dim=-1, keepdim=True)


class Attention(nn.Module):
    def __init__(self, rotary: Rotary) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (Linear(WIDTH, WIDTH) for _ in range(4))
        self.rotary, self.heads = rotary, (HEADS, WIDTH // HEADS)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.q(x), self.k(x), self.v(x)
        q, k, v = (part.unflatten(-1, self.heads).transpose(1, 2) for part in parts)
        q, k = self.rotary(q), self.rotary(k)
        order = torch.arange(x.shape[1], device=x.device)
        visible = order[:, None] >= order
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / self.heads[1] ** 0.5
        scores = torch.where(visible, scores, float("-inf"))
        mixed = torch.einsum("bhqk,bhkd->bhqd", softmax(scores), v)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    def __init__(self, rotary: Rotary) -> None:
        super().__init__()
        self.attention, self.gate = Attention(rotary), Linear(WIDTH, INNER)
        self.down, self.up = Linear(INNER, WIDTH), Linear(WIDTH, INNER)
        self.norm1, self.norm2 = RMSNorm(), RMSNorm()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        gate = self.gate(y)
        return x + self.down(gate * torch.sigmoid(gate) * self.up(y))


class Transformer(nn.Module):
    def __init__(self, context: int) -> None:
        super().__init__()
        self.embed = nn.Parameter(torch.empty(VOCABULARY, WIDTH))
        rotary = Rotary(context)
        self.blocks = nn.ModuleList(Block(rotary) for _ in range(LAYERS))
        self.norm, self.head = RMSNorm(), Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed[tokens, :]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def loss(model: nn.Module, batch: Any) -> Tensor:
    tokens, following = batch
    model.last_logits = logits = model(tokens)  # the recorded loop holds them until the next step
    logits = logits - torch.max(logits, dim=-1, keepdim=True)[0]
    logarithms = logits - torch.log(torch.sum(torch.exp(logits), dim=-1, keepdim=True))
    return torch.mean(torch.gather(-logarithms, -1, following.unsqueeze(-1)))


class AdamW(torch.optim.Optimizer):
    """Written out, one parameter at a time; zeros are made even where the state exists."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * 0.01 * p)
                state = self.state[p]
                old_m = state.get("m", torch.zeros_like(p.grad))
                old_v = state.get("v", torch.zeros_like(p.grad))
                m = 0.9 * old_m + 0.1 * p.grad
                v = 0.999 * old_v + 0.001 * torch.square(p.grad)
                p.sub_(group["lr"] * m / (torch.sqrt(v) + 1e-8))
                state["m"], state["v"] = m, v


class Tokens(Dataset[Any]):
    def __init__(self, context: int) -> None:
        self.tokens = torch.zeros(context, dtype=torch.long)

    def __len__(self) -> int:
        return BATCH

    def __getitem__(self, index: int) -> Any:
        return self.tokens, self.tokens


def task(context: int, precision: Any) -> rb.Task:
    return rb.Task(
        name=f"transformer-{context}-{precision}",
        model=lambda: Transformer(context),
        train_data=Tokens(context),
        valid_data=None,
        loss=loss,
        recipe=rb.Recipe(optimizer=AdamW, lr=1e-3, batch_size=BATCH, steps=1, precision=precision),
    )


def compare(context: int, precision: str, peak: int, reserved: int) -> dict[str, Any]:
    start = time.process_time()
    trace = trace_cuda(task(context, precision), BATCH)
    traced = time.process_time() - start
    predicted = predict_cuda_memory([trace], BATCH)
    growing = predict_cuda_memory([trace], BATCH, options=AllocatorOptions(expandable_segments=True))
    return {
        "context": context,
        "precision": precision,
        "events": len(trace.delta_bytes),
        "requested_bytes": {"recorded": peak, "predicted": predicted.requested_bytes},
        "requested_error": round(predicted.requested_bytes / peak - 1, 6),
        # The recorded process held ten more tensors of token indices, and its loss.
        "difference_without_token_indices_bytes": predicted.requested_bytes
        + 10 * BATCH * context * 8
        - peak,
        "reserved_bytes": {"recorded": reserved, "predicted": predicted.reserved_bytes},
        "reserved_error": round(predicted.reserved_bytes / reserved - 1, 6),
        "reserved_expandable_mib": growing.reserved_bytes / MIB,
        "workspaces_mib": predicted.workspace_bytes / MIB,
        "trace_cpu_seconds": round(traced, 1),
        "predict_cpu_seconds": round((time.process_time() - start - traced) / 2, 2),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    save("cuda_end_to_end", {"runs": [compare(*row) for row in RECORDED]})
