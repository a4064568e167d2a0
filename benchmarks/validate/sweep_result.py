"""Predicted critical batch size against the fitted one, from the folder of a finished sweep.

    rightbatch validate digits --sweep 8:512 --rates 5 --seeds 3 --out sweeps/digits
    python benchmarks/validate/sweep_result.py sweeps/digits [FOLDER ...]

Writes results/validate_sweep_TASK.json for each. The prediction is that of a pilot's noise scale,
measured before the first run of the sweep.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import save
from rightbatch.core.store import read_record
from rightbatch.core.sweep import Sweep
from rightbatch.validate.sweep_session import SWEEP


def ratio(found: Sweep) -> dict[str, Any] | None:
    """Predicted over fitted, and whether the intervals of the two overlap."""
    predicted, fitted = found.predicted, found.critical_batch_size
    if predicted is None or fitted is None:
        return None
    apart = [
        low is not None and high is not None and low > high
        for low, high in ((predicted.low, fitted.high), (fitted.low, predicted.high))
    ]
    return {
        "predicted_over_fitted": round(predicted.value / fitted.value, 3),
        "intervals_overlap": not any(apart),
    }


def main() -> None:
    for folder in sys.argv[1:]:
        found = read_record(Path(folder) / SWEEP, Sweep)
        document = found.model_dump(mode="json", exclude={"arms": {"__all__": {"schema_version"}}})
        rates = len({(arm.batch_size, arm.factor) for arm in found.arms})
        summary = {
            "ratio": ratio(found),
            "runs": len(found.arms),
            "seeds": len({arm.seed for arm in found.arms}),
            "rates_per_batch": round(rates / len({arm.batch_size for arm in found.arms}), 1),
        }
        save(f"validate_sweep_{found.task}", summary | document)


if __name__ == "__main__":
    main()
