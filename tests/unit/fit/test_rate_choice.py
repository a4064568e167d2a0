import math

import numpy as np
import pytest

from rightbatch.core.samples import RateTrial, RateTuning
from rightbatch.fit.rate_choice import choose_rate, settled_loss

RULE = 0.1


def tuning(losses: dict[float, list[float]], diverged: tuple[float, ...] = ()) -> RateTuning:
    return RateTuning(
        batch_size=64,
        rule_rate=RULE,
        examples_seen=1000,
        window_examples=640,
        trials=tuple(
            RateTrial(learning_rate=rate, losses=tuple(values), diverged=rate in diverged)
            for rate, values in losses.items()
        ),
    )


def falling(level: float, spread: float = 0.0, seed: int = 0, length: int = 16) -> list[float]:
    draws = np.random.default_rng(seed).normal(size=length)
    return (level * (1 + 1 / np.arange(1, length + 1)) + spread * draws).tolist()


def test_a_rate_that_is_shown_to_be_better_replaces_the_rules() -> None:
    found = choose_rate(tuning({0.05: falling(1.2), RULE: falling(1.0), 0.2: falling(0.9)}))
    assert (found.rate, found.decided) == (0.2, True)
    assert found.loss_change == pytest.approx(-0.1)
    assert found.low <= found.loss_change <= found.high < 0


def test_a_difference_within_the_noise_keeps_the_rules_rate_and_says_which_are_as_good() -> None:
    losses = {0.05: falling(2.0), RULE: falling(1.0, 0.2, seed=1), 0.2: falling(0.99, 0.2, seed=2)}
    found = choose_rate(tuning(losses))
    assert (found.rate, found.decided) == (RULE, False)
    assert found.as_good == (RULE, 0.2)


def test_noise_that_both_branches_share_does_not_hide_a_difference() -> None:
    shared = np.random.default_rng(0).normal(scale=0.3, size=16)
    losses = {RULE: (2 + shared).tolist(), 0.2: (1.95 + shared).tolist()}
    assert choose_rate(tuning(losses)).rate == 0.2


def test_the_jump_at_the_fork_does_not_count() -> None:
    jumps = [9.0] * 8 + [0.8] * 8
    assert choose_rate(tuning({RULE: falling(1.0), 0.2: jumps})).rate == 0.2


def test_a_diverged_rate_never_wins_and_a_diverged_rule_is_left() -> None:
    losses = {0.05: falling(1.5), RULE: falling(1.0), 0.2: [0.1, 0.1]}
    assert choose_rate(tuning(losses, diverged=(0.2,))).rate == RULE
    found = choose_rate(tuning({0.05: falling(1.5), RULE: [1.0]}, diverged=(RULE,)))
    assert (found.rate, found.decided) == (0.05, True)
    assert settled_loss(tuning({RULE: [1.0]}, diverged=(RULE,)).trials[0]) == math.inf


def test_a_branch_that_was_dropped_early_cannot_be_the_best() -> None:
    losses = {0.05: falling(0.1)[:6], RULE: falling(1.0), 0.2: falling(1.1)}
    assert choose_rate(tuning(losses)).rate == RULE


def test_losses_below_zero_compare_like_any_others() -> None:
    assert choose_rate(tuning({RULE: [-1.0] * 16, 0.2: [-1.2] * 16})).rate == 0.2


def test_the_rule_is_replaced_by_chance_in_one_of_twenty_at_most() -> None:
    draws = np.random.default_rng(3)
    replaced = 0
    for _ in range(400):
        losses = {rate: (1 + 0.1 * draws.normal(size=16)).tolist() for rate in (0.05, RULE, 0.2)}
        replaced += choose_rate(tuning(losses)).rate != RULE
    assert replaced / 400 < 0.12  # two rivals, each one-sided at 5 %
