"""Transformers over tokens: GPT-like, GPT-2 124M, BERT-base and a Llama-like one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Block(nn.Module):
    """Attention and MLP with norms before them, or after them as in BERT."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool = True,
        eager: bool = False,
        dropout: float = 0.0,
        norm_first: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.causal, self.eager, self.norm_first = heads, causal, eager, norm_first
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_first:
            x = x + self.attend(self.norm1(x))
            return x + self.transform(self.norm2(x))
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.transform(x))

    def attend(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            part.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(c, dim=2)
        )
        if self.eager:
            scores = q @ k.transpose(2, 3) / (c // self.heads) ** 0.5
            if self.causal:
                hidden = torch.ones(t, t, dtype=torch.bool).triu(1)
                scores = scores.masked_fill(hidden, float("-inf"))
            y = self.dropout(scores.softmax(-1)) @ v
        else:
            y = F.scaled_dot_product_attention(
                q, k, v, is_causal=self.causal, dropout_p=self.dropout.p if self.training else 0.0
            )
        return self.dropout(self.out(y.transpose(1, 2).reshape(b, t, c)))

    def transform(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(F.gelu(self.up(x))))


class GPT(nn.Module):
    """A causal transformer; the output layer shares the embedding's weights if ``tied``."""

    def __init__(
        self,
        vocabulary: int = 4096,
        context: int = 128,
        layers: int = 6,
        width: int = 256,
        heads: int = 4,
        *,
        tied: bool = True,
        checkpointed: bool = False,
        eager: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, eager=eager, dropout=dropout) for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.checkpointed = checkpointed
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.positions(torch.arange(x.shape[1]))
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(self.norm(x))


def gpt2() -> nn.Module:
    """GPT-2 124M (Radford et al. 2019): 124,439,808 parameters."""
    return GPT(50257, 1024, 12, 768, 12, dropout=0.1)


class BERT(nn.Module):
    """BERT-base for masked language modelling (Devlin et al. 2018): 109,514,298 parameters."""

    def __init__(self, *, eager: bool = False) -> None:
        super().__init__()
        width, vocabulary = 768, 30522
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(512, width)
        self.segments, self.norm = nn.Embedding(2, width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.1)
        self.blocks = nn.Sequential(
            *(
                Block(width, 12, causal=False, eager=eager, dropout=0.1, norm_first=False)
                for _ in range(12)
            )
        )
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.head = nn.Linear(width, vocabulary)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        positions = self.positions(torch.arange(x.shape[1]))
        x = self.tokens(x) + positions + self.segments(torch.zeros_like(x))
        return self.head(self.transform(self.blocks(self.dropout(self.norm(x)))))


class LlamaBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, c = x.shape
        y = self.norm1(x)
        q, k, v = (
            layer(y).view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        q, k = (a * cos + torch.cat(a.chunk(2, -1)[::-1], -1) * sin for a in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Llama-2-7B (Touvron et al. 2023): 6,738,415,616 parameters."""

    def __init__(
        self, vocabulary: int = 32000, layers: int = 32, width: int = 4096, inner: int = 11008
    ) -> None:
        super().__init__()
        self.heads = width // 128
        self.tokens = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(LlamaBlock(width, self.heads, inner) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        size = self.tokens.embedding_dim // self.heads
        rates = 10_000.0 ** -(torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(x.shape[1]), rates)
        angles = torch.cat([angles, angles], -1)
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x, angles.cos(), angles.sin())
        return self.head(self.norm(x))
