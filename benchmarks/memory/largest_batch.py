"""The largest micro-batch under a memory limit: ours, by exhaustive search, and by other tools.

Fits means: two optimizer steps in a fresh process grow its resident memory by no more than the
limit. Every process pins malloc and warms up on 2 examples first; other tools get the same cap as
``RLIMIT_DATA`` and search in that one process, as they do.

    python benchmarks/memory/largest_batch.py [--peers PYTHON] [--repeats N] [NET...]

``PYTHON`` is an interpreter with torch, lightning and accelerate; without it they are left out.
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

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import save
from rightbatch.fit.memory_model import fit_memory_model
from rightbatch.measure.memory import measure_memory
from rightbatch.measure.memory.malloc import resident_bytes
from rightbatch.measure.memory.probe import ProbeResult, largest_that_fits, probe_micro_batch
from rightbatch.tasks.load import load_task
from rightbatch.tasks.task import Task

HERE = Path(__file__).parent
LIMITS = {"mlp": 512 * 2**20, "residual": 768 * 2**20, "transformer": 768 * 2**20}
PEERS = ("lightning power", "lightning binsearch", "accelerate")
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
    rows = []
    for net in options.nets:
        limit = LIMITS[net]
        task = load_task(f"{HERE / 'net_tasks.py'}:{net}")
        answer = ours(task, limit)
        before = resident_bytes()
        truth, num_tried = exhaustive(task, limit, answer["size"])
        survived = sum(
            probe_micro_batch(task, answer["size"], limit_bytes=limit, pin_malloc=True).outcome
            == "fits"
            for _ in range(options.repeats)
        )
        row: dict[str, Any] = {
            "net": net,
            "limit_bytes": limit,
            "largest": truth,
            "sizes_run_to_find_it": num_tried,
            "ours": answer | {"below_largest_percent": round(100 * (1 - answer["size"] / truth), 2)},
            "survived": f"{survived}/{options.repeats}",
            "caller_grew_during_probes_bytes": resident_bytes() - before,
        }
        for name in PEERS if options.peers else ():
            found = peer(options.peers, name, net, limit)
            if found["size"]:
                again = probe_micro_batch(task, found["size"], limit_bytes=limit, pin_malloc=True)
                found["in_a_fresh_process"] = again.outcome
            row[name] = found
        print(json.dumps(row), file=sys.stderr, flush=True)
        rows.append(row)
    save("largest_batch", {"left_out": [] if options.peers else list(PEERS), "rows": rows})


if __name__ == "__main__":
    main()
