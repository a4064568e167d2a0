"""What each remedy for rare targets changes on real splice sites, at three batch sizes.

Every run sees the same number of windows of ``splice-small``; Adam's rate moves with the square root
of the batch. Of each run: average precision and top-k of both kinds of site on other loci, calibration
before and after correction, the noise scale of the positives' gradient at the end, and the updates
without a site, predicted and observed. A run that is in the result already is not repeated, so the
study can be stopped and continued.

    python benchmarks/sparse/study.py --batches 4,16,64 --seeds 3
    python benchmarks/sparse/study.py --batches 16 --seeds 1 --remedies plain,biased
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import RESULTS, environment
from rightbatch import Plan, train
from rightbatch.core.recipe import Recipe
from rightbatch.fit.intervals import t_quantile
from rightbatch.sparse.diagnose import measure_signal
from rightbatch.sparse.losses import cross_entropy, focal_loss
from rightbatch.sparse.priors import count_classes
from rightbatch.sparse.splice import SpliceOptions, load_sequences, splice_task
from rightbatch.sparse.statistics import law_of_windows
from rightbatch.tasks.builtin.splice_net import build_small
from rightbatch.tasks.task import Task

BATCH, RATE = 8, 2e-3  # the recipe that rates are moved from
SIGNAL_WINDOWS = 64
METRICS = (
    "average_precision",
    "average_precision_acceptor",
    "average_precision_donor",
    "top_k_acceptor",
    "top_k_donor",
)


def remedies() -> dict[str, dict[str, Any]]:
    """What each one changes of plain cross-entropy on plainly drawn windows."""
    counts = count_classes(load_sequences("train").labels, 3)
    weights = counts.inverse_frequency_weights()
    effective = counts.effective_number_weights(0.9999)
    biased: dict[str, Any] = {"centred": 0.5}
    return {
        "plain": {},
        "weights": {"per_position": partial(cross_entropy, weights=weights)},
        "effective-number": {"per_position": partial(cross_entropy, weights=effective)},
        "focal": {"per_position": partial(focal_loss, gamma=2.0)},
        "prior-bias": {"prior_bias": True},
        "biased": biased,
        "biased+prior-bias": biased | {"prior_bias": True},
        "biased+prior-bias+focal": biased
        | {"prior_bias": True, "per_position": partial(focal_loss, gamma=2.0)},
    }


def task_of(changes: dict[str, Any], batch: int, seed: int, windows: int) -> Task:
    options = SpliceOptions(
        **({"centred": 0.0, "prior_bias": False, "num_windows": windows, "seed": seed} | changes)
    )
    rate = RATE * (batch / BATCH) ** 0.5
    recipe = Recipe(
        optimizer="adam", lr=rate, batch_size=batch, steps=windows // batch, sampler="sequential"
    )
    return splice_task("splice-small", build_small, recipe, options=options)


def one_run(name: str, batch: int, seed: int, windows: int) -> dict[str, Any]:
    task = task_of(remedies()[name], batch, seed, windows)
    plan = Plan.from_recipe(
        task.recipe, micro_batch_size=min(batch, 8), accumulation_steps=max(batch // 8, 1)
    )
    with tempfile.TemporaryDirectory() as folder:
        run = train(task, plan, Path(folder) / "run", seed=seed)
        model = task.model()
        model.load_state_dict(run.final_state_dict())
    signal = measure_signal(task, [batch], model=model, num_examples=SIGNAL_WINDOWS, seed=seed)
    positives = [int((task.train_data[i][1] > 0).sum()) for i in range(windows)]
    updates = np.array(positives).reshape(-1, batch).sum(axis=1)
    law = law_of_windows(task.train_data).batch(batch)
    return {
        "remedy": name,
        "batch": batch,
        "seed": seed,
        "windows": windows,
        "learning_rate": task.recipe.lr,
        "outcome": run.outcome.value,
        "seconds": round(run.seconds, 1),
        "metrics": {key: round(value, 4) for key, value in run.metrics.items()},
        "expected_positives": {"predicted": law.expected_positives, "observed": float(updates.mean())},
        "probability_none": {
            "predicted": law.probability_none,
            "observed": float((updates == 0).mean()),
        },
        "gradients": [gradient.model_dump(mode="json") for gradient in signal.gradients],
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean of every metric over seeds with its 90 % t interval, where there are two seeds or more."""
    rows: list[dict[str, Any]] = []
    for key in dict.fromkeys((run["remedy"], run["batch"]) for run in runs):
        chosen = [run for run in runs if (run["remedy"], run["batch"]) == key]
        row: dict[str, Any] = {"remedy": key[0], "batch": key[1], "seeds": len(chosen)}
        for metric in METRICS:
            values = np.array([run["metrics"][metric] for run in chosen])
            row[metric] = {"mean": round(float(values.mean()), 4)}
            if len(values) > 1:
                half = t_quantile(len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
                row[metric]["half_width"] = round(float(half), 4)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", default="4,16,64")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--remedies", default=",".join(remedies()))
    parser.add_argument("--windows", type=int, default=3200, help="of a run, over all its updates")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULTS / "sparse_study.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    batches = [int(size) for size in given.batches.split(",")]
    if bad := [size for size in batches if given.windows % size or (size > 8 and size % 8)]:
        parser.error(
            f"batches {bad}: need divisors of --windows {given.windows}, multiples of 8 above 8"
        )
    runs: list[dict[str, Any]] = []
    if given.result.is_file():
        runs = json.loads(given.result.read_text(encoding="utf-8"))["runs"]
    done = {(run["remedy"], run["batch"], run["seed"], run["windows"]) for run in runs}
    for seed in range(given.seeds):
        for batch in batches:
            for name in given.remedies.split(","):
                if (name, batch, seed, given.windows) in done:
                    continue
                runs.append(one_run(name, batch, seed, given.windows))
                result = {"environment": environment(), "summary": summary(runs), "runs": runs}
                text = json.dumps({"benchmark": "sparse_study", **result}, indent=1)
                partial_file = given.result.with_suffix(".part")
                partial_file.write_text(text + "\n", encoding="utf-8")
                partial_file.replace(given.result)  # whole or not at all
                print(name, batch, seed, runs[-1]["metrics"], f"{runs[-1]['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
