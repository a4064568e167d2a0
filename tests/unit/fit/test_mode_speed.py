"""A mode's times are the recipe's times its ratio, and hang on the recipe's errors."""

import numpy as np
import pytest

from rightbatch.core.errors import MeasurementError
from rightbatch.core.samples import ModeTiming
from rightbatch.fit.mode_speed import fit_mode_speed
from rightbatch.fit.speed_model import SpeedModel

RECIPE = SpeedModel(
    micro_batch_sizes=(1, 8, 64),
    seconds=(1.0, 2.0, 4.0),
    standard_errors=(0.1, 0.1, 0.1),
    optimizer_seconds=0.5,
    residual=None,
)


def timing(size: int, ratios: list[float], beside: int | None = None, drift: float = 1.0) -> ModeTiming:
    """Steps on a machine that is ``drift`` slower than when the recipe was timed."""
    return ModeTiming(
        micro_batch_size=size,
        seconds=tuple(drift * ratio for ratio in ratios),
        beside_micro_batch_size=beside or size,
        beside_seconds=(drift,) * len(ratios),
    )


@pytest.mark.parametrize("drift", [1.0, 3.0])
def test_a_machine_that_became_slower_does_not_change_the_ratio(drift: float) -> None:
    found = fit_mode_speed(RECIPE, [timing(8, [0.5] * 5, drift=drift)])
    assert found.speed.seconds == (1.0,)
    assert found.speed.optimizer_seconds == 0.5
    assert found.ratio_errors == (0.0,)
    assert found.speed.standard_errors == pytest.approx((0.05,))  # the recipe's 5 %


def test_a_size_that_the_recipe_cannot_run_hangs_on_its_largest() -> None:
    found = fit_mode_speed(
        RECIPE, [timing(128, [3.0] * 3, beside=64), timing(1, [0.9, 1.0, 1.1]), timing(8, [1.0])]
    )
    assert found.speed.micro_batch_sizes == (1, 128)  # 8 was timed too rarely
    assert found.speed.seconds == pytest.approx((1.0, 12.0))
    assert found.beside == (0, 2)
    spread = np.quantile(np.log([0.9, 1.0, 1.1]), [0.25, 0.75])
    assert found.ratio_errors[0] == pytest.approx(
        (spread[1] - spread[0]) / 1.349 * np.sqrt(np.pi / 6), rel=1e-6
    )


def test_timings_beside_a_size_that_is_gone_are_of_no_use() -> None:
    with pytest.raises(MeasurementError, match=r"1 size\(s\) of another mode; need one"):
        fit_mode_speed(RECIPE, [timing(16, [1.0] * 5)])
