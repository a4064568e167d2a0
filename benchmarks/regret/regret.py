"""How much slower than the best in the sweep is the batch that each strategy chooses?

Time to the target of a batch is the sweep's updates to the target times seconds per update. Seconds
are a + c B for four ratios a/c, so that the same sweep stands for devices from "throughput saturates
at 8 examples" to 512; strategies see the noise measured by ``rightbatch plan`` before the sweep and
those seconds, never the sweep, nor does the calibration of noise scales that plans go by know it.
Regret is the time of the chosen batch over that of the best.

    rightbatch plan digits --out benchmarks/results/regret/digits     # on a quiet machine
    python benchmarks/regret/regret.py digits digits-cnn ...
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from sweep import RESULTS, read_runs

from common import save
from rightbatch.core.plan import Plan
from rightbatch.core.samples import Measurements, StepTiming
from rightbatch.core.store import read_record
from rightbatch.fit import steps_model
from rightbatch.fit.calibration import SWEEPS, calibrate
from rightbatch.fit.models import fit_models
from rightbatch.fit.noise_scale import average_over_training, noise_over_training
from rightbatch.plan.planner import make_plan

RATIOS = (8.0, 32.0, 128.0, 512.0)
PER_EXAMPLE = 1e-5
TODAY = 32

Steps = dict[int, dict[float, float]]
"""Batch size to rate factor to updates to the target; infinite where a seed did not reach it."""


def read_sweep(name: str) -> Steps:
    runs: dict[int, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in read_runs(name):
        runs[run["batch_size"]][run["factor"]].append(run["updates"])
    return {
        size: {factor: geometric_mean(found) for factor, found in sorted(factors.items())}
        for size, factors in sorted(runs.items())
    }


def with_seconds(measurements: Measurements, overhead: float) -> Measurements:
    """The same noise and memory on a device whose update takes a + c B."""
    sizes = [2**k for k in range(11)]
    timings = tuple(
        StepTiming(micro_batch_size=b, seconds=((overhead + b) * PER_EXAMPLE,) * 5) for b in sizes
    )
    return measurements.replace(
        step_timings=timings,
        optimizer_seconds=(1e-9,) * 5,
        loader_timings=tuple(
            t.replace(seconds=(1e-12 * t.micro_batch_size,) * 5) for t in measurements.loader_timings
        ),
    )


def nearest(sizes: list[int], wanted: float) -> int:
    return min(sizes, key=lambda size: abs(math.log(size / wanted)))


def choices(
    measurements: Measurements, plan: Plan, overhead: float, sizes: list[int]
) -> dict[str, int]:
    """The batch of each strategy, at the nearest size of the sweep."""
    plain = average_over_training(noise_over_training(measurements.gradients, preconditioned=False))
    noise = plain.noise_scale or plain.low
    models = fit_models(measurements)
    assert models.steps is not None
    today = measurements.task.recipe.batch_size

    def goodput(size: int) -> float:  # AdaptDL: throughput x (noise + B0) / (noise + B)
        return size / (overhead + size) * (noise + today) / (noise + size)

    def central(size: int) -> float:
        return (1 + models.steps.critical_batch_size / size) * (overhead + size)

    return {
        "rightbatch": nearest(sizes, plan.global_batch_size),
        "its models without intervals": min(sizes, key=central),
        "today's recipe": nearest(sizes, today),
        "fixed 32": TODAY,
        "largest": sizes[-1],
        "80 % of the largest": max(s for s in sizes if s <= 0.8 * sizes[-1]),
        "noise scale alone": nearest(sizes, noise),
        "AdaptDL goodput": max(sizes, key=goodput),
        "largest power of two (Lightning's finder)": sizes[-1],
    }


def study(name: str) -> dict[str, Any]:
    others = [sweep for sweep in SWEEPS if sweep.name != name]
    steps_model.calibrate = partial(calibrate, sweeps=others)
    steps = read_sweep(name)
    sizes = sorted(steps)
    measurements = read_record(RESULTS / name / "measurements.json", Measurements)
    rows: list[dict[str, Any]] = []
    stated: list[dict[str, Any]] = []
    for overhead in RATIOS:
        best = {b: min(steps[b].values()) * (overhead + b) for b in sizes}
        ruled = {b: steps[b].get(1.0, math.inf) * (overhead + b) for b in sizes}
        fastest = min(best.values())
        seen = with_seconds(measurements, overhead)
        plan = make_plan(seen.task, seen, "time")
        today = nearest(sizes, seen.task.recipe.batch_size)
        planned = nearest(sizes, plan.global_batch_size)
        if planned != today and plan.predicted:
            stated.append({
                "overhead": overhead,
                "probability_better": plan.predicted.probability_better,
                "predicted_ratio": plan.predicted.seconds_to_target_ratio.model_dump(),
                "ratio": best[planned] / best[today],
            })
        for strategy, size in choices(seen, plan, overhead, sizes).items():
            rows.append({
                "overhead": overhead,
                "strategy": strategy,
                "batch_size": size,
                "regret_rate_tuned": best[size] / fastest,
                "regret_rate_by_rule": ruled[size] / fastest,
                "best_batch_size": min(best, key=best.__getitem__),
            })
    return {
        "task": name,
        "updates": {str(b): steps[b] for b in sizes},
        "rate_exponent": rate_exponent(name, steps),
        "stated": stated,
        "rows": rows,
    }


def rate_exponent(name: str, steps: Steps) -> dict[str, float]:
    """Slope of the best rate against the batch size, both in logarithms, with its standard error."""
    rates = {(run["batch_size"], run["factor"]): run["rate"] for run in read_runs(name)}
    best = {b: min(found, key=found.__getitem__) for b, found in steps.items()}
    x = np.log([float(b) for b in best])
    y = np.log([rates[b, factor] for b, factor in best.items()])
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    return {"value": float(slope), "standard_error": float(covariance[0, 0] ** 0.5), "n": len(best)}


def summary(studies: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in (row for one in studies for row in one["rows"]):
        found[row["strategy"]].append((row["regret_rate_tuned"], row["regret_rate_by_rule"]))
    return {
        strategy: {
            "median": median(tuned for tuned, _ in values),
            "worst": max(tuned for tuned, _ in values),
            "median_rate_by_rule": median(ruled for _, ruled in values),
            "worst_rate_by_rule": max(ruled for _, ruled in values),
            "n": len(values),
        }
        for strategy, values in found.items()
    }


def calibration(studies: list[dict[str, Any]]) -> dict[str, Any]:
    """Stated probabilities to beat today's recipe against how often it was, rates tuned on both."""
    stated = [one for found in studies for one in found["stated"]]
    better = [one["ratio"] < 1 for one in stated]
    inside = [
        (one["predicted_ratio"]["low"] or 0)
        <= one["ratio"]
        <= (one["predicted_ratio"]["high"] or math.inf)
        for one in stated
    ]
    return {
        "n": len(stated),
        "mean_probability": float(np.mean([one["probability_better"] for one in stated])),
        "share_better": float(np.mean(better)),
        "share_inside_90_interval": float(np.mean(inside)),
    }


def main() -> None:
    studies = [study(name) for name in sys.argv[1:] or ["digits", "digits-cnn"]]
    found = {"summary": summary(studies), "calibration": calibration(studies)}
    save("regret", found | {"studies": studies})


if __name__ == "__main__":
    main()
