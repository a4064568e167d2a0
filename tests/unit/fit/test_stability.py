"""A branch is called unstable where its loss diverges or rises beyond the noise of its windows."""

import numpy as np
import pytest

from rightbatch.core.samples import RateTrial, RateTuning
from rightbatch.fit.stability import STANDING_STILL, Stability, find_stability

RNG = np.random.default_rng(0)


def tuning(
    losses: list[float], still: list[float] | None = None, *, diverged: bool = False
) -> RateTuning:
    trials = [RateTrial(learning_rate=0.8, losses=tuple(losses), diverged=diverged)]
    if still is not None:
        trials.insert(0, RateTrial(learning_rate=STANDING_STILL, losses=tuple(still)))
    return RateTuning(
        batch_size=64, rule_rate=0.8, examples_seen=500, window_examples=128, trials=tuple(trials)
    )


def judged(*args: list[float], diverged: bool = False) -> Stability:
    found = find_stability([tuning(*args, diverged=diverged)], 64, 0.8)
    assert found is not None
    return found


def test_a_loss_that_falls_below_the_weights_it_began_from_is_stable() -> None:
    examples = RNG.normal(1.0, 0.2, 16)  # some windows hold harder examples, for both branches
    found = judged((0.7 * examples).tolist(), examples.tolist())
    assert found.is_stable
    assert found.change[1] < 0
    assert (found.updates, found.examples_seen) == (32, 500)
    assert found.before == pytest.approx(examples[8:].mean())
    assert found.after == pytest.approx(0.7 * examples[8:].mean())


def test_a_spike_that_has_not_come_back_is_unstable_though_the_loss_falls_all_along() -> None:
    examples = RNG.normal(1.0, 0.2, 16)
    found = judged((examples * np.linspace(5.0, 2.0, 16)).tolist(), examples.tolist())
    assert not found.is_stable


def test_a_loss_that_explodes_is_unstable_though_its_last_windows_dwarf_the_others() -> None:
    found = judged(np.exp(np.arange(16.0)).tolist(), [1.0] * 16)
    assert not found.is_stable


def test_a_loss_below_zero_is_judged_by_differences() -> None:
    still = RNG.normal(-1.0, 0.1, 16)
    assert judged((still - 0.5).tolist(), still.tolist()).is_stable
    assert not judged((still + 0.5).tolist(), still.tolist()).is_stable


def test_a_rise_within_the_noise_is_stable() -> None:
    examples = RNG.normal(1.0, 0.2, 16)
    found = judged((examples + RNG.normal(0.0, 0.1, 16)).tolist(), examples.tolist())
    assert found.is_stable
    assert found.change[0] < 0 < found.change[1]


def test_a_trial_of_tuning_is_compared_with_its_own_first_half() -> None:
    falling, rising = np.linspace(1.0, 0.5, 16), np.linspace(0.5, 1.0, 16)
    assert judged(falling.tolist()).is_stable
    assert not judged(rising.tolist()).is_stable


@pytest.mark.parametrize("losses", [[], [1.0, 9.0]])
def test_a_branch_that_diverged_is_unstable_however_short(losses: list[float]) -> None:
    found = judged(losses, [1.0] * 16, diverged=True)
    assert not found.is_stable
    assert found.diverged
    assert found.before == 1.0


def test_another_rate_another_batch_or_too_few_windows_say_nothing() -> None:
    assert find_stability([tuning([1.0] * 16)], 64, 0.4) is None
    assert find_stability([tuning([1.0] * 16)], 32, 0.8) is None
    assert find_stability([tuning([1.0] * 3)], 64, 0.8) is None
    assert find_stability([tuning([1.0] * 16, [1.0] * 3)], 64, 0.8) is None
