"""Do the verdicts and intervals of `rightbatch validate` keep their promises?

Paired differences of known mean are drawn 1000 times per case and judged as the verb judges them.
The margin is 1; `spread` is the standard deviation of a pair's difference in margins. Shapes beside
the normal: the metric of a small validation set comes in steps, and now and then a seed fails.

    python benchmarks/validate/calibration.py
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import save
from rightbatch.validate.statistics import (
    LEVEL,
    bootstrap_interval,
    judge,
    more_seeds,
    paired_difference,
)

COMPARISONS = 1000
MARGIN = 1.0
STEPS = {"steps": 1 / 8, "coarse": 1 / 2}  # 1600 and 400 validation examples for a margin of 0.005
SHAPES = ("normal", "steps", "coarse", "skewed")


def draw(rng: np.random.Generator, shape: str, mean: float, spread: float, seeds: int) -> list[float]:
    skewed = shape == "skewed"  # a shifted exponential: rare bad seeds
    noise = 1 - rng.exponential(size=seeds) if skewed else rng.standard_normal(seeds)
    values = mean + spread * noise
    if step := STEPS.get(shape):
        values = step * np.round(values / step)
    return values.tolist()


def case(shape: str, mean: float, spread: float, seeds: int) -> dict[str, Any]:
    key = [SHAPES.index(shape), round(100 * mean), round(100 * spread), seeds]
    rng = np.random.default_rng(key)
    verdicts: Counter[str] = Counter()
    covered = bootstrap_covered = 0
    for _ in range(COMPARISONS):
        values = draw(rng, shape, mean, spread, seeds)
        found = paired_difference(values, step=STEPS.get(shape, 0.0))
        verdicts[judge(found, MARGIN, higher_is_better=True)] += 1
        covered += found.low <= mean <= found.high
        low, high = bootstrap_interval(values, rng, draws=200)
        bootstrap_covered += low <= mean <= high
    share = {
        name: verdicts[name] / COMPARISONS for name in ("better", "equivalent", "worse", "undecided")
    }
    return {
        "shape": shape,
        "true_difference": mean,
        "spread": spread,
        "seeds": seeds,
        "verdicts": share,
        "coverage": covered / COMPARISONS,
        "bootstrap_coverage": bootstrap_covered / COMPARISONS,
    }


def one_extension(spread: float, seeds: int) -> dict[str, Any]:
    """False verdicts without a difference, if an undecided comparison adds the seeds it was told."""
    rng = np.random.default_rng([9, round(100 * spread), seeds])
    false = 0
    for _ in range(COMPARISONS):
        values = draw(rng, "normal", 0.0, spread, seeds)
        verdict = judge(paired_difference(values), MARGIN, higher_is_better=True)
        if verdict == "undecided" and (more := more_seeds(values, MARGIN)):
            values += draw(rng, "normal", 0.0, spread, more)
            verdict = judge(paired_difference(values), MARGIN, higher_is_better=True)
        false += verdict in {"better", "worse"}
    return {"spread": spread, "seeds": seeds, "false_verdicts": false / COMPARISONS}


def study() -> dict[str, Any]:
    spreads, counts = (0.5, 1.0, 2.0), (3, 5, 10)
    none = [case(shape, 0.0, s, n) for shape in SHAPES for s in spreads for n in counts]
    twice = [case(shape, 2.0, s, 5) for shape in SHAPES for s in spreads]
    edge = [case("normal", 1.0, s, n) for s in spreads for n in counts]
    covered = [one["coverage"] for one in none + twice + edge if one["shape"] != "skewed"]
    return {
        "comparisons_per_case": COMPARISONS,
        "level": LEVEL,
        "no_difference": none,
        "twice_the_margin": twice,
        "at_the_margin": edge,
        "extended_once": [one_extension(s, n) for s in spreads for n in (3, 5)],
        "summary": {
            "worst_false_verdicts": max(_false(one) for one in none if one["shape"] != "skewed"),
            "mean_false_verdicts": float(np.mean([_false(o) for o in none if o["shape"] != "skewed"])),
            "worst_false_equivalent": max(one["verdicts"]["equivalent"] for one in edge),
            "coverage": [min(covered), max(covered)],
        },
    }


def _false(one: dict[str, Any]) -> float:
    return one["verdicts"]["better"] + one["verdicts"]["worse"]


if __name__ == "__main__":
    save("validate_calibration", study())
