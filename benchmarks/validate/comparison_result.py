"""Results of finished comparisons, from their folders.

    rightbatch validate fashion-mnist --batch 128 --seeds 3 --out sweeps/examples
    rightbatch validate fashion-mnist --batch 128 --seeds 3 --matched-by updates --out sweeps/updates
    python benchmarks/validate/comparison_result.py sweeps/examples sweeps/updates

Writes results/validate_TASK.json, a case for each folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from large_batch import summary

from common import save
from rightbatch.core.comparison import Comparison
from rightbatch.core.store import read_record


def main() -> None:
    found = [read_record(Path(folder) / "comparison.json", Comparison) for folder in sys.argv[1:]]
    (task,) = {one.task for one in found}
    cases = {
        f"equal {one.matched_by}": summary(one)
        | {"seeds": sum(run.side == "candidate" for run in one.runs)}
        for one in found
    }
    save(f"validate_{task}", {"task": task, "cases": cases})


if __name__ == "__main__":
    main()
