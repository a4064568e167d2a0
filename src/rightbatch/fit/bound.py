"""What sets the pace of training: computing, reading the data, or the fixed cost of every step."""

from __future__ import annotations

from rightbatch.fit.loader_model import Bound, LoaderModel
from rightbatch.fit.speed_model import SpeedModel

OVERHEAD_SHARE = 0.5  # below this share of the best throughput, most of an update is fixed cost


def find_bound(speed: SpeedModel, loader: LoaderModel, batch_size: int) -> Bound:
    """Name what sets the pace at a batch size, or at the nearest size that was timed.

    Returns:
        ``input`` where reading a batch takes longer than computing on it, ``overhead`` where a
        larger batch would at least double the throughput, else ``compute``.
    """
    low, high = speed.valid_range
    size = min(max(batch_size, low), high)
    update = speed.step_seconds(size) + speed.optimizer_seconds
    if loader.load_seconds(size) > update:
        return "input"
    best = max(b / (speed.step_seconds(b) + speed.optimizer_seconds) for b in speed.micro_batch_sizes)
    return "overhead" if size / update < OVERHEAD_SHARE * best else "compute"
