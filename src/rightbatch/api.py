"""The verbs that need more than one stage as functions; the others live in their stage."""

from __future__ import annotations

import dataclasses

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.recipe import Precision
from rightbatch.fit.memory_model import MemoryModel, fit_memory_model
from rightbatch.fit.noise_scale import NoiseScale
from rightbatch.fit.speed_model import SpeedModel, fit_speed
from rightbatch.measure.memory import measure_memory
from rightbatch.measure.memory.options import StepOptions
from rightbatch.measure.noise import measure_noise_updates
from rightbatch.measure.session import measure
from rightbatch.tasks.check import check_task
from rightbatch.tasks.task import Task


def fit_memory(
    task: Task,
    device: str = "cpu",
    precision: Precision | None = None,
    checkpointing: bool = False,
) -> MemoryModel:
    """Predict the peak memory of today's recipe at any micro-batch size, from traces of a few.

    Args:
        task: what ``load_task`` gave.
        device: ``cpu``, where the traced kernels run.
        precision: replaces the recipe's.
        checkpointing: recompute the activations of repeated blocks in backward.

    Raises:
        InvalidInputError: another device.
        InvalidTaskError: the task cannot be traced as it stands, or has no repeated block.
    """
    if device != "cpu":
        found, hint = f"device {device!r}", "trace on the CPU: fit_memory(task)"
        raise InvalidInputError(found, need="cpu, whose kernels are traced", hint=hint)
    if precision is not None:
        task = dataclasses.replace(task, recipe=task.recipe.replace(precision=precision))
    check_task(task)
    return fit_memory_model(measure_memory(task, options=StepOptions(checkpointing=checkpointing)))


def measure_speed(task: Task, *, time_budget_seconds: float = 30.0, device: str = "cpu") -> SpeedModel:
    """Time a training step at micro-batch sizes that double until throughput has saturated.

    Args:
        task: what ``load_task`` gave.
        time_budget_seconds: longest time to measure; memory is traced first, to bound the sizes.
        device: as torch names it.

    Raises:
        InvalidTaskError: the task cannot be run as it stands.
        MeasurementError: the time was too short for a single size.
    """
    measurements = measure(
        task, device=device, time_budget_seconds=time_budget_seconds, stages=("memory", "speed")
    )
    return fit_speed(measurements.step_timings, measurements.optimizer_seconds)


def measure_noise(task: Task, *, updates: int, batch_size: int, seed: int = 0) -> NoiseScale:
    """Train ``updates`` steps of ``batch_size`` examples and estimate the gradient noise scale.

    Args:
        task: trained with its recipe's optimizer and constants.
        updates: optimizer steps, at least 3.
        batch_size: examples per step, at least 2.
        seed: of initialisation and draws.

    Raises:
        InvalidInputError: a batch of fewer than 2 examples.
        MeasurementError: fewer than 3 updates, or training diverges.
    """
    return measure_noise_updates(task, updates=updates, batch_size=batch_size, seed=seed)
