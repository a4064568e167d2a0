import pytest

from records import measurements
from rightbatch.core.plan import Plan
from rightbatch.core.samples import RateTrial, RateTuning
from rightbatch.plan.planner import make_plan


def rate_of(plan: Plan):
    return next(d for d in plan.decisions if d.name == "learning_rate")


def plan_with(best: float, **changes: object) -> Plan:
    """The plan after trials at its batch, of which the one at ``best`` x the rule's rate won."""
    rule = make_plan(measurements().task, measurements())
    rates = [factor * rule.learning_rate for factor in (0.5, 1.0, 2.0)]
    tuning = RateTuning(
        batch_size=rule.global_batch_size,
        rule_rate=rule.learning_rate,
        examples_seen=1000,
        window_examples=rule.global_batch_size,
        trials=tuple(
            RateTrial(
                learning_rate=rate,
                losses=(0.5 if rate == best * rule.learning_rate else 1.0,) * 16,
            )
            for rate in rates
        ),
    ).replace(**changes)
    measured = measurements().replace(rate_tunings=(tuning,))
    return make_plan(measured.task, measured)


def test_a_rate_that_won_its_trials_is_planned_and_says_that_it_was_measured() -> None:
    rule, tuned = make_plan(measurements().task, measurements()), plan_with(2.0)
    assert tuned.learning_rate == pytest.approx(2 * rule.learning_rate)
    decision = rate_of(tuned)
    assert (decision.evidence, decision.source) == ("measured", "rate_trials")
    assert "loss -50.00%" in decision.reason


def test_weight_decay_keeps_its_time_constant() -> None:
    rule, tuned = make_plan(measurements().task, measurements()), plan_with(2.0)
    assert tuned.weight_decay == pytest.approx((rule.weight_decay or 0) / 2)


def test_trials_that_decide_nothing_confirm_the_rule() -> None:
    rule, tuned = make_plan(measurements().task, measurements()), plan_with(9.0)
    assert tuned.learning_rate == rule.learning_rate
    assert tuned.weight_decay == rule.weight_decay
    assert rate_of(tuned).evidence == "measured"
    assert "none of" in rate_of(tuned).reason


def test_trials_at_another_batch_or_around_another_rate_do_not_count() -> None:
    rule = make_plan(measurements().task, measurements())
    assert plan_with(2.0, batch_size=999).learning_rate == rule.learning_rate
    elsewhere = plan_with(2.0, batch_size=999)
    assert rate_of(elsewhere).evidence == "derived"
