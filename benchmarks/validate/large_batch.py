"""Does a large batch cost accuracy, does its rate matter, and are its solutions sharper? On digits.

Batch 512 against the recipe's 32, five paired seeds each: by equal examples and by equal updates, with
the rate moved by rule; and by equal examples with the recipe's rate left as it is.

    python benchmarks/validate/large_batch.py FOLDER        # runs are kept there, and gone on with
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import save
from rightbatch.core.comparison import Comparison
from rightbatch.core.plan import Plan
from rightbatch.tasks.load import load_task
from rightbatch.validate.session import validate

LARGE, SEEDS = 512, 5


def summary(found: Comparison) -> dict[str, Any]:
    keys = ("verdict", "reason", "difference", "candidate_gap", "reference_gap", "reached", "to_target")
    rows: dict[str, Any] = found.model_dump(mode="json", include={*keys, "matched_by", "margin"})
    for side in ("candidate", "reference"):
        runs = [run for run in found.runs if run.side == side]
        rows[side] = {
            "outcomes": [run.outcome.value for run in runs],
            "metric": [round(run.metrics.get(found.metric, float("nan")), 5) for run in runs],
            "updates": runs[0].updates,
            "largest_eigenvalue": [
                run.sharpness["largest_eigenvalue"] for run in runs if run.sharpness
            ],
        }
    return rows


def main() -> None:
    torch.set_num_threads(1)
    folder, task = Path(sys.argv[1]), load_task("digits")
    unscaled = Plan.from_recipe(task.recipe, task.name, global_batch_size=LARGE)
    cases: dict[str, tuple[Plan | int, Any]] = {
        "equal examples, rate by rule": (LARGE, "examples"),
        "equal examples, rate unchanged": (unscaled, "examples"),
        "equal updates, rate by rule": (LARGE, "updates"),
    }
    found: dict[str, Any] = {}
    for number, (name, (candidate, matched_by)) in enumerate(cases.items()):
        where = folder / str(number)
        done = validate(task, candidate, out=where, seeds=SEEDS, matched_by=matched_by, sharpness=True)
        found[name] = summary(done)
    save("validate_large_batch", {"task": task.name, "batch": LARGE, "seeds": SEEDS, "cases": found})


if __name__ == "__main__":
    main()
