"""All models of one set of measurements, fitted together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rightbatch.core.errors import MeasurementError
from rightbatch.core.samples import Measurements
from rightbatch.fit.loader_model import LoaderModel, fit_loader
from rightbatch.fit.memory_model import MemoryModel, fit_memory_model
from rightbatch.fit.noise_scale import NoiseScale, average_over_training, noise_over_training
from rightbatch.fit.speed_model import SpeedModel, fit_speed
from rightbatch.fit.steps_model import StepsModel, fit_steps

Model = TypeVar("Model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """One model for each stage; None where that stage left no samples."""

    memory: MemoryModel | None
    speed: SpeedModel | None
    loader: LoaderModel | None
    noise_points: tuple[NoiseScale, ...]
    """Over the pilot; preconditioned where the optimizer has second moments."""
    noise: NoiseScale | None
    """Their average."""
    steps: StepsModel | None


def fit_models(measurements: Measurements) -> Models:
    """Fit whatever the samples carry; a stage with none or too few gives None, never a guess."""
    preconditioned = any(s.preconditioned_big_sq_norm is not None for s in measurements.gradients)
    points = noise_over_training(measurements.gradients, preconditioned=preconditioned)
    noise = average_over_training(points) if points else None
    family = measurements.task.optimizer_family
    return Models(
        memory=_unless_too_few(fit_memory_model, measurements.memory),
        speed=_unless_too_few(fit_speed, measurements.step_timings, measurements.optimizer_seconds),
        loader=_unless_too_few(fit_loader, measurements.loader_timings),
        noise_points=tuple(points),
        noise=noise,
        steps=fit_steps(noise, family, preconditioned=preconditioned) if noise else None,
    )


def _unless_too_few(fit: Callable[..., Model], *samples: Sequence[Any]) -> Model | None:
    try:
        return fit(*samples)
    except MeasurementError:
        return None
