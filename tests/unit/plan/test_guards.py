"""Each guard speaks where it should, with this task's numbers, and is silent elsewhere."""

import dataclasses
from typing import Any

import pytest

import known
from rightbatch.core.plan import Candidate, Interval
from rightbatch.core.sources import SOURCES
from rightbatch.fit.calibration import calibrate
from rightbatch.fit.models import fit_models
from rightbatch.fit.stability import Stability
from rightbatch.plan import guards, unknown_guards
from rightbatch.plan.guarded import Situation
from rightbatch.plan.guards import GUARDS, find_guards

ONE = Interval(value=1.0, low=1.0, high=1.0)


def candidate(micro: int = 64, passes: int = 1, **changes: Any) -> Candidate:
    values: dict[str, Any] = {
        "global_batch_size": micro * passes,
        "micro_batch_size": micro,
        "accumulation_steps": passes,
        "update_seconds": 1e-3,
        "peak_bytes": 1000,
        "examples_ratio": ONE,
        "seconds_ratio": ONE,
        "regret": 0.0,
    }
    return Candidate(**(values | changes))


def situation(laws: known.Laws | None = None, **changes: Any) -> Situation:
    """A batch of 64 about which there is nothing to say."""
    models = fit_models(known.measurements(laws))
    assert models.speed is not None
    assert models.loader is not None
    assert models.steps is not None
    values: dict[str, Any] = {
        "chosen": candidate(),
        "candidates": (candidate(),),
        "facts": known.facts(),
        "speed": models.speed,
        "loader": models.loader,
        "steps": models.steps,
        "objective": "time",
        "num_updates": 1000,
        "environment": known.environment(),
        "rate": 0.1,
        "stability": None,
        "is_derived": False,
        "largest_micro_that_fits": 4096,
        "usable_bytes": 2**20,
        "positives_per_example": None,
        "fine_tuning": False,
    }
    return Situation(**(values | changes))


def text(guard: Any, of: Situation) -> str:
    found = guard(of)
    assert found is not None
    assert found.source in SOURCES
    assert found.name == guard.__name__
    return found.text


def test_a_plain_batch_raises_no_guard() -> None:
    assert find_guards(situation()) == ()


def test_memory_speaks_where_a_timed_micro_batch_does_not_fit() -> None:
    assert "512 fits 1 MiB, 1,024 was timed" in text(
        guards.memory, situation(largest_micro_that_fits=512)
    )
    assert guards.memory(situation(largest_micro_that_fits=1024)) is None


def test_batch_norm_speaks_of_the_group_and_not_of_the_batch() -> None:
    facts = known.facts(num_batch_norm_layers=2)
    small = situation(facts=facts, chosen=candidate(micro=3, passes=100))
    assert "micro-batches of 3: a variance over so few is off by 100%" in text(
        guards.batch_norm_group, small
    )
    assert guards.batch_norm_group(situation(facts=facts, chosen=candidate(micro=16))) is None
    assert guards.batch_norm_group(situation(chosen=candidate(micro=2))) is None


def test_positives_speak_of_the_batch_that_holds_ten() -> None:
    rare = situation(positives_per_example=0.02)  # 1.28 in 64; exp(-1.28) = 0.278
    assert "1.28 positive targets on average. If they fell independently, 27.80%" in text(
        guards.positives_per_update, rare
    )
    assert "a batch of 500" in text(guards.positives_per_update, rare)
    assert guards.positives_per_update(situation(positives_per_example=0.2)) is None
    assert guards.positives_per_update(situation()) is None


def test_few_updates_speak_below_a_hundred() -> None:
    assert "99 updates" in text(guards.few_updates, situation(num_updates=99))
    assert guards.few_updates(situation(num_updates=100)) is None


def test_beyond_the_critical_batch_the_examples_are_said() -> None:
    laws = known.Laws(noise_scale=24.0 / calibrate("sgd", preconditioned=False).factor)
    assert "about 24 examples: it needs 3.7 x" in text(guards.beyond_critical, situation(laws))
    assert guards.beyond_critical(situation()) is None


def test_a_run_that_may_end_before_its_target_says_how_many_more_examples_it_needs() -> None:
    dear = candidate(examples_ratio=Interval(value=2.0, low=1.5, high=2.5))
    spoken = situation(chosen=dear, run_examples=5000)
    assert (
        "Examples to accuracy >= 0.9: 2.0 x today's (1.5 to 2.5), while the run keeps today's"
        in text(guards.short_of_target, spoken)
    )
    assert "unless today's recipe meets it within 40% to 50% of its run" in text(
        guards.short_of_target, spoken
    )
    near = situation(chosen=dear, run_examples=5000, target_examples=2500)
    assert "if it takes more than 2.0 x the 2,500 that today's recipe took" in text(
        guards.short_of_target, near
    )
    for silent in (
        situation(chosen=dear, run_examples=5000, target_examples=2000),  # 2.5 x 2000 fit
        situation(chosen=dear),  # time bounds the run
        situation(chosen=dear, run_examples=5000, facts=known.facts(target=None)),
        situation(run_examples=5000),
    ):
        assert guards.short_of_target(silent) is None


def test_a_batch_schedule_that_costs_time_is_advised_against() -> None:
    slow = situation(schedule_ratio=Interval(value=2.26, low=1.58, high=3.2))
    assert "take 2.26 (1.58 to 3.20) x the time of one batch" in text(guards.slow_schedule, slow)
    quick = situation(schedule_ratio=Interval(value=0.9, low=0.8, high=1.1))
    assert guards.slow_schedule(quick) is None


def test_a_batch_of_today_that_was_not_timed_in_one_pass_is_said() -> None:
    assert "Today's batch of 32 was not timed in one pass: it is taken to run in 4 of 8" in text(
        unknown_guards.today_in_passes, situation(today_passes=4)
    )
    assert unknown_guards.today_in_passes(situation()) is None


def test_constants_that_the_recipe_does_not_show_are_said_to_stay() -> None:
    recipe = known.facts().recipe

    def of(optimizer: str, kind: str) -> Any:
        return situation(
            facts=known.facts(
                recipe=recipe.replace(optimizer=optimizer, momentum=None),
                optimizer_class=kind,
                optimizer_family="adam",
            )
        )

    assert "tasks:groups makes the optimizer: the plan moves its learning rate" in text(
        unknown_guards.own_constants, of("tasks:groups", "AdamW")
    )
    assert "RMSprop's learning rate is moved by Adam's rule; its other constants stay" in text(
        unknown_guards.own_constants, of("rmsprop", "RMSprop")
    )
    assert unknown_guards.own_constants(of("adamw", "AdamW")) is None
    assert unknown_guards.own_constants(situation()) is None


def test_an_input_bound_task_hears_that_batches_do_not_help() -> None:
    laws = known.Laws(load_seconds=(0.0, 1e-2), num_workers=4)
    assert "The loader gives 100 examples/s" in text(guards.input_bound, situation(laws))
    assert "raise num_workers" in text(
        guards.input_bound, situation(known.Laws(load_seconds=(0.0, 1e-2)))
    )
    assert guards.input_bound(situation()) is None


def test_accumulation_that_buys_nothing_names_the_batch_without_it() -> None:
    mine = candidate(micro=64, passes=4)
    close = candidate(seconds_ratio=Interval(value=1.01, low=1.0, high=1.0))
    far = candidate(seconds_ratio=Interval(value=1.5, low=1.0, high=1.0))
    spoken = situation(chosen=mine, candidates=(close, mine))
    assert "a batch of 64 in one pass is predicted to take 1.01 x" in text(
        guards.useless_accumulation, spoken
    )
    assert guards.useless_accumulation(situation(chosen=mine, candidates=(far, mine))) is None
    assert guards.useless_accumulation(situation(chosen=mine, candidates=(mine,))) is None
    assert guards.useless_accumulation(situation(candidates=(close,))) is None


def test_a_batch_of_much_of_the_data_is_named() -> None:
    small = situation(facts=known.facts(num_train_examples=256))
    assert "averages 25% of the 256 training examples: the noise left over is 0.75" in text(
        guards.share_of_data, small
    )
    assert guards.share_of_data(situation()) is None


def test_fine_tuning_speaks_of_the_distance() -> None:
    of = situation(fine_tuning=True, rate=0.2)  # twice the rate, half the updates
    assert "rate x updates is 1.00 x today's" in text(guards.fine_tuning, of)
    far = dataclasses.replace(of, chosen=candidate(micro=32))
    assert "2.00 x today's" in text(guards.fine_tuning, far)
    assert guards.fine_tuning(situation()) is None


def test_accuracy_asks_for_a_validation() -> None:
    assert "several seeds" in text(unknown_guards.unvalidated, situation(objective="accuracy"))


def test_one_timed_size_is_said() -> None:
    laws = known.Laws(sizes=(32,))
    assert "Only micro-batches of 32" in text(unknown_guards.one_size_timed, situation(laws))


def test_an_optimizer_without_a_rule_is_named() -> None:
    facts = known.facts(optimizer_family="other", optimizer_class="Muon")
    assert "Muon" in text(unknown_guards.unknown_optimizer, situation(facts=facts))


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.__name__)
def test_a_guard_says_when_it_speaks(guard: Any) -> None:
    assert guard.__doc__.startswith("Speaks ")


def tried(**changes: Any) -> Stability:
    values: dict[str, Any] = {
        "learning_rate": 0.2,
        "updates": 40,
        "examples_seen": 1000,
        "before": 0.31,
        "after": 0.28,
        "change": (-0.15, -0.03),
        "diverged": False,
    }
    return Stability(**(values | changes))


def test_a_rate_that_rises_untried_is_called_assumed_with_the_command_that_tries_it() -> None:
    of = situation(rate=0.2)
    found = unknown_guards.stability(of)
    assert found is not None
    assert found.evidence == "assumed"
    assert "2.00 x today's" in text(unknown_guards.stability, of)
    assert "`rightbatch plan known.py --check-lr`" in text(unknown_guards.stability, of)
    assert unknown_guards.stability(situation(rate=0.1)) is None
    assert unknown_guards.stability(situation(rate=0.05)) is None


def test_a_rate_that_was_tried_speaks_with_its_losses() -> None:
    of = situation(rate=0.2, stability=tried())
    found = unknown_guards.stability(of)
    assert found is not None
    assert found.evidence == "measured"
    assert "40 updates at 0.2" in found.text
    assert "loss 0.31 -> 0.28" in found.text
    assert found.text.startswith("Stable, measured")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"change": (0.1, 0.3), "after": 0.51}, "loss 0.31 -> 0.51"),
        ({"diverged": True, "after": float("inf")}, "ceased to be finite"),
    ],
)
def test_a_rate_that_is_unstable_is_said_to_be_so(changes: dict[str, Any], says: str) -> None:
    spoken = text(unknown_guards.stability, situation(stability=tried(**changes)))
    assert spoken.startswith("Unstable, measured")
    assert says in spoken
    assert "--tune-lr" in spoken


def test_a_coarser_type_speaks_of_the_accuracy_that_no_time_shows() -> None:
    coarse = candidate(precision="bf16")
    assert "rightbatch validate" in text(unknown_guards.lower_precision, situation(chosen=coarse))
    recipe = known.facts().recipe.replace(precision="bf16")
    half = known.facts(recipe=recipe)
    assert unknown_guards.lower_precision(situation(chosen=coarse, facts=half)) is None
    assert unknown_guards.lower_precision(situation(facts=half)) is None
