"""Does the planned recipe find the sites? ``rightbatch plan splice-small``, then ``rightbatch train``.

From the command line, as a user would: plan once with default settings, then train by the plan and by
today's recipe on as many windows, several seeds each. Average precision on the other loci against a
dilated net of nearly the same size, trained by a plain loop for 400 updates of 8 (26,787 parameters,
one run: acceptor 0.41, donor 0.63).

    python benchmarks/sparse/planned.py --seeds 1
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import save

TASK = "splice-small"
BASELINE = {"average_precision_acceptor": 0.41, "average_precision_donor": 0.63}


def call(*arguments: str) -> dict[str, Any]:
    """Run ``rightbatch ... --json``; a run that ends without its target is no failure."""
    command = [sys.executable, "-m", "rightbatch", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in {0, 1}:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--time-budget", default="2m")
    given = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planned = call("plan", TASK, "--out", name, "--time-budget", given.time_budget)
        for seed in range(given.seeds):
            for which, options in (("plan", ["--plan", str(folder / "plan.toml")]), ("recipe", [])):
                where = str(folder / f"{which}-{seed}")
                run = call("train", TASK, *options, "--run-dir", where, "--seed", str(seed))
                met = {key: run["metrics"][key] >= least for key, least in BASELINE.items()}
                kept = ("outcome", "examples", "updates", "seconds", "metrics")
                runs.append({"by": which, "seed": seed, "met": met} | {key: run[key] for key in kept})
                result = {key: planned[key] for key in ("plan", "plateau", "predicted", "guards")}
                save("sparse_planned", {"baseline": BASELINE, **result, "runs": runs})


if __name__ == "__main__":
    main()
