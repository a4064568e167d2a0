"""Does training with the plan reach the target sooner than today's recipe?

For each task: plan once, then train plan and recipe with the same seeds, interleaved, and compare
the training seconds (evaluation not counted) and the examples until the target. A run that does
not reach the target within the recipe's length counts as it stands, and is said.

    python benchmarks/time_to_target.py digits digits-cnn fashion-mnist
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from common import ratio_interval, rightbatch, save

SEEDS = (0, 1, 2)


def compare(task: str, folder: Path) -> dict[str, object]:
    planning_seconds, text = rightbatch("plan", task, "--out", str(folder), "--json")
    plan = json.loads(text)
    runs: dict[str, list[dict[str, object]]] = {"plan": [], "recipe": []}
    for seed in SEEDS:
        for side in ("plan", "recipe") if seed % 2 == 0 else ("recipe", "plan"):
            options = ["--plan", str(folder / "plan.toml")] if side == "plan" else []
            where = str(folder / "runs" / f"{side}-{seed}")
            _, out = rightbatch("train", task, *options, "--run", where, "--seed", str(seed), "--json")
            run = json.loads(out)
            keys = ("outcome", "examples", "updates", "seconds", "metrics", "target_reached")
            runs[side].append({"seed": seed} | {key: run[key] for key in keys})
    pairs = list(zip(runs["plan"], runs["recipe"], strict=True))
    return {
        "planning_seconds": round(planning_seconds, 1),
        "plan": plan["plan"],
        "plateau": plan["plateau"],
        "predicted_seconds_ratio": plan["predicted"]["seconds_to_target_ratio"],
        "measured_seconds_ratio": ratio_interval([a["seconds"] / b["seconds"] for a, b in pairs]),
        "measured_examples_ratio": ratio_interval([a["examples"] / b["examples"] for a, b in pairs]),
        "target_reached": {side: [run["target_reached"] for run in runs[side]] for side in runs},
        "runs": runs,
    }


def main() -> None:
    for task in sys.argv[1:] or ["digits", "digits-cnn", "fashion-mnist"]:
        with tempfile.TemporaryDirectory() as folder:
            save(f"time_to_target_{task}", {"task": task, **compare(task, Path(folder))})


if __name__ == "__main__":
    main()
