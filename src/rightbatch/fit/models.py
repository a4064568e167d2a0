"""All models of one set of measurements, fitted together."""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch.core.samples import Measurements
from rightbatch.fit.loader_model import LoaderModel, fit_loader
from rightbatch.fit.memory_model import MemoryModel, fit_memory_model
from rightbatch.fit.noise_scale import NoiseScale, average_over_training, noise_over_training
from rightbatch.fit.speed_model import SpeedModel, fit_speed
from rightbatch.fit.steps_model import StepsModel, fit_steps


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
    """Fit whatever was measured; a stage without samples gives None, never a guess.

    Raises:
        MeasurementError: a stage was cut short before its samples carry a model.
    """
    preconditioned = any(s.preconditioned_big_sq_norm is not None for s in measurements.gradients)
    points = noise_over_training(measurements.gradients, preconditioned=preconditioned)
    noise = average_over_training(points) if points else None
    family = measurements.task.optimizer_family
    timed = measurements.step_timings and measurements.optimizer_seconds
    return Models(
        memory=fit_memory_model(measurements.memory) if measurements.memory else None,
        speed=fit_speed(measurements.step_timings, measurements.optimizer_seconds) if timed else None,
        loader=fit_loader(measurements.loader_timings) if measurements.loader_timings else None,
        noise_points=tuple(points),
        noise=noise,
        steps=fit_steps(noise, family, preconditioned=preconditioned) if noise else None,
    )
