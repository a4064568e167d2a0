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
from torch.utils._pytree import tree_iter, tree_map

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.samples import Owner, Phase
from rightbatch.measure.memory.options import AS_TODAY, StepOptions
from rightbatch.measure.memory.parallel import Bucket, keep_gradients_in, make_buckets, shard
from rightbatch.tasks.build import build_model, build_optimizer, collate, compute_loss
from rightbatch.tasks.check import evaluate
from rightbatch.tasks.checkpointing import apply_checkpointing
from rightbatch.tasks.step import forward_backward, precision_context
from rightbatch.tasks.task import Loss, Task

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
    buckets: list[Bucket]
    """Flat copies of all gradients, where data parallelism reduces them."""
    scaler: torch.amp.GradScaler | None = None

    def holdings(self) -> Iterator[tuple[Owner, Tensor]]:
        """Every tensor that is kept now, with what it is."""
        for parameter in self.model.parameters():
            yield "parameters", parameter
            if parameter.grad is not None:
                yield "gradients", parameter.grad
        for buffer in self.model.buffers():
            yield "buffers", buffer
        for bucket in self.buckets:
            yield "gradients", bucket.flat
        for average in self.average:
            yield "optimizer_state", average
        for tensor in tree_iter([dict(state) for state in self.optimizer.state.values()]):
            if isinstance(tensor, Tensor):
                yield "optimizer_state", tensor


def build_subject(task: Task, options: StepOptions = AS_TODAY, *, values: bool = False) -> Subject:
    """Build model, optimizer, averaged weights and buckets afresh.

    Args:
        task: gives model and recipe.
        options: what the steps do beside today's recipe.
        values: refuse a model on ``meta``, which can be traced but not run.

    Raises:
        InvalidInputError: the optimizer has no such form.
        InvalidTaskError: the model has no block to checkpoint, or no values.
    """
    model = build_model(task, DEVICE, values=values)
    if options.precision == "pure-bf16":
        model.to(torch.bfloat16)
    if options.checkpointing:
        apply_checkpointing(model)
    buckets = make_buckets(model) if options.parallel in {"ddp", "ddp-bucket-view"} else []
    precision = options.precision or task.recipe.precision
    scaler = torch.amp.GradScaler(DEVICE) if precision == "fp16" else None
    return Subject(model, _optimizer(task, model, options), _average(task, model), buckets, scaler)


def finish_subject(task: Task, subject: Subject, options: StepOptions, mesh: Any) -> None:
    """Do what a copy of a subject would not keep: shard it, let its gradients live in buckets.

    Args:
        task: gives the recipe.
        subject: real or fake; changed in place.
        options: say which.
        mesh: of ``parallel.process_group``.
    """
    if mesh is not None:
        shard(subject.model, mesh)
        subject.optimizer = _optimizer(task, subject.model, options)
        subject.average = _average(task, subject.model)
    if options.parallel == "ddp-bucket-view":
        keep_gradients_in(subject.buckets)


def _average(task: Task, model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()] if task.recipe.ema_decay else []


def _optimizer(task: Task, model: nn.Module, options: StepOptions) -> Optimizer:
    """The recipe's optimizer in the form that is asked for.

    Raises:
        InvalidInputError: it has no such form.
    """
    optimizer = build_optimizer(task.recipe, model, task.recipe.lr)
    form = options.optimizer_form
    if form is not None:
        forms = {"for-loop", *(name for name in ("foreach", "fused") if name in optimizer.defaults)}
        if form not in forms:
            found = f"optimizer_form {form!r} of {type(optimizer).__name__}"
            need = f"one that it has: {', '.join(sorted(forms))}"
            raise InvalidInputError(found, need, hint="leave the form to torch: None")
        for group in optimizer.param_groups:
            for name in forms - {"for-loop"}:
                group[name] = name == form
    return optimizer


def read_batches(task: Task, micro_batch_size: int, options: StepOptions = AS_TODAY) -> list[Any]:
    """Collate the micro-batches of one step from real examples, starting over where data ends.

    Raises:
        InvalidInputError: the size is below 1.
    """
    if micro_batch_size < 1:
        found, hint = f"micro_batch_size {micro_batch_size}", "trace sizes 2 and 3, then predict"
        raise InvalidInputError(found, need="at least 1", hint=hint)
    length = task.num_train_examples
    starts = range(0, micro_batch_size * options.accumulation_steps, micro_batch_size)
    batches = [
        collate(task, ((start + i) % length for i in range(micro_batch_size))) for start in starts
    ]
    return tree_map(_to_bf16, batches) if options.precision == "pure-bf16" else batches


def _to_bf16(value: Any) -> Any:
    return (
        value.to(torch.bfloat16) if isinstance(value, Tensor) and value.is_floating_point() else value
    )


def run_steps(
    task: Task,
    subject: Subject,
    batches: list[Any],
    micro_batch_size: int,
    enter: Callable[[Phase], None],
    options: StepOptions = AS_TODAY,
) -> None:
    """Run the recipe's steps, each over the same micro-batches.

    Args:
        task: gives loss and recipe.
        subject: real or fake.
        batches: the micro-batches of one step, real or fake like the subject.
        micro_batch_size: examples in each.
        enter: called with the phase that begins.
        options: what the steps do beside the recipe.
    """
    recipe, model, scaler = task.recipe, subject.model, subject.scaler
    precision = options.precision or recipe.precision

    def loss_then_backward(model: nn.Module, batch: Any) -> Any:
        value = task.loss(model, batch)
        enter("backward")
        return value

    def loss_in_precision(model: nn.Module, batch: Any) -> Loss:
        with precision_context(precision, DEVICE):
            loss = compute_loss(loss_then_backward, model, batch, micro_batch_size)
        return loss if scaler is None else Loss(scaler.scale(loss.total), loss.count)

    for _ in range(NUM_STEPS):
        for batch in batches:
            enter("forward")
            forward_backward(
                loss_in_precision,
                model,
                batch,
                num_examples=micro_batch_size,
                divisor=float(micro_batch_size * len(batches)),
                constants=recipe.replace(precision="fp32"),
                device=DEVICE,
            )
        enter("optimizer")
        if scaler is not None:
            scaler.unscale_(subject.optimizer)
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        subject.optimizer.step()  # what scaler.step does where no gradient overflows
        if scaler is not None:
            scaler.update()
        enter("optimizer")  # the state that was just born is claimed
        with torch.no_grad():
            for average, parameter in zip(subject.average, model.parameters(), strict=False):
                average.lerp_(parameter, 1 - (recipe.ema_decay or 0.0))
        subject.optimizer.zero_grad(set_to_none=not options.keep_gradients)
    if options.evaluation:
        enter("forward")
        evaluate(task, model, batches[:1], DEVICE, precision=precision)


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
