"""Small training tasks, each with one thing that memory predictors get wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

import rightbatch as rb

NUM_EXAMPLES = 48  # fewer than the largest batch asked for: indices start over


def vectors(width: int = 64, classes: int = 10) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NUM_EXAMPLES, width, generator=generator)
    return TensorDataset(x, torch.randint(0, classes, (NUM_EXAMPLES,), generator=generator))


def images(side: int = 16, classes: int = 10) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(NUM_EXAMPLES, 3, side, side, generator=generator)
    return TensorDataset(x, torch.randint(0, classes, (NUM_EXAMPLES,), generator=generator))


def tokens(length: int = 32, vocabulary: int = 200) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, vocabulary, (NUM_EXAMPLES, length + 1), generator=generator)
    return TensorDataset(text[:, :-1].contiguous(), text[:, 1:].contiguous())


def classify(model: nn.Module, batch: Any) -> rb.Loss:
    x, y = batch
    return rb.Loss(F.cross_entropy(model(x), y, reduction="sum"), len(y))


def language(model: nn.Module, batch: Any) -> rb.Loss:
    x, y = batch
    logits = model(x)
    loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1), reduction="sum")
    return rb.Loss(loss, y.numel())


def contrast(model: nn.Module, batch: Any) -> Tensor:
    """InfoNCE over all pairs of a batch: logits [2B, 2B]."""
    x, _ = batch
    z = F.normalize(model(torch.cat([x, x + 0.1])), dim=-1)
    similarity = z @ z.T / 0.1
    n = len(similarity)
    similarity = similarity.masked_fill(torch.eye(n, dtype=torch.bool), -1e9)
    return F.cross_entropy(similarity, torch.arange(n).roll(n // 2))


def through_numpy(model: nn.Module, batch: Any) -> rb.Loss:
    """A loss whose weight is computed outside torch."""
    x, y = batch
    weight = float(np.abs(x.numpy()).mean())
    return rb.Loss(F.cross_entropy(model(x), y, reduction="sum") * weight, len(y))


def mlp(hidden: int = 256, outputs: int = 10) -> nn.Module:
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed = nn.Embedding(200, 32)
        self.rnn = kind(32, 48, batch_first=True)
        self.head = nn.Linear(48, 200)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(x))[0])


class Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (
            part.view(b, t, self.heads, c // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(c, dim=2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout)
        x = x + F.dropout(self.out(y.transpose(1, 2).reshape(b, t, c)), self.dropout)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)))), self.dropout)


class Transformer(nn.Module):
    """A causal transformer whose output layer shares the embedding's weights."""

    def __init__(self, dropout: float = 0.0, checkpointed: bool = False) -> None:
        super().__init__()
        self.checkpointed = checkpointed
        self.embed = nn.Embedding(200, 64)
        self.blocks = nn.ModuleList([Block(64, 4, dropout) for _ in range(3)])
        self.head = nn.Linear(64, 200, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(x)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grads[0] * (s + x * s * (1 - s))


class CustomFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 512), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(Swish.apply(self.one(x)))


class ReadsItself(nn.Module):
    """Looks at a value in the middle of forward."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y * 0 if y.abs().max().item() > 1e6 else y


class Experts(nn.Module):
    """Each example goes to one of four experts: shapes depend on data."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 4)
        self.experts = nn.ModuleList([mlp(256, 64) for _ in range(4)])
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        chosen, y = self.gate(x).argmax(-1), torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero().squeeze(1)
            y = y.index_add(0, rows, expert(x[rows]))
        return self.head(x + y)


class Gathered(nn.Module):
    """Cross-entropy by gather, whose backward formula is in place in a plain run."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 2000)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def gather_loss(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    logits = model(x)
    logits = logits - logits.max(dim=-1, keepdim=True)[0]
    negative = torch.log(torch.exp(logits).sum(dim=-1, keepdim=True)) - logits
    return torch.gather(negative, -1, y.unsqueeze(-1)).mean()


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def pair(i: int, o: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(4, o), nn.SiLU())

        self.down1, self.down2 = pair(3, 16), pair(16, 32)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.merge, self.out = pair(32, 16), nn.Conv2d(16, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        return self.out(self.merge(torch.cat([self.up(b), a], 1))).mean((2, 3))


ADAMW: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-3}
SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9}


def foreach_adamw(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, foreach=True)


def task(
    name: str,
    model: Callable[[], nn.Module],
    data: TensorDataset,
    loss: Any = classify,
    **recipe: Any,
) -> rb.Task:
    return rb.Task(
        name=name,
        model=model,
        train_data=data,
        valid_data=None,
        loss=loss,
        recipe=rb.Recipe(batch_size=8, epochs=1, **recipe),
    )


ZOO: dict[str, rb.Task] = {
    t.name: t
    for t in (
        task("mlp", mlp, vectors(), **ADAMW),
        task("clip-ema", mlp, vectors(), **ADAMW, clip_norm=1.0, ema_decay=0.99),
        task("foreach", mlp, vectors(), optimizer=foreach_adamw, lr=1e-3),
        task("convolution", convolutions, images(), **SGD),
        task("unet", UNet, images(32), **ADAMW),
        task("gru", lambda: Recurrent(nn.GRU), tokens(), language, **ADAMW),
        task("lstm", lambda: Recurrent(nn.LSTM), tokens(), language, **ADAMW),
        task("transformer", lambda: Transformer(dropout=0.1), tokens(), language, **ADAMW),
        task("checkpointed", lambda: Transformer(checkpointed=True), tokens(), language, **ADAMW),
        task("autocast", Transformer, tokens(), language, **ADAMW, precision="bf16"),
        task("autocast-convolution", convolutions, images(), **SGD, precision="bf16"),
        task("contrastive", lambda: mlp(512, 128), vectors(), contrast, **ADAMW),
        task("custom-function", CustomFunction, vectors(), **ADAMW),
        task("item", ReadsItself, vectors(), **ADAMW),
        task("gather", Gathered, vectors(classes=2000), gather_loss, **ADAMW),
        task("numpy", mlp, vectors(), through_numpy, **ADAMW),
        task("experts", Experts, vectors(), **ADAMW),
    )
}
