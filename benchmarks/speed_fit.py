"""How far predicted step times are off at micro-batch sizes that were not measured.

Powers of two are timed as ``rightbatch speed`` does, and sizes between them in the same shuffled
rounds, so that a slow moment of the machine falls on all alike. The model is fitted to the powers of
two alone; the error is that of its interpolation against the median of the others.

    python benchmarks/speed_fit.py [--rounds 15] [TASK ...]
"""

from __future__ import annotations

import argparse
import random
from statistics import median
from typing import Any

import numpy as np
import torch

from common import save
from rightbatch.core.samples import StepTiming
from rightbatch.fit.speed_model import fit_speed
from rightbatch.measure.timing import MIN_SAMPLE_SECONDS, StepTimer
from rightbatch.tasks.load import load_task

LONGEST_SECONDS = 1.5  # of one step: larger sizes are left out
LARGEST = 1024
OFFSETS = (1.2, 1.5, 1.75)  # held-out sizes, in units of the power of two below


def sizes_of(timer: StepTimer) -> tuple[list[int], list[int]]:
    """Powers of two up to a step of about a second, and sizes between them."""
    measured, size = [], 1
    smallest = 2 if any(isinstance(m, torch.nn.BatchNorm2d) for m in timer.model.modules()) else 1
    while size <= min(LARGEST, timer.task.num_train_examples):
        if size >= smallest:
            timer.time_step(size)
            if sum(timer.time_step(size)) > LONGEST_SECONDS:
                break
            measured.append(size)
        size *= 2
    between = {round(b * offset) for b in measured[:-1] for offset in OFFSETS} - set(measured)
    return measured, sorted(between)


def row(name: str, rounds: int) -> dict[str, Any]:
    timer = StepTimer(load_task(name), "cpu")
    measured, held_out = sizes_of(timer)
    seconds: dict[int, list[float]] = {b: [] for b in (*measured, *held_out)}
    updates: list[float] = []
    repeats: dict[int, int] = {}
    for size in seconds:
        timer.time_step(size)
        repeats[size] = max(1, round(MIN_SAMPLE_SECONDS / sum(timer.time_step(size))))
    for turn in range(rounds):
        for size in random.Random(turn).sample(list(seconds), len(seconds)):
            step, update = np.mean([timer.time_step(size) for _ in range(repeats[size])], axis=0)
            seconds[size].append(float(step))
            updates.append(float(update))
    timings = [StepTiming(micro_batch_size=b, seconds=tuple(seconds[b])) for b in measured]
    model = fit_speed(timings, updates)
    errors = {b: model.step_seconds(b) / median(seconds[b]) - 1 for b in held_out}
    sizes = [abs(e) for e in errors.values()]
    return {
        "task": name,
        "measured": measured,
        "error_percent": {b: round(100 * e, 2) for b, e in errors.items()},
        "median_percent": round(100 * median(sizes), 2),
        "worst_percent": round(100 * max(sizes), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.tasks or ["digits", "digits-cnn", "fashion-mnist", "fashion-vit", "shakespeare"]
    rows = [row(name, options.rounds) for name in names]
    errors = [abs(e) for r in rows for e in r["error_percent"].values()]
    save(
        "speed_fit",
        {"rounds": options.rounds, "median_percent": round(median(errors), 2), "rows": rows},
    )


if __name__ == "__main__":
    main()
