import pytest
import torch

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.fit.stability import STANDING_STILL, find_stability
from rightbatch.measure import rates
from rightbatch.measure.branches import fork, trained_trunk
from rightbatch.measure.budget import Budget
from rightbatch.measure.rates import measure_rates, measure_stability
from tiny import task as tiny_task


def plan(**changes: object) -> Plan:
    return Plan.from_recipe(tiny_task().recipe, **changes)


def test_branches_leave_the_trunk_alone_and_start_from_its_optimizer() -> None:
    trunk = trained_trunk(tiny_task(), 20, device="cpu", seed=0)
    before = {name: value.clone() for name, value in trunk.model.state_dict().items()}
    branch = fork(trunk, batch_size=4, learning_rate=0.5)
    branch.train(8)
    assert all(torch.equal(value, before[name]) for name, value in trunk.model.state_dict().items())
    assert not all(torch.equal(v, before[n]) for n, v in branch.model.state_dict().items())
    ours, theirs = branch.optimizer.param_groups[0]["params"], list(branch.model.parameters())
    assert all(a is b for a, b in zip(ours, theirs, strict=True))


def test_the_split_into_micro_batches_changes_nothing() -> None:
    trunk = trained_trunk(tiny_task(), 8, device="cpu", seed=0)
    whole = fork(trunk, batch_size=8, learning_rate=0.1)
    parts = fork(trunk, batch_size=8, learning_rate=0.1, micro_batch_size=2)
    assert whole.train(16) == pytest.approx(parts.train(16), rel=1e-5)
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_branches_of_other_batch_sizes_read_the_same_examples() -> None:
    trunk = trained_trunk(tiny_task(), 8, device="cpu", seed=0)
    still = [fork(trunk, batch_size=size, learning_rate=1e-12) for size in (2, 4, 8)]
    losses = [branch.train(64) for branch in still]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_a_partial_update_is_refused() -> None:
    trunk = trained_trunk(tiny_task(), 8, device="cpu", seed=0)
    with pytest.raises(InvalidInputError, match="10 examples in batches of 4; need a multiple"):
        fork(trunk, batch_size=4, learning_rate=0.1).train(10)


def test_branches_of_a_plan_with_another_optimizer_are_refused_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained: list[int] = []
    monkeypatch.setattr(rates, "trained_trunk", lambda *_, **__: trained.append(1))
    other = plan(optimizer="adamw")
    for measure in (measure_rates, measure_stability):
        with pytest.raises(InvalidInputError, match="optimizer 'adamw', while the recipe has 'sgd'"):
            [*measure(tiny_task(), other, device="cpu", seed=0, budget=Budget(seconds=1))]
    assert trained == []


def test_a_rate_that_is_far_too_small_is_replaced_by_one_beyond() -> None:
    slow = plan(learning_rate=1e-4, optimizer="sgd")
    *_, last = measure_rates(tiny_task(), slow, device="cpu", seed=0, budget=Budget(seconds=1))
    tried = [trial.learning_rate for trial in last.trials]
    assert max(tried) > 2e-4  # twice was best, so four times was tried, too
    assert len(tried) <= rates.MOST_RATES


def test_a_rate_that_explodes_is_recorded_and_the_search_goes_on() -> None:
    wild = plan(learning_rate=1e6, optimizer="sgd")
    *_, last = measure_rates(tiny_task(), wild, device="cpu", seed=0, budget=Budget(seconds=1))
    assert all(trial.diverged for trial in last.trials if trial.learning_rate >= 1e6)


def test_every_surviving_rate_gets_the_same_effort() -> None:
    *_, last = measure_rates(
        tiny_task(), plan(learning_rate=0.05), device="cpu", seed=0, budget=Budget(seconds=1)
    )
    lengths = sorted(len(trial.losses) for trial in last.trials)
    assert lengths[0] == rates.FIRST_RUNG
    assert set(lengths[1:]) == {rates.WINDOWS}


def test_the_check_pairs_the_planned_rate_with_weights_that_stand_still() -> None:
    calm = plan(optimizer="sgd")
    *_, last = measure_stability(tiny_task(), calm, device="cpu", seed=0, budget=Budget(seconds=5))
    still, trial = last.trials
    assert (still.learning_rate, trial.learning_rate) == (STANDING_STILL, calm.learning_rate)
    assert len(still.losses) == len(trial.losses) == rates.WINDOWS
    assert still.losses[0] == pytest.approx(trial.losses[0], rel=0.2)
    found = find_stability([last], calm.global_batch_size, calm.learning_rate)
    assert found is not None
    assert found.is_stable
    assert found.updates <= rates.WINDOWS * rates.CHECK_UPDATES


@pytest.mark.parametrize("rate", [1e6, 1.2])  # beyond 2 / curvature, far and a little
def test_a_rate_that_does_not_train_is_found_out(rate: float) -> None:
    wild = plan(learning_rate=rate, optimizer="sgd")
    *_, last = measure_stability(tiny_task(), wild, device="cpu", seed=0, budget=Budget(seconds=5))
    found = find_stability([last], wild.global_batch_size, rate)
    assert found is not None
    assert not found.is_stable
