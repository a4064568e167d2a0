"""One update, each of its parts exactly once: gradient, check, clip, rate, step, average."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rightbatch.core.plan import Plan
from rightbatch.core.schedule import rate_at
from rightbatch.tasks.build import build_model, build_optimizer, to_device
from rightbatch.tasks.task import Task
from rightbatch.train.accumulate import WindowGradient, accumulate_window, scale_gradients
from rightbatch.train.sampler import Window


class Updater:
    """Owns the weights, their optimizer and their average: ``accumulate``, then ``step``."""

    def __init__(self, task: Task, plan: Plan, *, total_examples: int, seed: int, device: str) -> None:
        """Build model, optimizer and average afresh; schedules run over ``total_examples``."""
        self._task, self.plan, self.device = task, plan, device
        self.total_examples = total_examples
        self._on_cpu = torch.device(device).type == "cpu"  # where batches are already
        self.model = build_model(task, device, seed)
        self.optimizer = build_optimizer(plan, self.model, plan.learning_rate)
        self.averaged: AveragedModel | None = None
        if plan.ema_decay is not None:
            average = get_ema_multi_avg_fn(plan.ema_decay)
            self.averaged = AveragedModel(self.model, multi_avg_fn=average)
        self._parameters = list(self.model.parameters())
        # Running statistics move in the forward, before it is known whether there will be a step.
        self._buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        # A factory may give its groups different rates: the schedule moves all by one factor.
        self._group_rates = [float(group["lr"]) for group in self.optimizer.param_groups]

    @property
    def evaluated(self) -> nn.Module:
        """The model that evaluation sees: the average where one is kept."""
        return self.model if self.averaged is None else self.averaged.module

    def rate_at(self, examples_seen: float) -> float:
        """The plan's learning rate at a point of the run."""
        plan = self.plan
        return rate_at(
            plan,
            plan.learning_rate,
            examples_seen,
            self.total_examples,
            warmup_start=plan.warmup_start,
        )

    def accumulate(self, window: Window, batches: Iterator[Any]) -> WindowGradient:
        """Leave in ``.grad`` the gradient of a window, taking its micro-batches from ``batches``."""
        sized = zip(window.micro_batch_sizes, batches, strict=False)
        return accumulate_window(
            self._task.loss,
            self.model,
            sized if self._on_cpu else ((size, to_device(b, self.device)) for size, b in sized),
            parameters=self._parameters,
            num_examples=window.num_examples,
            constants=self.plan,
            device=self.device,
        )

    def step(self, norm: float, examples_seen: float) -> float:
        """Clip, set the rate, change the weights, average them: once each.

        Args:
            norm: of the gradient that ``accumulate`` left.
            examples_seen: where in the run the schedule is to be read.

        Returns:
            The learning rate.
        """
        clip_norm = self.plan.clip_norm
        if clip_norm is not None and norm > clip_norm:  # the factor of torch's clip_grad_norm_
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            scale_gradients(gradients, clip_norm / (norm + 1e-6))
        learning_rate = self.rate_at(examples_seen)
        factor = learning_rate / self.plan.learning_rate
        for group, rate in zip(self.optimizer.param_groups, self._group_rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.step()
        if self.averaged is not None:  # its first call copies the weights
            self.averaged.update_parameters(self.model)
        for buffer, kept in self._buffers:
            kept.copy_(buffer)
        return learning_rate

    def discard(self) -> None:
        """Leave the model as the last step left it, whatever has been accumulated since."""
        for buffer, kept in self._buffers:
            buffer.copy_(kept)


class InterruptGuard:
    """Hold back Ctrl-C while the weights change, so that they are always of a whole update.

    ``with guard.installed():`` once round the run; then each ``with guard:`` costs a microsecond.
    Outside the main thread, and where Ctrl-C is ignored, there is nothing to hold back.
    """

    def __init__(self) -> None:
        self._holding = self._pending = False
        self._previous: Any = None

    @contextmanager
    def installed(self) -> Generator[None]:
        """Take SIGINT over from its Python handler, and give it back."""
        self._previous = signal.getsignal(signal.SIGINT)
        if not callable(self._previous) or current_thread() is not main_thread():
            yield
            return
        signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, self._previous)

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._holding:
            self._pending = True
        else:
            self._previous(number, frame)

    def __enter__(self) -> None:
        self._holding = True

    def __exit__(self, *exception: object) -> None:
        self._holding = False
        if self._pending:
            self._pending = False
            self._previous(signal.SIGINT, None)
