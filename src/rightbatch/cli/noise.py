"""``rightbatch noise``: how many examples a step can use, where that goes, what other batches gain."""

from __future__ import annotations

from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from rightbatch.cli.output import Answer
from rightbatch.cli.source import (
    AS_USUAL,
    Flag,
    Measuring,
    load,
    measure_task,
    option,
    read_saved,
    require,
    saved_file,
)
from rightbatch.core.errors import EXIT_DONE, EXIT_FINDING, InvalidInputError
from rightbatch.core.samples import GradientSample, Measurements
from rightbatch.core.store import write_record
from rightbatch.fit.models import fit_models
from rightbatch.fit.noise_heading import fit_heading
from rightbatch.fit.noise_scale import MIN_SAMPLES, NoiseScale, steps_needed
from rightbatch.fit.sparse_noise import SparseNoise, estimate_sparse_noise
from rightbatch.fit.steps_model import StepsModel, batches_around, gains
from rightbatch.report.terminal import render

_DEFINITION = "twice the fewest steps and twice the fewest examples (McCandlish et al. 2018)"
_COUPLED = {
    "batch-norm": "BatchNorm couples the examples of a batch, so noise was measured on groups of them.",
    "loss": "The loss couples the examples of a batch: the gradient of a batch is not the mean of its"
    " parts'. Noise was measured between whole batches of today's size and counted in their examples.",
}


def noise(
    task: str,
    /,
    *,
    precision_wanted: str | None = None,
    out: Path | None = None,
    measuring: Measuring = AS_USUAL,
    json: Flag = False,
) -> Answer:
    """Estimate the gradient noise scale over a short pilot run, and what other batches would gain.

    Args:
        task: A built-in name, my_task.py[:name] or package.module:name, or a folder of an earlier plan.
        precision_wanted: Such as 20%: say how much more measuring an interval that narrow would take.
        out: Folder for measurements and report; without it nothing is saved.
        measuring: How to measure.
        json: Print one JSON document on stdout.
    """
    from rightbatch.report import noise as text
    from rightbatch.report.sentences import noise_sentence

    wanted = option("--precision-wanted", parse_share, precision_wanted) if precision_wanted else None
    measurements, report = _measurements(task, measuring, out)
    models = fit_models(measurements)
    summary, steps = require(models.noise, "noise"), require(models.steps, "noise")
    points, samples = models.noise_points, measurements.gradients
    today = measurements.task.recipe.batch_size
    heading = fit_heading(points)
    table = gains(steps, batches_around(today), today)
    sparse = _sparse(samples)
    seconds = _seconds_per_sample(samples)
    couplings = {sample.coupling for sample in samples if sample.coupling}
    unit = text.unit_sentence(summary)
    return Answer(
        document={
            "task": measurements.task.name,
            "points": [_scale(point) for point in points],
            "summary": _scale(summary),
            "unit": {"name": "examples", "targets_per_example": summary.targets_per_example},
            "batch_size": today,
            "coupling": next(iter(couplings), None),
            "heading": asdict(heading),
            "critical_batch_size": _critical(steps),
            "gains": [_plain(asdict(gain)) for gain in table],
            "sparse": [_plain(asdict(point)) for point in sparse],
            "precision": None if wanted is None else _precision(summary, wanted, seconds),
            "files": {"report": str(report) if report else None},
        },
        text=(
            render(text.noise_chart_table(points)),
            noise_sentence(summary),
            *([unit] if unit else []),
            text.heading_sentence(heading),
            render(text.gains_table(table, today)),
            text.gains_sentence(steps, today),
            *([render(text.sparse_table(sparse)), text.sparse_sentence(sparse[-1])] if sparse else []),
            *([] if wanted is None else [text.precision_sentence(summary, wanted, seconds)]),
            *(f"Note: {_COUPLED[coupling]}" for coupling in sorted(couplings)),
            *(f"Note: {note}" for note in measurements.notes),
            *([f"Report: {report}"] if report else []),
        ),
        exit_code=EXIT_DONE if summary.decided else EXIT_FINDING,
    )


def parse_share(text: str) -> float:
    """Read a positive share, in per cent or not.

    >>> parse_share("20%"), parse_share("0.2")
    (0.2, 0.2)

    Raises:
        InvalidInputError: it is no positive number.
    """
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InvalidInputError(repr(text), need="a positive share", hint="write 20% or 0.2")
    return value


def _measurements(
    spec: str, measuring: Measuring, out: Path | None
) -> tuple[Measurements, Path | None]:
    """The measurements, and the report where a folder was given."""
    if path := saved_file(spec):
        measurements = read_saved(path, measuring)
        if out is not None and out != path.parent:
            write_record(out / "measurements.json", measurements)
    else:
        measurements = measure_task(load(spec, measuring.device), measuring, stages=["noise"], out=out)
    if out is None:
        return measurements, None
    from rightbatch.report.html import write_report

    return measurements, write_report(out)


def _scale(scale: NoiseScale) -> dict[str, Any]:
    """A noise scale in examples, and in targets where these are others."""
    values = asdict(scale) | {"decided": scale.decided}
    if (per := scale.targets_per_example) == 1:
        return values
    bounds = {key: values[key] for key in ("noise_scale", "low", "high")}
    return values | {f"{key}_targets": None if v is None else v * per for key, v in bounds.items()}


def _critical(steps: StepsModel) -> dict[str, Any]:
    return {
        "value": steps.critical_batch_size if steps.decided else None,
        "low": steps.low,
        "high": steps.high if steps.decided else None,
        "definition": _DEFINITION,
        "calibration": steps.calibration,
        "calibration_log_sd": steps.calibration_log_sd,
    }


def _precision(summary: NoiseScale, wanted: float, seconds: float | None) -> dict[str, Any]:
    more = steps_needed(summary, wanted)
    cost = None if more is None or seconds is None else more * seconds
    return {"relative_error": wanted, "more_samples": more, "more_seconds": cost}


def _sparse(samples: tuple[GradientSample, ...]) -> list[SparseNoise]:
    """One estimate for each point of the pilot, where the task says what its positives are."""
    ordered = sorted(samples, key=lambda sample: sample.examples_seen)
    points = [list(group) for _, group in groupby(ordered, key=lambda sample: sample.examples_seen)]
    found = [estimate_sparse_noise(point) for point in points if len(point) >= MIN_SAMPLES]
    return [point for point in found if point is not None]


def _seconds_per_sample(samples: tuple[GradientSample, ...]) -> float | None:
    timed = [sample.seconds for sample in samples if sample.seconds is not None]
    return sum(timed) / len(timed) if timed else None


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Records inside a dictionary as JSON has them."""
    return {k: v.model_dump(mode="json") if hasattr(v, "model_dump") else v for k, v in values.items()}
