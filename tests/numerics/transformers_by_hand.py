"""GPT-like, Llama-like and BERT-like models as Hugging Face writes them, from one config each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

import rightbatch as rb
from rightbatch.plan.transformer_config import TransformerConfig


class RMSNorm(nn.Module):
    """Normalizes in fp32 and scales in the input's type."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.to(torch.float32)
        x32 = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * x32.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Layer(nn.Module):
    def __init__(self, config: TransformerConfig, *, flash: bool) -> None:
        super().__init__()
        c, self.config, self.flash = config, config, flash
        norm = RMSNorm if c.gated else nn.LayerNorm
        self.norm1, self.norm2 = norm(c.hidden_size), norm(c.hidden_size)
        widths = [c.query_size, c.kv_size, c.kv_size]
        self.qkv = nn.ModuleList(
            nn.Linear(c.hidden_size, width, bias=c.qkv_bias)
            for width in ([sum(widths)] if c.fused_qkv else widths)
        )
        self.o = nn.Linear(c.query_size, c.hidden_size, bias=c.output_bias)
        self.up = nn.Linear(c.hidden_size, c.ff_size, bias=c.mlp_bias)
        self.gate = nn.Linear(c.hidden_size, c.ff_size, bias=c.mlp_bias) if c.gated else None
        self.down = nn.Linear(c.ff_size, c.hidden_size, bias=c.mlp_bias)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c = self.config
        batch, length, _ = x.shape
        parts = [linear(x) for linear in self.qkv]
        if c.fused_qkv:
            parts = parts[0].split([c.query_size, c.kv_size, c.kv_size], dim=2)
        q, k, v = (part.view(batch, length, -1, c.head_size).transpose(1, 2) for part in parts)
        if c.gated:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        groups = c.num_heads // c.num_kv_heads
        if not self.flash or v.dtype == torch.float32:  # no fused kernel shares keys in fp32
            k, v = (repeat(part, groups) for part in (k, v))
        if self.flash:
            shared = k.shape[1] < q.shape[1]
            y = F.scaled_dot_product_attention(q, k, v, is_causal=c.causal, enable_gqa=shared)
        else:
            scores = q @ k.transpose(2, 3) / math.sqrt(c.head_size)
            if c.causal:
                scores = scores + torch.full((length, length), -1e4, dtype=scores.dtype).triu(1)
            if c.gated:
                weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
            else:
                weights = F.softmax(scores, dim=-1)
            if c.attention_dropout:
                weights = F.dropout(weights, c.attention_dropout)
            y = weights @ v
        return self.drop(self.o(y.transpose(1, 2).reshape(batch, length, -1)))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout) if self.config.dropout else x

    def feed(self, x: Tensor) -> Tensor:
        if self.gate is not None:
            return self.down(F.silu(self.gate(x)) * self.up(x))
        return self.drop(self.down(F.gelu(self.up(x))))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.config.causal:
            x = x + self.attend(self.norm1(x), cos, sin)
            return x + self.feed(self.norm2(x))
        x = self.norm1(x + self.attend(x, cos, sin))
        return self.norm2(x + self.feed(x))


def repeat(x: Tensor, groups: int) -> Tensor:
    if groups == 1:
        return x
    b, heads, length, size = x.shape
    return x[:, :, None].expand(b, heads, groups, length, size).reshape(b, -1, length, size)


class Model(nn.Module):
    def __init__(self, config: TransformerConfig, *, flash: bool, checkpointed: bool) -> None:
        super().__init__()
        c, self.config, self.checkpointed = config, config, checkpointed
        self.tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.positions = nn.Embedding(c.positions, c.hidden_size) if c.positions else None
        self.layers = nn.ModuleList(Layer(c, flash=flash) for _ in range(c.num_layers))
        self.norm = (RMSNorm if c.gated else nn.LayerNorm)(c.hidden_size)
        self.head: nn.Module = nn.Identity()
        if c.head == "language_model":
            last = nn.Linear(c.hidden_size, c.vocab_size, bias=not c.causal)
            if c.tied:
                last.weight = self.tokens.weight
            width = c.hidden_size
            transform = [nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)]
            self.head = last if c.causal else nn.Sequential(*transform, last)

    def forward(self, ids: Tensor) -> Tensor:
        c, length = self.config, ids.shape[1]
        x = self.tokens(ids)
        if self.positions is not None:
            x = x + self.positions(torch.arange(length))
        x = x if c.causal else self.norm(x)
        x = F.dropout(x, c.dropout) if c.dropout else x
        angles = torch.outer(torch.arange(length), torch.ones(c.head_size))
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers:
            if self.checkpointed:
                x = checkpoint(layer, x, cos, sin, use_reentrant=False)
            else:
                x = layer(x, cos, sin)
        return self.head(self.norm(x) if c.causal else x)


def loss(model: nn.Module, batch: Any) -> rb.Loss:
    ids, labels = batch
    logits = model(ids).float()
    total = F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1), reduction="sum")
    return rb.Loss(total, labels.numel())


def task(
    config: TransformerConfig,
    sequence_length: int,
    *,
    flash: bool = True,
    checkpointed: bool = False,
    precision: str = "fp32",
) -> rb.Task:
    ids = torch.zeros(8, sequence_length, dtype=torch.long)
    return rb.Task(
        name="transformer",
        model=lambda: Model(config, flash=flash, checkpointed=checkpointed),
        train_data=TensorDataset(ids, ids),
        valid_data=None,
        loss=loss,
        recipe=rb.Recipe(optimizer="adamw", lr=1e-3, batch_size=8, epochs=1, precision=precision),
    )
