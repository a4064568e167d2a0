"""Trace AdamW steps of a model far larger than this machine: Llama-2-7B, in a process of its own.

The model is built under ``torch.device("meta")``: shapes without values. Reported are the process's
seconds and its most resident memory, imports included, and the law that the traces give.

    python benchmarks/memory/large_trace.py [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import save

CONTEXT, LIMIT_BYTES = 4096, 8 * 80 * 2**30


def one() -> dict[str, Any]:
    start = time.perf_counter()
    import torch
    import zoo_data
    from zoo_text import Llama

    import rightbatch as rb
    from rightbatch.fit.memory_model import fit_memory_model
    from rightbatch.measure.memory import measure_memory

    def model() -> torch.nn.Module:
        with torch.device("meta"):
            return Llama()

    torch.set_num_threads(1)
    task = rb.Task(
        name="llama-2-7b",
        model=model,
        train_data=zoo_data.tokens(CONTEXT, 32000),
        valid_data=None,
        loss=zoo_data.language,
        recipe=rb.Recipe(optimizer="adamw", lr=1e-4, batch_size=8, epochs=1),
    )
    traces = measure_memory(task)
    fitted = fit_memory_model(traces)
    return {
        "parameters": sum(p.numel() for p in model().parameters()),
        "traced_sizes": [trace.micro_batch_size for trace in traces],
        "events_per_trace": len(traces[0].delta_bytes),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "exact_over_traced_sizes": fitted.residual_bytes == 0 and len(fitted.laws) == 1,
        "peak_bytes": {size: fitted.peak_bytes(size) for size in (1, 2, 8)},
        "parts_of_one_sequence": fitted.breakdown(1),
        "largest_under_limit": fitted.max_micro_batch(LIMIT_BYTES),
        "limit_bytes": LIMIT_BYTES,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one()))
        return
    rows = []
    for _ in range(options.rounds):
        command = [sys.executable, __file__, "--one"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    spans = {
        key: [min(row[key] for row in rows), max(row[key] for row in rows)]
        for key in ("seconds", "cpu_seconds", "resident_bytes")
    }
    save("large_trace", {"context": CONTEXT, "n": len(rows), "spans": spans, "rows": rows})


if __name__ == "__main__":
    main()
