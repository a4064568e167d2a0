"""How long planning takes from a cold start, and whether --time-budget is kept.

python benchmarks/planning_time.py
"""

from __future__ import annotations

import tempfile

from common import rightbatch, save

CASES = {"digits": ("default", "20s", "40s"), "fashion-mnist": ("default", "60s")}


def main() -> None:
    rows = []
    for task, budgets in CASES.items():
        for budget in budgets:
            options = [] if budget == "default" else ["--time-budget", budget]
            with tempfile.TemporaryDirectory() as folder:
                seconds, _ = rightbatch("plan", task, "--out", folder, "--json", *options)
            rows.append({"task": task, "time_budget": budget, "seconds": round(seconds, 1)})
    save("planning_time", {"rows": rows})


if __name__ == "__main__":
    main()
