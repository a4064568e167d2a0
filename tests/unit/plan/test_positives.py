"""The guard of rare positives speaks from what was counted and measured, not from independence."""

from typing import Any

import pytest

from rightbatch.core.plan import Interval
from rightbatch.core.signal import GradientSignal, Signal, UpdateSignal
from rightbatch.core.sources import SOURCES
from rightbatch.plan.positives import guard_positives


def signal(noise_scale: float | None = 4.0, none: float = 0.24, **changes: Any) -> Signal:
    """Six positives in an example, clustered."""
    update = UpdateSignal(
        batch_size=8,
        expected_positives=48.0,
        positives_sd=10.0,
        probability_none=none**8,
        probability_none_if_independent=1e-9,
        relative_error=None,
    )
    gradient = GradientSignal(
        stage="init",
        mass_share=0.5,
        noise_scale=noise_scale,
        noise_low=1.0,
        noise_high=None,
        whole_noise_scale=1.0,
        cosine=None,
    )
    values: dict[str, Any] = {
        "task": "rare",
        "positive_fraction": 0.001,
        "positives_per_example": 6.0,
        "positions_per_example": 6000.0,
        "examples_without": none,
        "design_effect": 6.0,
        "correlation": 0.1,
        "counts_evidence": "derived",
        "examples_counted": 0,
        "updates": (update,),
        "gradients": (gradient,),
        "wanted_relative_error": 0.2,
        "batch_for_error": Interval(value=100.0, low=25.0, high=None),
    }
    return Signal(**(values | changes))


def text(found: Signal, batch: int) -> str:
    guard = guard_positives(found, batch)
    assert guard is not None
    assert guard.source in SOURCES
    assert guard.evidence == found.counts_evidence
    return guard.text


def test_enough_positives_with_a_clear_gradient_are_passed_over() -> None:
    assert guard_positives(signal(), 8) is None
    assert guard_positives(signal(noise_scale=None), 8) is None


def test_few_positives_name_the_batch_that_would_do() -> None:
    said = text(signal(), 1)
    assert "6 positive targets on average, and at most 24.00% of all updates see none" in said
    assert "off by 200% (100% to open) in one update" in said
    assert "An error of 20% needs a batch of 100, or positives drawn more often" in said


def test_updates_that_see_none_are_said_though_the_average_is_high() -> None:
    # 0.6^8 = 1.7 % of updates; 48 positives in one on average
    assert "1.68% of all updates see none" in text(signal(none=0.6), 8)
    assert "1.68% of all updates see none" in text(signal(none=0.6), 12)  # a bound: 8 is the next


def test_a_gradient_lost_in_noise_is_said_and_an_unknown_one_is_not_made_up() -> None:
    assert "off by 106%" in text(signal(noise_scale=9.0), 8)
    lost = text(signal(noise_scale=None, none=0.6, batch_for_error=None), 8)
    assert "gradient" not in lost
    assert "needs a batch" not in lost


def test_the_error_falls_as_one_over_the_root_of_the_batch() -> None:
    near, far = signal().error_at(1), signal().error_at(100)
    assert near is not None
    assert far is not None
    assert (near.value, near.low, near.high) == (2.0, 1.0, None)
    assert far.value == pytest.approx(near.value / 10)


def test_few_positives_are_said_though_none_is_missed_and_the_gradient_is_clear() -> None:
    said = text(signal(noise_scale=0.5, none=0.001, positives_per_example=9.0), 1)
    assert "sees 9 positive targets" in said
    assert guard_positives(signal(noise_scale=0.5, none=0.001, positives_per_example=10.0), 1) is None
