"""Critical batch size of each regret sweep over the noise scale that a plan measured before it.

The pairs stand in ``rightbatch/fit/calibration.py``. Prints and saves the critical batch size with its
bootstrap interval, both kinds of noise scale, and the factors.

    python benchmarks/noise/calibration.py digits digits-cnn fashion-vit fashion-mnist
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import save
from regret.sweep import RESULTS, read_runs
from rightbatch.core.samples import Measurements
from rightbatch.core.store import read_record
from rightbatch.fit.hyperbola import best_rates, critical_bounds, fit_hyperbola
from rightbatch.fit.noise_scale import average_over_training, noise_over_training


def read_sweep(name: str) -> dict[int, dict[float, list[float]]]:
    """Batch size to rate factor to updates per seed; seeds that not every run had are left out."""
    runs: dict[int, dict[int, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in read_runs(name):
        runs[run["seed"]][run["batch_size"]][run["factor"]] = run["updates"]
    size = max(sum(map(len, found.values())) for found in runs.values())
    whole = [found for found in runs.values() if sum(map(len, found.values())) == size]
    return {
        batch: {factor: [found[batch][factor] for found in whole] for factor in whole[0][batch]}
        for batch in whole[0]
    }


def row(name: str) -> dict[str, Any]:
    steps = read_sweep(name)
    best = best_rates(steps)
    fit = fit_hyperbola([one.batch_size for one in best], [one.steps for one in best])
    low, high = critical_bounds(steps, fit, np.random.default_rng(0))
    measurements = read_record(RESULTS / name / "measurements.json", Measurements)
    found: dict[str, Any] = {
        "task": name,
        "optimizer": measurements.task.optimizer_class,
        "seeds": len(next(iter(steps[best[0].batch_size].values()))),
        "critical_batch_size": {"value": fit.critical_batch_size, "low": low, "high": high},
        "log_rms": fit.log_rms,
    }
    kinds = {
        "plain": True,
        "preconditioned": measurements.gradients[0].preconditioned_big_sq_norm is not None,
    }
    for kind, is_there in kinds.items():
        if is_there:
            points = noise_over_training(measurements.gradients, preconditioned=kind != "plain")
            noise = average_over_training(points)
            scale = noise.noise_scale or noise.low
            found[kind] = {
                "noise_scale": scale,
                "low": noise.low,
                "high": noise.high,
                "factor": fit.critical_batch_size / scale,
            }
    return found


if __name__ == "__main__":
    save("noise_calibration", {"rows": [row(name) for name in sys.argv[1:]]})
