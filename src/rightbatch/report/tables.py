"""The numbers behind the report as tables of text, for readers with and without the figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rightbatch.core.plan import Decision, Plan
from rightbatch.core.recipe import Recipe
from rightbatch.core.samples import Measurements, Owner
from rightbatch.core.units import format_bytes, format_number, format_seconds
from rightbatch.fit.loader_model import LoaderModel
from rightbatch.fit.memory_model import MemoryModel
from rightbatch.fit.models import Models
from rightbatch.fit.noise_scale import NoiseScale
from rightbatch.fit.speed_model import SpeedModel
from rightbatch.report.history import RunHistory
from rightbatch.report.sentences import interval_text, percent

OPEN = "open"  # a bound that the data did not set


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of text under named columns."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[str] = frozenset()
    """Columns that hold words; the others hold numbers and align to the right."""


def memory_limit_bytes(measurements: Measurements, plan: Plan | None) -> int:
    """What the plan had to fit into, or the device's memory where there is no planned limit."""
    planned = plan.memory_limit_bytes if plan else None
    return planned or measurements.environment.memory_bytes


def value_text(value: float | int | str | bool | None, name: str = "") -> str:
    """A planned value as people read it; the unit follows from the name.

    >>> value_text(1_437, "warmup_examples"), value_text(3 * 2**30, "peak_bytes"), value_text(None)
    ('1,437', '3 GiB', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if name.endswith("_bytes"):
        return format_bytes(value)
    return format_seconds(value) if name.endswith("_seconds") else format_number(value)


def decision_text(decision: Decision) -> str:
    """The value with its interval where it has one."""
    text = value_text(decision.value, decision.name)
    bounds = [value_text(bound, decision.name) for bound in (decision.low, decision.high)]
    if decision.low is None and decision.high is None:
        return text
    if decision.high is None:
        return f"{text} ({bounds[0]} or more)"
    return f"{text} (up to {bounds[1]})" if decision.low is None else f"{text} ({' to '.join(bounds)})"


def today_text(name: str, recipe: Recipe) -> str:
    """What today's recipe holds for a planned value; a dash where it has no such entry."""
    if name in {"beta1", "beta2"}:
        return value_text(recipe.betas[name == "beta2"]) if recipe.betas else "optimizer's default"
    field = {"global_batch_size": "batch_size", "learning_rate": "lr"}.get(name, name)
    if field not in Recipe.model_fields:
        return "–"
    value = getattr(recipe, field)
    if field == "optimizer":
        return recipe.optimizer_name
    if field in {"momentum", "betas", "eps", "weight_decay"} and value is None:
        return "optimizer's default"
    if isinstance(value, tuple):
        return ", ".join(map(format_number, value))
    return value_text(value, name)


def memory_table(model: MemoryModel, sizes: Iterable[int]) -> Table:
    """Predicted peaks, and what holds the bytes at each."""
    rows = [(size, model.breakdown(size)) for size in sorted(set(sizes))]
    owners: list[Owner] = [owner for owner in rows[-1][1] if any(parts[owner] for _, parts in rows)]
    return Table(
        columns=("micro-batch", "peak", "low", "high", *(owner.replace("_", " ") for owner in owners)),
        rows=tuple(
            (
                f"{size:,}",
                *map(
                    format_bytes,
                    (model.peak_bytes(size), model.low_bytes(size), model.high_bytes(size)),
                ),
                *(format_bytes(parts[owner]) for owner in owners),
            )
            for size, parts in rows
        ),
    )


def speed_table(speed: SpeedModel, loader: LoaderModel | None) -> Table:
    """Step times and throughputs with 90 % intervals."""
    rows: list[tuple[str, ...]] = []
    for size in speed.micro_batch_sizes:
        low, high = speed.interval(size)
        rows.append((
            f"{size:,}",
            *map(format_seconds, (speed.step_seconds(size), low, high)),
            *map(_round, (speed.examples_per_second(size), size / high, size / low)),
            _round(loader.examples_per_second(size)) if loader else "not measured",
        ))
    columns = (
        "micro-batch",
        "step",
        "low",
        "high",
        "examples/s",
        "low",
        "high",
        "loader alone, examples/s",
    )
    return Table(columns=columns, rows=tuple(rows))


def noise_table(points: Sequence[NoiseScale]) -> Table:
    """The noise scale at each point of the pilot."""
    return Table(
        columns=("examples seen", "noise scale", "low", "high", "|G|²", "tr Σ", "samples"),
        rows=tuple(
            (
                f"{p.examples_seen:,}",
                "undecided" if p.noise_scale is None or not p.decided else _round(p.noise_scale),
                _round(p.low),
                OPEN if p.high is None else _round(p.high),
                f"{p.grad_sq_norm:.3g}",
                f"{p.trace_covariance:.3g}",
                str(p.num_samples),
            )
            for p in points
        ),
    )


def candidates_table(plan: Plan, today: int) -> Table:
    """Every batch size that was scored, today's and the plan's named."""
    rows: list[tuple[str, ...]] = []
    for c in plan.candidates:
        names = [
            name
            for name, holds in (
                ("plan", c.global_batch_size == plan.global_batch_size),
                ("today", c.global_batch_size == today),
                ("plateau", plan.plateau and plan.plateau[0] <= c.global_batch_size <= plan.plateau[1]),
            )
            if holds
        ]
        rows.append((
            f"{c.global_batch_size:,}",
            f"{c.micro_batch_size:,} x {c.accumulation_steps:,}"
            + (f" x {c.num_replicas:,}" if c.num_replicas > 1 else ""),
            interval_text(c.seconds_ratio),
            interval_text(c.examples_ratio),
            percent(c.regret),
            format_seconds(c.update_seconds),
            format_bytes(c.peak_bytes),
            ", ".join(names),
        ))
    columns = (
        "global batch",
        "micro x accumulation (x replicas)",
        "time, of today's",
        "examples, of today's",
        "expected regret",
        "one update",
        "peak memory",
        "",
    )
    return Table(columns=columns, rows=tuple(rows), words=frozenset({""}))


def runs_table(runs: Sequence[RunHistory], metric: str | None) -> Table:
    """What each run reached, and what it cost."""
    rows: list[tuple[str, ...]] = []
    for run in runs:
        last = run.evaluations[-1] if run.evaluations else None
        value = last.metrics.get(metric) if last and metric else None
        rows.append((
            run.name,
            run.outcome,
            f"{run.global_batch_size:,}",
            f"{last.examples:,}" if last else "–",
            f"{last.updates:,}" if last else "–",
            format_seconds(last.seconds) if last else "–",
            f"{last.train_loss:.4g}" if last else "–",
            "–" if value is None else f"{value:.4g}",
            run.run.message if run.run else "",
        ))
    columns = ("run", "outcome", "batch", "examples", "updates", "time", "training loss")
    words = frozenset({"run", "outcome", "in words"})
    return Table(columns=(*columns, metric or "metric", "in words"), rows=tuple(rows), words=words)


def curves_table(runs: Sequence[RunHistory], metric: str | None) -> Table:
    """Every evaluation of every run."""
    rows = [
        (
            run.name,
            f"{e.examples:,}",
            f"{e.updates:,}",
            format_seconds(e.seconds),
            f"{e.train_loss:.4g}",
            f"{e.metrics[metric]:.4g}" if metric in e.metrics else "–",
        )
        for run in runs
        for e in run.evaluations
    ]
    columns = ("run", "examples", "updates", "time", "training loss", metric or "metric")
    return Table(columns=columns, rows=tuple(rows), words=frozenset({"run"}))


def models_table(models: Models, measurements: Measurements) -> Table:
    """Each fitted model: its law, what it was fitted to, how well, and where it holds."""
    rows: list[tuple[str, ...]] = []
    if models.memory:
        sizes = sorted({trace.micro_batch_size for trace in measurements.memory})
        law = "highest of the lines that every moment of a step follows in the micro-batch size"
        traces = f"{len(measurements.memory)} traces, at micro-batch {', '.join(map(str, sizes))}"
        rows.append((
            "peak memory",
            law,
            traces,
            f"{models.memory.residual_bytes:,} bytes",
            f"micro-batch 1 to {models.memory.valid_range[1]:,}",
        ))
    if models.speed:
        law = "medians at the measured sizes, straight lines between"
        counts = [len(timing.seconds) for timing in measurements.step_timings]
        timings = f"{sum(counts)} steps at {len(counts)} sizes"
        rows.append(("step time", law, timings, *_fit(models.speed.residual, models.speed.valid_range)))
    if models.loader:
        law = "seconds = {} + {} x micro-batch".format(
            *map(format_seconds, (models.loader.batch_seconds, models.loader.example_seconds))
        )
        counts = [len(timing.seconds) for timing in measurements.loader_timings]
        timings = f"{sum(counts)} batches at {len(counts)} sizes"
        rows.append((
            "loader time",
            law,
            timings,
            *_fit(models.loader.residual, models.loader.valid_range),
        ))
    if models.noise:
        law = "tr(Σ) / |G|², a ratio of means at each point, averaged over the pilot on a log scale"
        points = f"{models.noise.num_samples} pairs of norms at {len(models.noise_points)} points"
        rows.append((
            "noise scale",
            law,
            points,
            "–",
            f"to {models.noise.examples_seen:,} examples seen",
        ))
    if models.steps:
        law = (
            f"examples grow as 1 + B / B_crit, B_crit = {models.steps.calibration:g} x noise scale"
            f" (spread x{math.exp(models.steps.calibration_log_sd):.2g} over sweeps of small networks)"
        )
        rows.append((
            "examples to target",
            law,
            "the noise scale",
            "–",
            "constants moved with the batch",
        ))
    columns = ("model", "law", "fitted to", "residual", "holds for")
    return Table(columns=columns, rows=tuple(rows), words=frozenset(columns) - {"residual"})


def environment_table(measurements: Measurements) -> Table:
    """The machine and the task that every number belongs to."""
    env, task = measurements.environment, measurements.task
    rows = (
        ("device", f"{env.device} ({env.device_name}), {format_bytes(env.memory_bytes)}"),
        ("threads", str(env.num_threads)),
        ("software", f"Python {env.python}, torch {env.torch}, {env.platform}"),
        (
            "data",
            f"{task.num_train_examples:,} training, {task.num_valid_examples:,} validation examples",
        ),
        ("model", f"{task.num_parameters:,} parameters, {task.num_trainable_parameters:,} trainable"),
        ("batch-norm layers", f"{task.num_batch_norm_layers:,}"),
        ("optimizer", task.optimizer_class),
        ("task fingerprint", task.fingerprint),
    )
    return Table(columns=("", ""), rows=rows, words=frozenset({""}))


def _fit(residual: float | None, holds: str | tuple[int, int]) -> tuple[str, str]:
    """The last two columns of a fitted model."""
    words = holds if isinstance(holds, str) else f"micro-batch {holds[0]:,} to {holds[1]:,}"
    return "–" if residual is None else percent(residual), words


def _round(value: float) -> str:
    """Three digits: no sample here deserves a fourth."""
    return format_number(float(f"{value:.3g}"))
