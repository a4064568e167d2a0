"""Predicted memory against the truth over the zoo, beside what other ways of predicting say.

For each model, in a process of its own: the law from fake traces against a direct fake trace at 256
examples, and the fitted model against real steps under torch's profiler at three sizes.

    python benchmarks/memory/law.py [NAME...]

Named models replace their rows in the results, so that the rest need not be run again. Beside ours:

line        through the true peaks at 2 and 4 examples, the way two small runs are extrapolated
per_example DeepSpeed's autotuner in fp32: parameters, gradients and optimizer state, and b times the
            activations that one example's forward leaves, measured
accelerate  ``accelerate estimate-memory``: four times the parameters, as for Adam, at any batch
mem_tracker ``torch.distributed._tools.MemTracker`` on the step at that size, under fake tensors
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
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._pytree import tree_iter, tree_map_only
from truth import true_peak_bytes
from zoo import ZOO

import rightbatch as rb
from rightbatch.core.samples import MemoryTrace
from rightbatch.fit.memory_law import peak_parts
from rightbatch.fit.memory_model import fit_memory_model
from rightbatch.measure.memory import measure_memory
from rightbatch.measure.memory.fake import trace_memory
from rightbatch.measure.memory.kernels import trace_kernels
from rightbatch.measure.memory.malloc import pin_malloc
from rightbatch.tasks.build import build_optimizer, collate, compute_loss
from rightbatch.tasks.load import load_task
from rightbatch.tasks.step import precision_context

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import RESULTS, save

HERE = Path(__file__).parent
DIRECT_SIZE = 256
SECONDS = 30.0  # for real anchors; the default of a command is 8
RECURRENT = "mkldnn_rnn_layer"  # whose workspace fake tensors do not have
METHODS = ("predicted", "fake_only", "line", "per_example", "accelerate", "mem_tracker")


def check_one(name: str) -> dict[str, Any]:
    """One row of the results."""
    torch.set_num_threads(1)
    pin_malloc()
    task, entry = load_task(f"{HERE / 'zoo.py'}:{name}"), ZOO[name]
    start = time.process_time()
    traces = measure_memory(task, seconds=SECONDS)
    model = fit_memory_model(traces)
    seconds = time.process_time() - start
    fakes = [t for t in traces if t.source == "fake"]
    fake_model = fit_memory_model(fakes) if len(fakes) >= 2 else None
    line, per_example = line_rule(task), per_example_rule(task)
    parameters = sum(p.numel() for p in task.model().parameters())
    rows = []
    for size in entry.sizes:
        truth = true_peak_bytes(task, size)
        said: dict[str, int | str] = {
            "predicted": model.peak_bytes(size),
            "fake_only": fake_model.peak_bytes(size) if fake_model else "no fake trace",
            "line": line[0] + line[1] * size,
            "per_example": state_bytes(task) * parameters + per_example * size,
            "accelerate": 16 * parameters,
            "mem_tracker": mem_tracker(task, size),
        }
        inside = model.low_bytes(size) <= truth <= model.high_bytes(size)
        bounds = {"low": model.low_bytes(size), "high": model.high_bytes(size), "inside": inside}
        if fake_model:
            bounds["fake_inside"] = fake_model.low_bytes(size) <= truth <= fake_model.high_bytes(size)
        errors = {
            method: round(100 * (value / truth - 1), 4) if isinstance(value, int) else value
            for method, value in said.items()
        }
        rows.append({"size": size, "true_bytes": truth, **bounds, "error_percent": errors})
    return {
        "model": name,
        "parameters": parameters,
        "data_dependent": entry.data_dependent,
        "anchors": {
            s: [t.micro_batch_size for t in traces if t.source == s] for s in ("fake", "kernels")
        },
        "anchor_cpu_seconds": round(seconds, 1),
        "exact": model.exact,
        "caveats": list(model.caveats),
        "unseen_by_fakes": list(fake_model.caveats) if fake_model else None,
        "direct": against_direct(task, fakes),
        "sizes": rows,
    }


def against_direct(task: rb.Task, fakes: list[MemoryTrace]) -> dict[str, Any] | None:
    """The law of the fake traces against one at ``DIRECT_SIZE``; None where fakes cannot run."""
    if len(fakes) < 2:
        return None
    law = fit_memory_model(fakes)
    start = time.process_time()
    direct = peak_parts(trace_memory(task, DIRECT_SIZE)).peak_bytes
    return {
        "direct_bytes": direct,
        "bytes_apart": law.peak_bytes(DIRECT_SIZE) - direct,
        "claims_one_law": len(law.laws) == 1 and law.residual_bytes == 0,
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def line_rule(task: rb.Task) -> tuple[int, int]:
    """Intercept and slope through two true peaks."""
    low, high = true_peak_bytes(task, 2), true_peak_bytes(task, 4)
    return 2 * low - high, (high - low) // 2


def state_bytes(task: rb.Task) -> int:
    """Bytes a parameter, its gradient, its optimizer state and its average take in fp32."""
    recipe = task.recipe
    states = (1 if recipe.momentum else 0) if recipe.optimizer_name.lower() == "sgd" else 2
    return 4 * (2 + states + (recipe.ema_decay is not None))


def per_example_rule(task: rb.Task) -> int:
    """Bytes that the first forward of one example leaves behind; of two where one does not run."""
    for size in (1, 2):
        try:
            trace = trace_kernels(task, size)
        except ValueError:  # batch norm refuses one value per channel
            continue
        setup, backward = (trace.phases.index(phase) for phase in ("setup", "backward"))
        first_backward = trace.phase.index(backward)
        before = sum(d for d, p in zip(trace.delta_bytes, trace.phase, strict=True) if p == setup)
        return (sum(trace.delta_bytes[:first_backward]) - before) // size
    raise SystemExit(f"{task.name}: no forward of one or two examples")


def mem_tracker(task: rb.Task, size: int) -> int | str:
    """Peak bytes by torch's own tracker, used as its documentation does; or what it raised."""
    recipe = task.recipe
    batch = collate(task, (i % task.num_train_examples for i in range(size)))
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            model = task.model()  # a fake model cannot be moved
            optimizer = build_optimizer(recipe, model, recipe.lr)
            batch = tree_map_only(torch.Tensor, mode.from_tensor, batch)
            tracker = MemTracker()
            average = [p.detach().clone() for p in model.parameters()] if recipe.ema_decay else []
            tracker.track_external(model, optimizer, *average, *tree_iter(batch))
            with tracker:
                for _ in range(2):
                    with precision_context(recipe.precision, "cpu"):
                        loss = compute_loss(task.loss, model, batch, size)
                    (loss.total / size).backward()
                    if recipe.clip_norm is not None:
                        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                    tracker.reset_mod_stats()
        return sum(kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values())
    except Exception as error:  # what it cannot do is part of the answer
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:120]


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and worst cases over every model and size, data-dependent models apart."""
    steady = [r for r in rows if not r["data_dependent"]]
    exact = [r["direct"] for r in rows if r["direct"]]
    summary: dict[str, Any] = {
        "models": len(rows),
        "direct": {
            "models": len(exact),
            "zero_bytes_apart": sum(d["bytes_apart"] == 0 for d in exact),
            "apart_and_not_detected": sum(
                bool(d["bytes_apart"]) and d["claims_one_law"] for d in exact
            ),
        },
    }
    seen = [r for r in steady if not any(RECURRENT in text for text in r["unseen_by_fakes"] or [])]
    for name, method, chosen in (
        *((method, method, steady) for method in METHODS),
        ("fake_only_without_recurrent", "fake_only", seen),
    ):
        errors = np.array([
            abs(size["error_percent"][method])
            for row in chosen
            for size in row["sizes"]
            if not isinstance(size["error_percent"][method], str)
        ])
        if not len(errors):
            continue
        summary[name] = {
            "n": len(errors),
            "median_percent": round(float(np.median(errors)), 4),
            "worst_percent": round(float(errors.max()), 4),
            "share_within_1_percent": round(float((errors <= 1).mean()), 3),
        }
    for key in ("inside", "fake_inside"):
        held = [size[key] for row in rows for size in row["sizes"] if key in size]
        summary[key] = f"{sum(held)}/{len(held)}"
    return summary


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(ZOO))
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(check_one(options.names[0])))
        return
    file = RESULTS / "memory_law.json"
    known = json.loads(file.read_text())["rows"] if file.is_file() else []
    rows = {row["model"]: row for row in known}
    for name in options.names:
        start = time.perf_counter()
        command = [sys.executable, __file__, name, "--one"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        rows[name] = json.loads(done.stdout.splitlines()[-1].replace(f"{HERE}/", ""))
        worst = max(abs(size["error_percent"]["predicted"]) for size in rows[name]["sizes"])
        print(
            f"{name}: worst {worst} %, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True
        )
        ordered = [rows[key] for key in ZOO if key in rows]
        text = {"anchor_seconds": SECONDS, "threads": 1, "summary": summarize(ordered), "rows": ordered}
        save("memory_law", text)


if __name__ == "__main__":
    main()
