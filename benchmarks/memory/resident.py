"""Resident memory of fresh processes: as predicted, and what ``pin_malloc`` saves and costs.

For each model, processes of two kinds take turns, with malloc as it is and pinned; each trains a
few steps and reports the most physical memory it held (VmHWM) and the CPU seconds of a step. The
prediction for a pinned process is what one process held at 2 examples, less the tensors that the
law says it had, plus those that the law says there are. The interval for malloc as it is begins at
the tensors that fake traces see and ends at ``MOST`` times those that the law says there are.

oneDNN's recurrent kernels ask for a workspace and leave part of it untouched, which takes no
physical memory: there the prediction is an upper bound, and the fake traces' law, which does not
see the workspace, a lower one. Such models are counted apart.

    python benchmarks/memory/resident.py [--rounds N] [NAME...]

Named models replace their rows in the results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import RESULTS, ratio_interval, save

HERE = Path(__file__).parent
SIZES = {
    "mlp": 4096,
    "resnet18_small_images": 256,
    "mobilenet": 8,
    "unet": 5,
    "vit": 4,
    "genomic": 24,
    "gpt": 16,
    "lstm": 128,
    "contrastive": 2048,
}
STEPS, TIMED, TINY = 3, 2, 2
SECONDS = 30.0  # for the law's real anchors
# What the default malloc holds at most, as a multiple of the tensors' peak: the most seen, rounded up.
MOST = 2.5
UNTOUCHED = "mkldnn_rnn"


def one(name: str, size: int, *, pinned: bool) -> dict[str, float]:
    """In a fresh process: peak of resident memory, CPU seconds of a step, page faults."""
    import resource

    import torch

    from rightbatch.measure.memory.malloc import peak_resident_bytes, pin_malloc
    from rightbatch.tasks.build import build_optimizer, collate, compute_loss
    from rightbatch.tasks.load import load_task
    from rightbatch.tasks.step import precision_context

    torch.set_num_threads(1)
    if pinned:
        pin_malloc()
    task = load_task(f"{HERE / 'zoo.py'}:{name}")
    recipe = task.recipe
    model = task.model().train()
    optimizer = build_optimizer(recipe, model, recipe.lr)
    batch = collate(task, (i % task.num_train_examples for i in range(size)))
    seconds = []
    for _ in range(STEPS):
        start = time.process_time()
        with precision_context(recipe.precision, "cpu"):
            loss = compute_loss(task.loss, model, batch, size)
        (loss.total / size).backward()
        del loss
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
    return {
        "resident_bytes": peak_resident_bytes(),
        "step_cpu_seconds": min(seconds[-TIMED:]),
        "page_faults": resource.getrusage(resource.RUSAGE_SELF).ru_minflt,
    }


def run_one(name: str, size: int, kind: str) -> dict[str, float]:
    command = [sys.executable, __file__, name, "--one", kind, "--size", str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def compare(name: str, rounds: int) -> dict[str, Any]:
    """One row of the results."""
    import torch

    from rightbatch.fit.memory_model import fit_memory_model
    from rightbatch.measure.memory import measure_memory
    from rightbatch.tasks.load import load_task

    torch.set_num_threads(1)
    size = SIZES[name]
    traces = measure_memory(load_task(f"{HERE / 'zoo.py'}:{name}"), seconds=SECONDS)
    model = fit_memory_model(traces)
    seen = fit_memory_model([t for t in traces if t.source == "fake"]).peak_bytes(size)
    untouched = any(UNTOUCHED in operator for t in traces for operator in t.operators)
    beside = run_one(name, TINY, "pinned")["resident_bytes"] - model.peak_bytes(TINY)
    predicted = beside + model.peak_bytes(size)
    found: dict[str, list[dict[str, float]]] = {"default": [], "pinned": []}
    for turn in range(rounds):
        for kind in sorted(found, reverse=bool(turn % 2)):
            found[kind].append(run_one(name, size, kind))
    pairs = list(zip(found["pinned"], found["default"], strict=True))
    errors = [100 * (predicted / run["resident_bytes"] - 1) for run in found["pinned"]]
    factors = [(run["resident_bytes"] - beside) / model.peak_bytes(size) for run in found["default"]]
    low, high = beside + seen, beside + MOST * model.peak_bytes(size)
    return {
        "model": name,
        "micro_batch_size": size,
        "tensor_bytes": model.peak_bytes(size),
        "beside_tensors_bytes": beside,
        "predicted_pinned_bytes": predicted,
        "error_percent": [round(e, 3) for e in errors],
        "default_over_tensors": [round(f, 3) for f in factors],
        "default_interval": [low, high],
        "default_inside": all(low <= run["resident_bytes"] <= high for run in found["default"]),
        "untouched_workspace": untouched,
        "pinned_over_default": {
            key: ratio_interval([p[key] / d[key] for p, d in pairs])
            for key in ("resident_bytes", "step_cpu_seconds", "page_faults")
        },
    } | {
        kind: {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
        for kind, runs in found.items()
    }


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Each model counts once: by the median of its rounds, and the worst by its worst."""
    whole = [row for row in rows if not row["untouched_workspace"]]
    medians = [float(np.median(np.abs(row["error_percent"]))) for row in whole]
    ratios = {
        key: [row["pinned_over_default"][key]["value"] for row in rows]
        for key in ("resident_bytes", "step_cpu_seconds")
    }
    factors = [f for row in rows for f in row["default_over_tensors"]]
    return {
        "models": len(rows),
        "prediction_median_percent": round(float(np.median(medians)), 3),
        "prediction_worst_percent": max(abs(e) for row in whole for e in row["error_percent"]),
        "untouched_workspace": {
            row["model"]: row["error_percent"] for row in rows if row["untouched_workspace"]
        },
        "default_over_tensors": [min(factors), max(factors)],
        "default_inside": f"{sum(row['default_inside'] for row in rows)}/{len(rows)}",
        **{
            f"pinned_over_default_{key}": {
                "median": round(float(np.median(values)), 4),
                "quartiles": [round(float(q), 4) for q in np.quantile(values, [0.25, 0.75])],
                "range": [min(values), max(values)],
            }
            for key, values in ratios.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=("default", "pinned"), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.names[0], options.size, pinned=options.one == "pinned")))
        return
    file = RESULTS / "resident.json"
    known = json.loads(file.read_text())["rows"] if file.is_file() else []
    rows = {row["model"]: row for row in known if "model" in row}
    for name in options.names:
        rows[name] = compare(name, options.rounds)
        print(json.dumps(rows[name]), file=sys.stderr, flush=True)
        ordered = [rows[key] for key in SIZES if key in rows]
        result = {"rounds": options.rounds, "summary": summarize(ordered), "rows": ordered}
        save("resident", result)


if __name__ == "__main__":
    main()
