"""What ``pin_malloc`` saves in resident memory and costs in time: fresh processes, interleaved.

    python benchmarks/memory/resident.py [--rounds N] [NET...]

Each process trains one net for a few steps; its resident peak (VmHWM) is read after, the process's
own start left out. The last two steps are timed: the first allocate what later ones reuse.
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
from common import ratio_interval, save

HERE = Path(__file__).parent
SIZES = {"mlp": 2048, "residual": 128, "transformer": 64}
STEPS, TIMED = 4, 2


def one(net_name: str, size: int, pinned: bool) -> dict[str, float]:
    """In a fresh process: growth of the resident peak, seconds and page faults of a step."""
    import resource

    import nets
    import torch

    from rightbatch.measure.memory.malloc import (
        peak_resident_bytes,
        pin_malloc,
        reset_peak_resident,
        resident_bytes,
        trim_malloc,
    )

    torch.set_num_threads(1)
    if pinned:
        pin_malloc()
    torch.manual_seed(0)
    net = nets.NETS[net_name]
    x, y = (tensor[:size].clone() for tensor in net.data().tensors)

    def train(examples: int, steps: int) -> list[float]:
        model = net.build()
        optimizer = net.optimizer(model.parameters())
        seconds = []
        for _ in range(steps):
            start = time.perf_counter()
            nets.loss(model, (x[:examples], y[:examples])).backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.perf_counter() - start)
        return seconds

    train(2, 2)
    trim_malloc()
    reset_peak_resident()
    before = resident_bytes()
    seconds = train(size, STEPS)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return {
        "peak_bytes": peak_resident_bytes() - before,
        "step_seconds": min(seconds[-TIMED:]),
        "page_faults": faults,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("nets", nargs="*", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", choices=("default", "pinned"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.nets[0], SIZES[options.nets[0]], options.one == "pinned")))
        return
    rows = []
    for net in options.nets:
        found: dict[str, list[dict[str, Any]]] = {"default": [], "pinned": []}
        for _ in range(options.rounds):
            for kind, runs in found.items():
                command = [sys.executable, __file__, net, "--one", kind]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs.append(json.loads(done.stdout))
        ratios = {
            key: ratio_interval([
                p[key] / d[key] for p, d in zip(found["pinned"], found["default"], strict=True)
            ])
            for key in ("peak_bytes", "step_seconds")
        }
        medians = {
            kind: {key: float(np.median([run[key] for run in runs])) for key in runs[0]}
            for kind, runs in found.items()
        }
        rows.append(
            {"net": net, "micro_batch_size": SIZES[net], "pinned_over_default": ratios} | medians
        )
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    save("resident", {"rows": rows})


if __name__ == "__main__":
    main()
