"""Limits that nothing can satisfy are refused where they are made."""

from typing import Any

import pytest

from rightbatch.core.errors import InvalidInputError
from rightbatch.plan.limits import Limits


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"headroom": 1.0}, "headroom = 1.0"),
        ({"headroom": -0.1}, "headroom = -0.1"),
        ({"headroom": float("nan")}, "headroom = nan"),
        ({"memory_limit_bytes": 0}, "memory_limit_bytes = 0"),
        ({"max_batch_size": -1}, "max_batch_size = -1"),
    ],
)
def test_bounds_out_of_range_are_refused(values: dict[str, Any], found: str) -> None:
    with pytest.raises(InvalidInputError, match=found):
        Limits(**values)


def test_the_defaults_leave_a_tenth_of_the_device_free() -> None:
    assert (Limits().headroom, Limits().memory_limit_bytes, Limits().max_batch_size) == (
        0.1,
        None,
        None,
    )
