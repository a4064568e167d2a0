"""``rightbatch memory``, ``speed`` and ``noise``: one stage of the measurement by itself."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypeVar

from rightbatch.cli.accelerator import accelerator_memory, names_accelerator
from rightbatch.cli.output import Answer
from rightbatch.cli.source import AS_USUAL, Flag, Measuring, load, measured, option, parse_sizes
from rightbatch.core.errors import EXIT_DONE, EXIT_FINDING, MeasurementError
from rightbatch.core.units import format_bytes, parse_bytes
from rightbatch.fit.bound import find_bound
from rightbatch.fit.models import fit_models
from rightbatch.fit.noise_scale import NoiseScale
from rightbatch.report.terminal import render

Model = TypeVar("Model")

_SIZES = "1,4,16,64,256,1024"


def memory(
    task: str,
    /,
    *,
    batch: str = _SIZES,
    limit: str | None = None,
    headroom: float = 0.1,
    measuring: Measuring = AS_USUAL,
    json: Flag = False,
) -> Answer:
    """Predict the peak memory of any batch size without running it.

    With --device cuda:NAME it is predicted for an accelerator that need not be here, such as
    cuda:a100-40gb; another NAME lists them.

    Args:
        task: A built-in name, my_task.py[:name] or package.module:name, or a folder of an earlier plan.
        batch: Micro-batch sizes to predict, in examples, with commas between them.
        limit: Memory that may be used, such as 20GiB; without it, the device's memory.
        headroom: Share of the limit to leave free, from 0 to below 1.
        measuring: How to measure.
        json: Print one JSON document on stdout.
    """
    from rightbatch.report.tables import memory_table

    sizes = option("--batch", parse_sizes, batch)
    given = option("--limit", parse_bytes, limit) if limit else None
    if names_accelerator(measuring.device):
        loaded = load(task, "cpu")
        return accelerator_memory(loaded, measuring.device, sizes, limit_bytes=given, headroom=headroom)
    measurements = measured(task, measuring, ["memory"])
    model = _require(fit_models(measurements).memory, "memory")
    limit_bytes = given or measurements.environment.memory_bytes
    largest = model.max_micro_batch(limit_bytes, headroom)
    predictions: list[dict[str, Any]] = [
        {
            "micro_batch_size": size,
            "peak_bytes": model.peak_bytes(size),
            "low_bytes": model.low_bytes(size),
            "high_bytes": model.high_bytes(size),
            "parts": model.breakdown(size),
        }
        for size in sizes
    ]
    room = f"{format_bytes(limit_bytes)} with {headroom:.0%} of it left free"
    return Answer(
        document={
            "task": measurements.task.name,
            "predictions": predictions,
            "limit_bytes": limit_bytes,
            "max_micro_batch_size": largest,
            "verified": False,
        },
        text=(
            render(memory_table(model, sizes)),
            *(f"Note: {caveat}" for caveat in model.caveats),
            f"The largest micro-batch that fits {room} is {largest:,}, predicted and not run.",
        ),
    )


def speed(task: str, /, *, measuring: Measuring = AS_USUAL, json: Flag = False) -> Answer:
    """Time a training step against batch size, and the loader beside it.

    Args:
        task: A built-in name, my_task.py[:name] or package.module:name, or a folder of an earlier plan.
        measuring: How to measure.
        json: Print one JSON document on stdout.
    """
    from rightbatch.report.sentences import loader_verdict
    from rightbatch.report.tables import speed_table

    measurements = measured(task, measuring, ["memory", "loader", "speed"])
    models = fit_models(measurements)
    model, loader = _require(models.speed, "speed"), _require(models.loader, "loader")
    knee = model.knee_micro_batch_size
    samples: list[dict[str, Any]] = []
    for timing in measurements.step_timings:
        if (size := timing.micro_batch_size) not in model.micro_batch_sizes:
            continue
        low, high = model.interval(size)
        samples.append({
            "micro_batch_size": size,
            "seconds": model.step_seconds(size),
            "low": low,
            "high": high,
            "examples_per_second": model.examples_per_second(size),
            "repetitions": len(timing.seconds),
        })
    return Answer(
        document={
            "task": measurements.task.name,
            "samples": samples,
            "optimizer_seconds": model.optimizer_seconds,
            "knee_micro_batch_size": knee,
            "loader_examples_per_second": loader.examples_per_second(knee),
            "bound": find_bound(model, loader, measurements.task.recipe.batch_size),
        },
        text=(render(speed_table(model, loader)), loader_verdict(models, plan=None)),
    )


def noise(task: str, /, *, measuring: Measuring = AS_USUAL, json: Flag = False) -> Answer:
    """Estimate the gradient noise scale over a short pilot run.

    Args:
        task: A built-in name, my_task.py[:name] or package.module:name, or a folder of an earlier plan.
        measuring: How to measure.
        json: Print one JSON document on stdout.
    """
    from rightbatch.report.sentences import noise_sentence
    from rightbatch.report.tables import noise_table

    measurements = measured(task, measuring, ["noise"])
    models = fit_models(measurements)
    summary = _require(models.noise, "noise")
    return Answer(
        document={
            "task": measurements.task.name,
            "points": [_scale(point) for point in models.noise_points],
            "summary": _scale(summary),
        },
        text=(render(noise_table(models.noise_points)), noise_sentence(summary)),
        exit_code=EXIT_DONE if summary.decided else EXIT_FINDING,
    )


def _scale(scale: NoiseScale) -> dict[str, Any]:
    return asdict(scale) | {"decided": scale.decided}


def _require(model: Model | None, stage: str) -> Model:
    if model is None:
        hint = "give the measurement more time: --time-budget"
        raise MeasurementError(f"no usable samples of {stage}", need="a few", hint=hint)
    return model
