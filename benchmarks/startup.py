"""Seconds of `rightbatch --help` over those of `python -c pass`, interleaved.

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from common import save

ROUNDS = 25
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import cyclopts, pydantic": [sys.executable, "-c", "import cyclopts, pydantic"],
    "rightbatch --help": [str(Path(sys.executable).with_name("rightbatch")), "--help"],
    "rightbatch plan --help": [str(Path(sys.executable).with_name("rightbatch")), "plan", "--help"],
    "rightbatch tasks": [str(Path(sys.executable).with_name("rightbatch")), "tasks"],
}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    base = np.array(times["python -c pass"])
    rows = []
    for name, values in times.items():
        quartiles = [
            round(float(q), 2) for q in np.quantile(np.array(values) / base, [0.25, 0.5, 0.75])
        ]
        rows.append({
            "command": name,
            "median_seconds": round(float(np.median(values)), 4),
            "median_ratio": quartiles[1],
            "quartiles": [quartiles[0], quartiles[2]],
        })
    save("startup", {"rounds": ROUNDS, "rows": rows})


if __name__ == "__main__":
    main()
