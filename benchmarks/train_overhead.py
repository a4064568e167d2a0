"""Time per update of rightbatch's loop over a bare hand-written PyTorch loop, interleaved.

    python benchmarks/train_overhead.py digits digits-cnn fashion-mnist

Both train the same fresh model on one thread with the recipe of the task, its loader and batch 32,
for the same number of updates, turn by turn and in random order; evaluation is outside both.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch.utils.data import DataLoader

import rightbatch as rb
from common import save
from rightbatch.core.plan import Plan
from rightbatch.tasks.build import build_model, build_optimizer
from rightbatch.tasks.task import Task
from rightbatch.train.loop import train

ROUNDS, UPDATES = 30, 90


def bare_seconds(task: Task) -> float:
    """What a careful user writes: mean loss, backward, step, nothing else."""
    model = build_model(task)
    optimizer = build_optimizer(task.recipe, model, task.recipe.lr)
    loader = DataLoader(task.train_data, batch_size=task.recipe.batch_size, shuffle=True)
    started, updates = perf_counter(), 0
    while True:
        for batch in loader:
            optimizer.zero_grad()
            loss = task.loss(model, batch)
            (loss.total / loss.count).backward()
            optimizer.step()
            updates += 1
            if updates == UPDATES:
                return perf_counter() - started


def loop_seconds(task: Task) -> float:
    """The same updates by ``train``, as its own clock counts them."""
    with tempfile.TemporaryDirectory() as folder:
        return train(task, Plan.from_recipe(task.recipe), Path(folder), max_updates=UPDATES).seconds


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for name in sys.argv[1:] or ["digits", "digits-cnn", "fashion-mnist"]:
        task = rb.load_task(name)
        pairs: list[tuple[float, float]] = []
        for turn in range(ROUNDS + 1):
            if random.Random(turn).random() < 0.5:
                bare, ours = bare_seconds(task), loop_seconds(task)
            else:
                ours, bare = loop_seconds(task), bare_seconds(task)
            pairs.append((bare, ours))
        pairs = pairs[1:]  # the first warms up
        ratios = np.array([ours / bare for bare, ours in pairs])
        draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
        low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
        bare, ours = (statistics.median(values) / UPDATES * 1e3 for values in zip(*pairs, strict=True))
        row = {"task": name, "bare_milliseconds": bare, "rightbatch_milliseconds": ours}
        row |= {"ratio": float(np.median(ratios)), "low": float(low), "high": float(high)}
        rows.append({key: v if isinstance(v, str) else round(v, 4) for key, v in row.items()})
    save("train_overhead", {"rounds": ROUNDS, "updates": UPDATES, "level": 0.95, "rows": rows})


if __name__ == "__main__":
    main()
