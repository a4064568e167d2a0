"""Seconds to score 10,000 candidates under 1,000 draws, and to make a whole plan.

python benchmarks/planner_speed.py
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the laws that tests plan from

import known
from common import save
from rightbatch.fit.models import fit_models
from rightbatch.plan.candidates import Candidates, Split, enumerate_candidates
from rightbatch.plan.fitted import Fitted, fit_all
from rightbatch.plan.limits import Limits
from rightbatch.plan.planner import make_plan
from rightbatch.plan.score import score

ROUNDS = 9


def quartiles(times: list[float]) -> dict[str, float]:
    low, middle, high = (round(float(q), 4) for q in np.quantile(times, [0.25, 0.5, 0.75]))
    return {"median_seconds": middle, "low_quartile": low, "high_quartile": high}


def many(fitted: Fitted, count: int) -> Candidates:
    """The first ``count`` candidates of a task on 10^10 examples and very many devices."""
    found = enumerate_candidates(fitted.modes, largest_global=10**10, today=32, num_replicas=2**17)
    assert len(found) >= count
    return found.take(slice(count))


def seconds_to_score(count: int) -> float:
    measured = known.measurements(known.Laws(load_seconds=(1e-4, 1e-6), num_workers=2))
    fitted = fit_all(measured, fit_models(measured), Limits(num_replicas=64))
    candidates = many(fitted, count)
    today = Candidates.of([Split(micro_batch_size=32, accumulation_steps=1)])
    start = time.perf_counter()
    scores = score(candidates, today, fitted.update_seconds, fitted.draws, "balanced")
    assert scores.regret.min() >= 0
    return time.perf_counter() - start


def seconds_to_plan() -> float:
    facts = known.facts(num_train_examples=1_000_000)
    measured = known.measurements(task=facts)
    start = time.perf_counter()
    make_plan(facts, measured, "time", Limits(num_replicas=64))
    return time.perf_counter() - start


def main() -> None:
    scoring = [seconds_to_score(10_000) for _ in range(ROUNDS)]
    planning = [seconds_to_plan() for _ in range(ROUNDS)]
    rows = [
        {"what": "score 10,000 candidates under 1,000 draws", **quartiles(scoring)},
        {"what": "make a plan for up to 64 replicas", **quartiles(planning)},
    ]
    save("planner_speed", {"rounds": ROUNDS, "rows": rows})


if __name__ == "__main__":
    main()
