"""The learning rate over a run, counted in examples."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.recipe import Recipe
from rightbatch.core.schedule import rate_at


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {"lr": 1.0, "batch_size": 10, "epochs": 1}
    return Recipe(**(values | changes))


def test_a_constant_rate_without_warmup_never_moves() -> None:
    assert {rate_at(recipe(), 0.3, n, 100) for n in (1, 50, 100)} == {0.3}


def test_warmup_climbs_linearly_from_its_start() -> None:
    warm = recipe(warmup_examples=40)
    rates = [rate_at(warm, 2.0, n, 100, warmup_start=0.5) for n in (10, 20, 40, 90)]
    assert rates == pytest.approx([1.25, 1.5, 2.0, 2.0])


@pytest.mark.parametrize(
    ("schedule", "half"), [("cosine", 0.5 * (1 + math.cos(math.pi / 2))), ("linear", 0.5)]
)
def test_decay_starts_after_warmup_and_ends_at_zero(schedule: str, half: float) -> None:
    decaying = recipe(warmup_examples=20, schedule=schedule)
    assert rate_at(decaying, 1.0, 20, 100) == 1.0
    assert rate_at(decaying, 1.0, 60, 100) == pytest.approx(half)
    assert rate_at(decaying, 1.0, 100, 100) == pytest.approx(0.0)


def test_an_update_past_the_end_has_rate_zero() -> None:
    assert rate_at(recipe(schedule="linear"), 1.0, 110, 100) == 0.0
    assert rate_at(recipe(schedule="cosine"), 1.0, 110, 100) == pytest.approx(0.0)


def test_a_warmup_as_long_as_the_run_is_allowed_and_a_longer_one_is_not() -> None:
    assert rate_at(recipe(warmup_examples=100, schedule="cosine"), 1.0, 100, 100) == 1.0
    with pytest.raises(InvalidInputError, match="warmup_examples = 101 in a run of 100 examples"):
        rate_at(recipe(warmup_examples=101), 1.0, 10, 100)


@settings(deadline=None)
@given(
    schedule=st.sampled_from(["constant", "cosine", "linear"]),
    warmup=st.integers(0, 100),
    start=st.floats(0, 1),
    examples=st.integers(1, 100),
)
def test_the_rate_stays_between_zero_and_its_peak(
    schedule: str, warmup: int, start: float, examples: int
) -> None:
    rate = rate_at(
        recipe(schedule=schedule, warmup_examples=warmup), 3.0, examples, 100, warmup_start=start
    )
    assert -1e-12 <= rate <= 3.0 + 1e-12
