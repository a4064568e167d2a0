"""What every benchmark shares: the environment, intervals, and results as JSON under results/."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """The machine and software a result was taken on, without naming the machine."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "packages": {name: version(name) for name in ("torch", "numpy", "rightbatch")},
        "load_average": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }


def save(name: str, result: dict[str, Any]) -> None:
    """Write results/NAME.json and print it."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"benchmark": name, "environment": environment(), **result}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def rightbatch(*arguments: str) -> tuple[float, str]:
    """Run the installed command; return its seconds and stdout, and fail loudly if it fails."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "rightbatch", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return time.perf_counter() - start, done.stdout


def ratio_interval(ratios: list[float]) -> dict[str, float]:
    """Geometric mean of paired ratios with its two-sided 90 % t interval on the logarithm."""
    from rightbatch.fit.intervals import t_quantile

    logs = np.log(ratios)
    half = t_quantile(len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)) if len(logs) > 1 else 0.0
    return {
        "value": round(float(np.exp(logs.mean())), 4),
        "low": round(float(np.exp(logs.mean() - half)), 4),
        "high": round(float(np.exp(logs.mean() + half)), 4),
        "n": len(ratios),
    }
