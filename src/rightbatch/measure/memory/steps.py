"""The two training steps that are traced: built, fed and run as the task's recipe says."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_iter

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.samples import Owner, Phase
from rightbatch.tasks.build import build_model, build_optimizer, collate
from rightbatch.tasks.step import forward_backward
from rightbatch.tasks.task import Task

# Optimizer state is born in the first step, and beside it the second has its activations.
NUM_STEPS = 2
DEVICE = "cpu"


@dataclass(slots=True)
class Subject:
    """What a training run keeps between its steps."""

    model: nn.Module
    optimizer: Optimizer
    average: list[Tensor]
    """The averaged weights of a recipe with ``ema_decay``, else empty."""

    def holdings(self) -> Iterator[tuple[Owner, Tensor]]:
        """Every tensor that is kept now, with what it is."""
        for parameter in self.model.parameters():
            yield "parameters", parameter
            if parameter.grad is not None:
                yield "gradients", parameter.grad
        for buffer in self.model.buffers():
            yield "buffers", buffer
        for average in self.average:
            yield "optimizer_state", average
        for tensor in tree_iter([dict(state) for state in self.optimizer.state.values()]):
            if isinstance(tensor, Tensor):
                yield "optimizer_state", tensor


def build_subject(task: Task) -> Subject:
    """Build model, optimizer and averaged weights afresh."""
    model = build_model(task, DEVICE)
    average = [p.detach().clone() for p in model.parameters()] if task.recipe.ema_decay else []
    return Subject(model, build_optimizer(task.recipe, model, task.recipe.lr), average)


def read_batches(task: Task, micro_batch_size: int, accumulation_steps: int) -> list[Any]:
    """Collate the micro-batches of one step from real examples, starting over where data ends.

    Raises:
        InvalidInputError: a count is below 1.
    """
    if micro_batch_size < 1 or accumulation_steps < 1:
        found = f"micro_batch_size {micro_batch_size}, accumulation_steps {accumulation_steps}"
        raise InvalidInputError(found, need="both at least 1", hint="trace sizes 2 and 3, then predict")
    length = task.num_train_examples
    starts = range(0, micro_batch_size * accumulation_steps, micro_batch_size)
    return [collate(task, ((start + i) % length for i in range(micro_batch_size))) for start in starts]


def run_steps(
    task: Task,
    subject: Subject,
    batches: list[Any],
    micro_batch_size: int,
    enter: Callable[[Phase], None],
) -> None:
    """Run the recipe's steps, each over the same micro-batches.

    Args:
        task: gives loss and recipe.
        subject: real or fake.
        batches: the micro-batches of one step, real or fake like the subject.
        micro_batch_size: examples in each.
        enter: called with the phase that begins.
    """

    def loss_then_backward(model: nn.Module, batch: Any) -> Any:
        value = task.loss(model, batch)
        enter("backward")
        return value

    recipe, model = task.recipe, subject.model
    for _ in range(NUM_STEPS):
        for batch in batches:
            enter("forward")
            forward_backward(
                loss_then_backward,
                model,
                batch,
                num_examples=micro_batch_size,
                divisor=float(micro_batch_size * len(batches)),
                constants=recipe,
                device=DEVICE,
            )
        enter("optimizer")
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        subject.optimizer.step()
        enter("optimizer")  # the state that was just born is claimed
        with torch.no_grad():
            for average, parameter in zip(subject.average, model.parameters(), strict=False):
                average.lerp_(parameter, 1 - (recipe.ema_decay or 0.0))
        subject.optimizer.zero_grad(set_to_none=True)


@contextmanager
def caller_untouched() -> Generator[None]:
    """Give the caller's random states and default dtype back, and hold the garbage collector.

    A collection in the middle of a step would free cycles at an instant that depends on everything
    else in the process.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    dtype, collecting = torch.get_default_dtype(), gc.isenabled()
    gc.disable()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_default_dtype(dtype)
        if collecting:
            gc.enable()
