"""A short run with today's recipe that can stand still while its gradients are looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Sampler

from rightbatch.core.errors import MeasurementError
from rightbatch.core.schedule import rate_at
from rightbatch.tasks.build import batch_examples, build_model, build_optimizer, to_device
from rightbatch.tasks.order import epoch_order
from rightbatch.tasks.step import forward_backward
from rightbatch.tasks.task import Task


@dataclass(slots=True)
class Pilot:
    """Owns a model and its optimizer, and knows how many examples they have seen."""

    task: Task
    device: str
    seed: int
    total_examples: int
    """Of today's recipe; the learning-rate schedule needs it."""
    model: nn.Module = field(init=False)
    optimizer: Optimizer = field(init=False)
    examples_seen: int = 0
    _batches: Iterator[Any] = field(init=False)
    _loss_sum: float = 0.0
    _count: float = 0.0

    def __post_init__(self) -> None:
        """Build model, optimizer and loader afresh, under the seed."""
        self.model = build_model(self.task, self.device, self.seed)
        self.optimizer = build_optimizer(self.task.recipe, self.model, self.task.recipe.lr)
        self._batches = self._forever()

    def update(self) -> None:
        """Train one optimizer step on the next batch.

        Raises:
            MeasurementError: the loss is not finite, or no target counts.
        """
        recipe, batch = self.task.recipe, next(self._batches)
        size = batch_examples(batch)
        rate = rate_at(recipe, recipe.lr, self.examples_seen + size / 2, self.total_examples)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = forward_backward(
            self.task.loss,
            self.model,
            to_device(batch, self.device),
            num_examples=size,
            divisor=size,
            constants=recipe,
            device=self.device,
        )
        targets = float(loss.count)
        if targets == 0:
            found = f"0 counted targets in an update of {size} examples"
            raise MeasurementError(found, need="at least 1", hint="raise Recipe.batch_size")
        self._loss_sum += float(loss.total)
        self._count += targets
        if not math.isfinite(self._loss_sum):
            found = (
                f"the loss is {float(loss.total)} after {self.examples_seen} examples of today's recipe"
            )
            raise MeasurementError(
                found, need="a recipe that trains", hint="lower Recipe.lr, or add warmup"
            )
        self.step(scale=size / targets)
        self.examples_seen += size

    def step(self, *, scale: float = 1.0) -> None:
        """Scale the gradients, clip them as the recipe says, and update the parameters."""
        if scale != 1.0:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
        if self.task.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.task.recipe.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def mean_loss(self) -> float:
        """Mean training loss per target since the last call."""
        mean = self._loss_sum / self._count if self._count else math.nan
        self._loss_sum = self._count = 0.0
        return mean

    def _forever(self) -> Iterator[Any]:
        """Batches of today's size in the order that training takes; a partial last one is left out."""
        options = self.task.loader
        loader = DataLoader(
            cast(Any, self.task.train_data),
            batch_sampler=_FullBatches(self.task, self.seed),
            generator=torch.Generator().manual_seed(self.seed),
            collate_fn=self.task.collate,
            num_workers=options.num_workers,
            pin_memory=options.pin_memory,
            persistent_workers=options.persistent_workers,
            prefetch_factor=options.prefetch_factor,
        )
        yield from loader


class _FullBatches(Sampler[list[int]]):
    """Indices of one batch of today's size after another, epoch after epoch, without end."""

    def __init__(self, task: Task, seed: int) -> None:
        self.task = task
        self.seed = seed

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of one batch."""
        size, total = self.task.recipe.batch_size, self.task.num_train_examples
        for epoch in count():
            order = epoch_order(self.task.recipe.sampler, total, seed=self.seed, epoch=epoch)
            for start in range(0, total - size + 1, size):
                yield order[start : start + size].tolist()
