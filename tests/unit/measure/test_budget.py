"""Time to spend, on a clock that a test moves."""

import pytest

from rightbatch.measure.budget import Budget


class Clock:
    """Stands still until told."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_a_budget_starts_now_and_runs_out() -> None:
    clock = Clock()
    budget = Budget(seconds=10, clock=clock)
    clock.now += 4
    assert (budget.elapsed, budget.left) == (4, 6)
    assert budget.allows(6)
    assert not budget.allows(6.1)
    clock.now += 8
    assert budget.left == -2
    assert not budget.allows(0.0)


def test_a_part_starts_now_and_has_a_share_of_what_is_left() -> None:
    clock = Clock()
    budget = Budget(seconds=10, clock=clock)
    clock.now += 6
    part = budget.part(0.25)
    assert (part.seconds, part.left) == (1, 1)
    clock.now += 0.5
    assert part.left == pytest.approx(0.5)


def test_a_part_of_a_spent_budget_is_empty() -> None:
    clock = Clock()
    budget = Budget(seconds=1, clock=clock)
    clock.now += 5
    assert budget.part(0.5).seconds == 0


def test_a_clock_may_begin_at_zero() -> None:
    clock = Clock(0.0)
    budget = Budget(seconds=1, clock=clock)
    clock.now = 0.25
    assert budget.elapsed == 0.25
