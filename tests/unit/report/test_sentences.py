import dataclasses
from pathlib import Path

import pytest

import records
from rightbatch.core.plan import BatchSchedule, Doubt, Interval, Plan, Prediction
from rightbatch.core.recipe import Target
from rightbatch.core.samples import RateTrial, RateTuning
from rightbatch.fit.models import Models, fit_models
from rightbatch.fit.noise_scale import NoiseScale
from rightbatch.report.history import RunHistory
from rightbatch.report.sentences import (
    answer_sentence,
    comparison_sentence,
    interval_text,
    loader_verdict,
    memory_sentence,
    next_steps,
    noise_sentence,
)

DEMO = Path("demo")
FACTS = records.task_facts()


FEWER = Interval(value=0.5, low=0.4, high=0.6)


def predicted(seconds: Interval, probability: float = 0.98, examples: Interval = FEWER) -> Plan:
    prediction = Prediction(
        seconds_to_target_ratio=seconds,
        examples_to_target_ratio=examples,
        probability_better=probability,
    )
    return records.plan(predicted=prediction)


def test_the_answer_names_the_split_the_rate_the_gain_with_interval_and_the_plateau() -> None:
    plan = predicted(Interval(value=0.61, low=0.48, high=0.79))
    assert answer_sentence(plan, FACTS) == (
        "Train digits with global batch 96 = micro 96 x accumulation 1 x replicas 1 at learning rate"
        " 0.00173: predicted 0.61 (0.48 to 0.79) of today's time to accuracy >= 0.97;"
        " every batch from 64 to 160 is within 5 %."
    )


def test_an_interval_around_one_is_called_undecided() -> None:
    plan = predicted(Interval(value=0.93, low=0.7, high=1.3), probability=0.64)
    text = answer_sentence(plan, FACTS)
    assert "0.93 (0.70 to 1.3) of today's time" in text
    assert "whether it is sooner is not decided (64 % likely)" in text


def test_where_the_time_is_undecided_fewer_examples_are_what_the_plan_buys() -> None:
    seconds = Interval(value=1.0, low=0.84, high=1.3)
    text = answer_sentence(predicted(seconds, probability=0.37), FACTS)
    assert "not decided (37 % likely), for 0.50 (0.40 to 0.60) of its examples" in text
    as_many = Interval(value=0.9, low=0.7, high=1.1)
    assert "examples" not in answer_sentence(predicted(seconds, examples=as_many), FACTS)


def test_more_examples_are_said_whatever_the_time() -> None:
    twice = Interval(value=2.1, low=1.5, high=2.9)
    text = answer_sentence(predicted(Interval(value=0.5, low=0.3, high=0.8), examples=twice), FACTS)
    assert "0.50 (0.30 to 0.80) of today's time" in text
    assert "for 2.1 (1.5 to 2.9) of its examples" in text


def test_a_prediction_beside_a_batch_schedule_is_that_of_the_batch_alone() -> None:
    schedule = BatchSchedule(kind="linear", milestones=((0, 48), (100, 96)), rate_power=1.0)
    text = answer_sentence(records.plan(batch_schedule=schedule), FACTS)
    assert ": with this batch all along predicted 0.6" in text


def test_an_open_interval_is_called_undecided() -> None:
    plan = predicted(Interval(value=0.93, low=0.7, high=None), probability=0.64)
    assert "0.93 (0.70 or more) of today's time" in answer_sentence(plan, FACTS)
    assert "not decided" in answer_sentence(plan, FACTS)


def test_a_slower_plan_says_what_its_time_buys() -> None:
    plan = predicted(Interval(value=1.4, low=1.2, high=1.6), probability=0.0)
    assert "1.4 (1.2 to 1.6) of today's time" in answer_sentence(plan, FACTS)
    assert "for 0.50 (0.40 to 0.60) of its examples" in answer_sentence(plan, FACTS)


def test_a_plan_at_todays_batch_says_to_keep_the_recipe() -> None:
    plan = records.plan(global_batch_size=32, micro_batch_size=32, learning_rate=1e-3, plateau=(24, 48))
    text = answer_sentence(plan, FACTS)
    assert text.startswith("Keep today's batch size for digits: global batch 32 = micro 32 x")
    assert text.endswith("no other batch size scored better; every batch from 24 to 48 is within 5 %.")


def test_another_rate_at_todays_batch_is_not_given_a_prediction_of_time() -> None:
    same = Interval(value=1.0, low=1.0 - 1e-16, high=1.0)
    one = Prediction(
        seconds_to_target_ratio=same, examples_to_target_ratio=same, probability_better=0.0
    )
    plan = records.plan(global_batch_size=32, micro_batch_size=32, learning_rate=4e-3, predicted=one)
    text = answer_sentence(plan, FACTS)
    assert text.startswith("Keep today's batch size for digits: global batch 32 = micro 32 x")
    assert "at learning rate 0.004 in place of 0.001; no other batch size scored better" in text
    assert "predicted" not in text
    half = one.replace(seconds_to_target_ratio=Interval(value=0.5, low=0.4, high=0.6))  # by its mode
    assert "predicted 0.50" in answer_sentence(plan.replace(predicted=half), FACTS)


def test_a_plateau_that_holds_todays_batch_says_so() -> None:
    text = answer_sentence(records.plan(plateau=(24, 160)), FACTS)
    assert text.endswith("every batch from 24 to 160 is within 5 %, today's 32 included.")


def test_a_plateau_of_one_batch_says_that_no_other_is_as_good() -> None:
    text = answer_sentence(records.plan(plateau=(96, 96)), FACTS)
    assert text.endswith("; no other batch is within 5 %.")


def test_without_a_plan_nothing_is_recommended() -> None:
    assert answer_sentence(None, FACTS) == (
        "digits was measured but not planned: no batch size is recommended yet."
    )


def test_a_plan_made_by_hand_is_not_given_a_prediction() -> None:
    plan = Plan.from_recipe(FACTS.recipe, task="digits", global_batch_size=64)
    assert "nothing is predicted for a plan made by hand" in answer_sentence(plan, FACTS)


def test_without_a_target_time_is_counted_to_the_same_loss() -> None:
    assert "of today's time to the same loss" in answer_sentence(
        records.plan(), records.task_facts(target=None)
    )


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(value=1, low=1, high=1), "1.0"),
        (Interval(value=0.6, low=None, high=0.7), "0.60 (up to 0.70)"),
        (Interval(value=0.6, low=None, high=None), "0.60 (no interval)"),
        (Interval(value=99.7, low=12, high=1234), "100 (12 to 1,234)"),
    ],
)
def test_intervals_read_as_words(interval: Interval, text: str) -> None:
    assert interval_text(interval) == text


def test_a_decided_noise_scale_has_both_bounds() -> None:
    noise = fit_models(records.measurements()).noise
    assert noise_sentence(noise).startswith(
        "The gradient noise scale is 118 (106 to 132) examples (72 samples)"
    )


def test_an_undecided_noise_scale_is_a_lower_bound_and_says_why() -> None:
    noise = fit_models(records.measurements(undecided=True)).noise
    assert "at least 116 examples" in noise_sentence(noise)
    assert "nothing bounds the scale from above" in noise_sentence(noise)


def test_a_noise_scale_with_a_value_but_no_upper_bound_is_still_a_lower_bound() -> None:
    noise = NoiseScale(
        examples_seen=0,
        noise_scale=90.0,
        low=30.0,
        high=None,
        grad_sq_norm=1.0,
        trace_covariance=90.0,
        num_samples=4,
        source="micro-batches",
    )
    assert "is at least 30 examples" in noise_sentence(noise)


def slow_loader(num_workers: int, times: float = 5.0) -> Models:
    timings = tuple(
        timing.model_copy(
            update={"num_workers": num_workers, "seconds": tuple(times * s for s in timing.seconds)}
        )
        for timing in records.measurements().loader_timings
    )
    return fit_models(records.measurements(loader_timings=timings))


def test_the_step_sets_the_pace_where_it_is_slower_than_the_loader() -> None:
    verdict = loader_verdict(fit_models(records.measurements()), records.plan())
    assert verdict.startswith(
        "The step sets the pace: at micro-batch 96 the loader alone gives 431,000"
    )
    assert verdict.endswith("Loading takes 33 % of the time of both; worker processes would hide it.")


def test_a_loader_slower_than_the_step_means_that_a_larger_batch_will_not_help() -> None:
    verdict = loader_verdict(slow_loader(0), records.plan())
    assert verdict.startswith("The loader sets the pace: at micro-batch 96")
    assert verdict.endswith("A larger batch will not help; raise num_workers.")
    assert loader_verdict(slow_loader(2), records.plan()).endswith(
        "add workers or make loading cheaper."
    )


def test_whichever_is_slower_sets_the_pace() -> None:
    """The loader of the record takes half of the step's time."""
    assert loader_verdict(slow_loader(0, 1.9), records.plan()).startswith("The step sets the pace")
    assert loader_verdict(slow_loader(0, 2.1), records.plan()).startswith("The loader sets the pace")


def test_the_pace_is_judged_at_the_planned_micro_batch_and_at_the_knee_without_a_plan() -> None:
    models = fit_models(records.measurements())
    assert "at micro-batch 96 " in loader_verdict(models, records.plan())
    assert "at micro-batch 512 " in loader_verdict(models, None)


def test_a_pace_that_was_not_measured_is_not_known() -> None:
    without = fit_models(records.measurements(loader_timings=()))
    assert loader_verdict(without, None) == (
        "What sets the pace is not known: the loader was not timed."
    )
    beyond = records.plan(global_batch_size=1024, micro_batch_size=1024)
    models = fit_models(records.measurements())
    assert "micro-batches 1 to 768 were timed" in loader_verdict(models, beyond)


def test_memory_names_the_peak_and_what_would_fit() -> None:
    model = fit_models(records.measurements()).memory
    assert model is not None
    largest = model.max_micro_batch(10 * 2**20, 0.1)
    assert memory_sentence(model, 96, 10 * 2**20) == (
        "At micro-batch 96 the peak falls in the backward phase, in relu_backward. A micro-batch of"
        f" {largest:,} would fit 10 MiB with 10 % left free."
    )
    assert "Nothing fits: one example needs" in memory_sentence(model, 96, 2**10)


def test_the_first_step_is_to_train_and_the_last_to_compare() -> None:
    steps = next_steps(records.plan(), records.measurements(), DEMO, trained=False)
    assert steps[0].endswith("`rightbatch train digits --plan demo/plan.toml --run demo/runs/plan`")
    assert "`rightbatch train digits --run demo/runs/recipe && rightbatch report demo`" in steps[-1]
    assert "`rightbatch plan digits --out demo --tune-lr`" in steps[1]
    assert len(steps) == 3


def test_commands_keep_what_the_plan_was_asked_for() -> None:
    asked = ("--objective", "compute", "--target", "accuracy>=0.9")
    plan = records.plan(options=asked, target=Target("accuracy", 0.9))
    steps = next_steps(plan, records.measurements(), DEMO, trained=False)
    again = "`rightbatch plan digits --objective compute --target 'accuracy>=0.9' --out demo --tune-lr`"
    assert again in steps[1]
    assert "`rightbatch train digits --target 'accuracy>=0.9' --run demo/runs/recipe" in steps[2]
    away = records.plan(options=("--device", "cuda:t4", "--modes"), is_derived=True, device="cuda:t4")
    (there,) = next_steps(away, records.measurements(), DEMO, trained=False)
    assert there.endswith("`rightbatch plan digits --modes --out demo --device cuda`")


def test_rates_that_were_tried_at_the_planned_batch_are_not_asked_for_again() -> None:
    plan = records.plan()
    for batch, asked in ((plan.global_batch_size, False), (2 * plan.global_batch_size, True)):
        trial = RateTrial(learning_rate=0.1, losses=(1.0,), diverged=False)
        tuning = RateTuning(
            batch_size=batch, rule_rate=0.1, examples_seen=0, window_examples=batch, trials=(trial,)
        )
        tuned = records.measurements(rate_tunings=(tuning,))
        steps = next_steps(plan, tuned, DEMO, trained=False)
        assert any("--tune-lr" in step for step in steps) == asked


def test_what_carries_the_regret_is_measured_longer_where_that_helps() -> None:
    doubt = Doubt(name="noise scale", share=0.62, measure="measure the noise longer")
    plan = records.plan(doubts=(doubt,))
    steps = next_steps(plan, records.measurements(), DEMO, trained=True)
    assert steps[0].startswith("62 % of the plan's expected regret comes from the noise scale")
    assert steps[0].endswith("`rightbatch plan digits --out demo --time-budget 10m --refresh`")
    trained_only = records.plan(doubts=(doubt.replace(name="calibration"),))
    steps = next_steps(trained_only, records.measurements(), DEMO, trained=True)
    assert not any("--refresh" in step for step in steps)


def test_a_measurement_that_was_cut_short_is_continued_not_repeated() -> None:
    cut = records.measurements(undecided=True, complete=("memory", "loader"))
    steps = next_steps(records.plan(), cut, DEMO, trained=True)
    assert "(speed, noise)" in steps[0]
    assert not any("--refresh" in step for step in steps)
    assert steps[0].endswith("`rightbatch plan digits --out demo --time-budget 10m`")


def test_without_a_plan_the_step_is_to_make_one() -> None:
    steps = next_steps(None, records.measurements(), DEMO, trained=False)
    assert steps == [
        "Finish the measurement and make the plan:"
        " `rightbatch plan digits --out demo --time-budget 10m`"
    ]


def test_after_everything_there_is_still_a_next_step() -> None:
    steps = next_steps(records.plan(), records.measurements(), DEMO, trained=True, compared=True)
    assert len(steps) == 1
    assert "--seed 1`" in steps[0]


def test_todays_recipe_is_not_compared_with_itself() -> None:
    same = records.plan(global_batch_size=32, micro_batch_size=32)
    steps = next_steps(same, records.measurements(), DEMO, trained=False)
    assert not any("today's recipe" in step for step in steps)


def test_names_with_spaces_are_quoted_in_commands() -> None:
    facts = records.task_facts(spec="my tasks/net.py:small")
    measurements = records.measurements(task=facts)
    steps = next_steps(records.plan(), measurements, Path("out dir"), trained=False)
    assert "rightbatch train 'my tasks/net.py:small' --plan 'out dir'/plan.toml" in steps[0]


def history(name: str, batch: int) -> RunHistory:
    run = records.run(name, batch)
    return RunHistory(name=name, global_batch_size=batch, evaluations=run.evaluations, run=run)


def test_two_runs_that_reached_the_target_are_compared_in_time_with_the_prediction() -> None:
    text = comparison_sentence(records.plan(), [history("plan", 96), history("recipe", 32)], FACTS)
    ratio = records.run("plan", 96).seconds / records.run("recipe", 32).seconds
    assert f": {ratio:.2f} of its time, predicted 0.60 (0.54 to 0.72)." in text


def test_runs_to_different_targets_are_not_compared() -> None:
    plan = records.plan(target=Target("accuracy", 0.9))
    runs = [history("plan", 96), history("recipe", 32)]
    assert comparison_sentence(plan, runs, FACTS) == ""
    easier = [
        dataclasses.replace(r, run=r.run and r.run.replace(target=Target("accuracy", 0.9)))
        for r in runs
    ]
    assert " to accuracy >= 0.9, today's recipe " in comparison_sentence(plan, easier, FACTS)


def test_a_run_alone_is_not_compared() -> None:
    assert comparison_sentence(records.plan(), [history("plan", 96)], FACTS) == ""


def test_a_run_of_a_plan_at_todays_batch_is_not_compared_with_itself() -> None:
    same = records.plan(global_batch_size=32, micro_batch_size=32)
    assert comparison_sentence(same, [history("plan", 32)], FACTS) == ""
