"""The largest micro-batch under a memory limit: ours, by exhaustive search, and by other tools.

Fits means: two optimizer steps in a fresh process grow its resident memory by no more than the
limit. Every process pins malloc and warms up on 2 examples first; other tools get the same cap as
``RLIMIT_DATA`` and search in that one process, as they do (batch-finder in children of its own).

    python benchmarks/memory/largest_batch.py [--peers PYTHON] [--repeats N] [NET...]

``PYTHON`` is an interpreter with torch, lightning, accelerate and batch-finder; without it they are
left out. Named nets replace their rows in the results. The size that is printed runs again in
``--repeats`` fresh processes (100 for the first net, which is cheap).

Also timed: the analytic answer for BERT-base with 512 tokens, no real step run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import zoo_data
from zoo import ZOO

import rightbatch as rb

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import RESULTS, save
from rightbatch.fit.memory_model import fit_memory_model
from rightbatch.measure.memory import measure_memory
from rightbatch.measure.memory.malloc import resident_bytes
from rightbatch.measure.memory.probe import ProbeResult, largest_that_fits, probe_micro_batch
from rightbatch.tasks.load import load_task
from rightbatch.tasks.task import Task

HERE = Path(__file__).parent
LIMITS = {"mlp": 512 * 2**20, "residual": 768 * 2**20, "transformer": 768 * 2**20}
PEERS = ("lightning power", "lightning binsearch", "accelerate", "batch-finder")
CHEAP, CHEAP_REPEATS = "mlp", 100
ANALYTIC_LIMIT = 64 * 2**30
CHECKED_ABOVE = 0.02  # sizes up to this share above the largest that fits are all run


def ours(task: Task, limit_bytes: int) -> dict[str, Any]:
    start = time.perf_counter()
    model = fit_memory_model(measure_memory(task))
    fitted = time.perf_counter()
    size, probes = largest_that_fits(task, model, limit_bytes, headroom=0.0, pin_malloc=True)
    return {
        "size": size,
        "predicted_bytes": model.peak_bytes(size),
        "seconds": {
            "trace": round(fitted - start, 1),
            "probes": round(time.perf_counter() - fitted, 1),
        },
        "probes": [
            {"size": p.micro_batch_size, "outcome": p.outcome, "peak_bytes": p.peak_bytes}
            for p in probes
        ],
    }


def analytic() -> dict[str, Any]:
    """Largest micro-batch of BERT-base by fake traces alone; CPU seconds after imports."""
    bert = ZOO["bert_base"]
    task = rb.Task(
        name="bert-base",
        model=bert.model,
        train_data=zoo_data.tokens(512, 30522),
        valid_data=None,
        loss=bert.loss,
        recipe=rb.Recipe(optimizer="adamw", lr=1e-4, batch_size=8, epochs=1),
    )
    start, wall = time.process_time(), time.perf_counter()
    task.model()
    built = time.process_time()
    model = fit_memory_model(measure_memory(task, memory_bytes=1))
    size = model.max_micro_batch(ANALYTIC_LIMIT)
    return {
        "net": "bert-base, 512 tokens",
        "limit_bytes": ANALYTIC_LIMIT,
        "size": size,
        "predicted_bytes": model.peak_bytes(size),
        "cpu_seconds": round(time.process_time() - built, 1),
        "of_these_building_the_model": round(built - start, 1),
        "wall_seconds_of_both": round(time.perf_counter() - wall, 1),
        "real_steps": 0,
    }


def exhaustive(task: Task, limit_bytes: int, guess: int) -> tuple[int, int]:
    """Largest size that fits, by bisection and then every size just above; and how many were run."""
    tried: dict[int, ProbeResult] = {}

    def fits(size: int) -> bool:
        if size not in tried:
            tried[size] = probe_micro_batch(task, size, limit_bytes=limit_bytes, pin_malloc=True)
        return tried[size].outcome == "fits"

    low, high = (guess, 2 * guess) if fits(guess) else (1, guess)
    step = max(1, guess // 50)
    while fits(guess) and low + step < high and fits(low + step):
        low += step
    high = min(high, low + step) if fits(guess) else high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    for size in range(low + 1, int(low * (1 + CHECKED_ABOVE)) + 1, max(1, low // 200)):
        low = size if fits(size) else low
    return low, len(tried)


def peer(python: str, name: str, net: str, limit_bytes: int) -> dict[str, Any]:
    command = [python, str(HERE / "largest_batch_peer.py"), name, net, str(limit_bytes)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        end = done.stderr.strip().splitlines()[-1:]
        return {"size": None, "ended": f"exit {done.returncode}: {''.join(end)[:200]}"}
    return json.loads(lines[-1]) | {"seconds": round(time.perf_counter() - start, 1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("nets", nargs="*", default=list(LIMITS))
    parser.add_argument("--peers", help="interpreter with lightning and accelerate")
    parser.add_argument("--repeats", type=int, default=5, help="fresh runs of our answer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = RESULTS / "largest_batch.json"
    known = json.loads(file.read_text())["rows"] if file.is_file() else []
    rows = {row["net"]: row for row in known}
    for net in options.nets:
        limit = LIMITS[net]
        task = load_task(f"{HERE / 'net_tasks.py'}:{net}")
        answer = ours(task, limit)
        before = resident_bytes()
        repeats = max(options.repeats, CHEAP_REPEATS) if net == CHEAP else options.repeats
        truth, num_tried = exhaustive(task, limit, answer["size"])
        survived = sum(
            probe_micro_batch(task, answer["size"], limit_bytes=limit, pin_malloc=True).outcome
            == "fits"
            for _ in range(repeats)
        )
        row: dict[str, Any] = {
            "net": net,
            "limit_bytes": limit,
            "largest": truth,
            "sizes_run_to_find_it": num_tried,
            "ours": answer | {"below_largest_percent": round(100 * (1 - answer["size"] / truth), 2)},
            "survived": f"{survived}/{repeats}",
            "caller_grew_during_probes_bytes": resident_bytes() - before,
        }
        for name in PEERS if options.peers else ():
            found = peer(options.peers, name, net, limit)
            if found["size"]:
                again = probe_micro_batch(task, found["size"], limit_bytes=limit, pin_malloc=True)
                found["in_a_fresh_process"] = again.outcome
            row[name] = found
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows[net] = row
        ordered = [rows[key] for key in LIMITS if key in rows]
        save("largest_batch", {"left_out": [] if options.peers else list(PEERS), "rows": ordered})
    result = {"left_out": [] if options.peers else list(PEERS), "analytic": analytic()}
    save("largest_batch", result | {"rows": [rows[key] for key in LIMITS if key in rows]})


if __name__ == "__main__":
    main()
