"""What sets the pace, for speeds and loaders of known shape."""

import pytest

from rightbatch.fit.bound import find_bound
from rightbatch.fit.loader_model import Bound, LoaderModel
from rightbatch.fit.speed_model import SpeedModel

SIZES = tuple(2**power for power in range(11))


def speed(fixed: float, per_example: float) -> SpeedModel:
    return SpeedModel(
        micro_batch_sizes=SIZES,
        seconds=tuple(fixed + per_example * size for size in SIZES),
        standard_errors=(0.0,) * len(SIZES),
        optimizer_seconds=0.0,
        residual=None,
    )


def loader(per_example: float) -> LoaderModel:
    return LoaderModel(
        num_workers=0,
        batch_seconds=0.0,
        example_seconds=per_example,
        residual=0.0,
        valid_range=(1, 1024),
    )


@pytest.mark.parametrize(
    ("fixed", "batch_size", "load", "bound"),
    [
        (0.0, 32, 2e-3, "input"),  # 2 ms an example to load, 1 ms to compute
        (0.0, 32, 1e-6, "compute"),
        (1.0, 32, 1e-6, "overhead"),  # a second of fixed cost on 32 ms of work
        (1.0, 100_000, 1e-6, "compute"),  # judged at the largest timed size
    ],
)
def test_the_slowest_part_sets_the_pace(
    fixed: float, batch_size: int, load: float, bound: Bound
) -> None:
    assert find_bound(speed(fixed, per_example=1e-3), loader(load), batch_size) == bound
