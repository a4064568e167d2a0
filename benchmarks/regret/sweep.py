"""Updates to the target at every batch size and learning rate: the oracle that plans are held against.

One line of JSON per run is appended to results/regret/TASK.jsonl, so an interrupted sweep goes on
where it stopped. Runs hold their rate constant, evaluate about a hundred times on the way, and stop
at the target (interpolated between two evaluations), or as censored at the cap, or after four times the
updates that another rate of the same batch and seed took.

    python benchmarks/regret/sweep.py digits [--minutes 30]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from rightbatch.measure.pilot import Pilot
from rightbatch.tasks.check import evaluate
from rightbatch.tasks.load import load_task
from rightbatch.tasks.task import Task

RESULTS = Path(__file__).parents[1] / "results" / "regret"
BATCH_SIZES = (8, 16, 32, 64, 128, 256, 512)
LARGER = {"fashion-mnist": 2}
"""Where the smallest size would take most of the time of the whole sweep, all are larger by this."""
RATE_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)
SEEDS = (0, 1)
EVALUATIONS = 100
HOPELESS = 4
"""Times the updates of the best rate so far; runs of earlier sweeps went on to the cap."""
EVALUATED = 2000  # validation examples, the first ones
# Target and cap in examples: where a run at today's batch takes about a minute on one core.
TARGETS: dict[str, tuple[float, int]] = {
    "digits": (0.96, 60_000),
    "digits-cnn": (0.97, 60_000),
    "fashion-mnist": (0.85, 180_000),
    "fashion-vit": (0.80, 180_000),
    "shakespeare": (2.2, 96_000),
}


def rule_rate(task: Task, batch_size: int) -> float:
    """The recipe's rate moved linearly for SGD, by the square root for Adam."""
    power = 1.0 if task.recipe.optimizer_name == "sgd" else 0.5
    return task.recipe.lr * (batch_size / task.recipe.batch_size) ** power


def read_runs(name: str) -> list[dict[str, Any]]:
    """Every run of a sweep so far; updates are infinite where the target was not reached."""
    runs = [json.loads(line) for line in (RESULTS / f"{name}.jsonl").read_text().splitlines()]
    return [
        run | {"updates": max(run["updates"], 1.0) if run["outcome"] == "reached" else math.inf}
        for run in runs
    ]


def note(best: dict[tuple[int, int], float], line: dict[str, Any]) -> None:
    """Remember the fewest updates to the target of a batch and seed."""
    key = line["batch_size"], line["seed"]
    if line["outcome"] == "reached":
        best[key] = min(best.get(key, math.inf), line["updates"])


def run(task: Task, batch_size: int, rate: float, seed: int, most: float) -> dict[str, Any]:
    """Train until the target, or for ``most`` examples."""
    target, cap = TARGETS[task.name]
    recipe = task.recipe.replace(batch_size=batch_size, lr=rate, schedule="constant", warmup_examples=0)
    pilot = Pilot(task=replace(task, recipe=recipe), device="cpu", seed=seed, total_examples=cap)
    count = min(EVALUATED, task.num_valid_examples)
    held_out = Subset(task.valid_data, range(count))
    valid = list(DataLoader(held_out, batch_size=500, collate_fn=task.collate))
    metric, better = task.target.metric, 1 if task.target.higher_is_better else -1
    every = max(1, round(cap / EVALUATIONS / batch_size))
    updates, previous = 0, None
    while pilot.examples_seen < most:
        try:
            for _ in range(every):
                pilot.update()
                updates += 1
        except Exception as error:
            return {"outcome": "diverged", "updates": updates, "why": type(error).__name__}
        value = evaluate(task, pilot.model, valid, "cpu", precision="fp32")[metric]
        pilot.model.train()
        if better * value >= better * target:
            reached = float(updates)
            if previous is not None and previous[1] != value:
                share = (target - previous[1]) / (value - previous[1])
                reached = previous[0] + share * (updates - previous[0])
            return {"outcome": "reached", "updates": reached}
        previous = (updates, value)
    return {"outcome": "censored", "updates": updates, "value": previous[1] if previous else math.nan}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    os.nice(10)
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes
    for name in options.tasks:
        task, path = load_task(name), RESULTS / f"{name}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        done = {(r["batch_size"], r["factor"], r["seed"]) for r in map(json.loads, lines)}
        # Seeds outermost: half a sweep is a sweep with one seed.
        sizes = [size * LARGER.get(name, 1) for size in BATCH_SIZES]
        best: dict[tuple[int, int], float] = {}
        for one in map(json.loads, lines):
            note(best, one)
        for seed, size, factor in product(SEEDS, sizes, RATE_FACTORS):
            if (size, factor, seed) in done or size > task.num_train_examples:
                continue
            if time.monotonic() > deadline:
                return
            rate = factor * rule_rate(task, size)
            most = min(TARGETS[name][1], HOPELESS * best.get((size, seed), math.inf) * size)
            result = run(task, size, rate, seed, most)
            line = {"batch_size": size, "factor": factor, "rate": rate, "seed": seed} | result
            note(best, line)
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
