"""Records are frozen and closed, and say what is wrong with a value in three parts."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import known
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import LoaderOptions, Recipe, Target
from rightbatch.core.record import locate
from rightbatch.core.run import Evaluation, Outcome, Run
from rightbatch.core.samples import Measurements


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {"lr": 0.1, "batch_size": 8, "epochs": 1}
    return Recipe(**(values | changes))


def test_a_record_is_frozen_and_hashable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        recipe().lr = 0.2  # type: ignore[misc]
    assert hash(recipe()) == hash(recipe())


def test_replace_validates_like_a_new_record() -> None:
    assert recipe().replace(lr=0.2).lr == 0.2
    with pytest.raises(InvalidInputError, match="lr = -1"):
        recipe().replace(lr=-1)


def test_unknown_key_is_refused_with_the_closest_one() -> None:
    with pytest.raises(
        InvalidInputError, match=r"unknown key `batchsize`.*\n.*did you mean `batch_size`"
    ):
        recipe(batchsize=8)


def test_unknown_key_inside_a_record_is_named_among_the_inner_fields() -> None:
    values = known.measurements().model_dump()
    values["environment"]["num_thread"] = 1
    with pytest.raises(InvalidInputError, match=r"unknown key `num_thread`.*\n.*`num_threads`"):
        Measurements(**values)


def test_unknown_key_of_a_target_is_refused_from_a_file_too() -> None:
    values = known.measurements().model_dump()
    values["task"]["target"]["higher"] = True
    with pytest.raises(InvalidInputError, match="unknown key `higher`"):
        Measurements(**values)


def test_missing_key_says_what_to_add() -> None:
    with pytest.raises(InvalidInputError, match=r"no `lr`.*need `lr` in Recipe") as caught:
        Recipe(batch_size=8, epochs=1)  # pyright: ignore[reportCallIssue]
    assert caught.value.hint == "add lr = ..."


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"lr": 0}, "lr = 0"),
        ({"lr": float("inf")}, "lr = inf"),
        ({"lr": float("nan")}, "lr = nan"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"batch_size": 1.5}, "batch_size = 1.5"),
        ({"batch_size": "8"}, "batch_size = '8'"),
        ({"batch_size": True}, "batch_size = True"),
        ({"lr": "0.1"}, "lr = '0.1'"),
        ({"momentum": 1.0}, "momentum = 1.0"),
        ({"betas": (0.9, 1.0)}, "betas.1 = 1.0"),
        ({"schedule": "stairs"}, "schedule = 'stairs'"),
        ({"warmup_examples": -1}, "warmup_examples = -1"),
    ],
)
def test_impossible_value_is_shown_as_it_was_given(changes: dict[str, Any], found: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        recipe(**changes)
    assert caught.value.found == found
    assert caught.value.need
    assert locate(caught.value) == next(iter(changes))


def test_further_complaints_are_counted() -> None:
    with pytest.raises(InvalidInputError, match=r"\(and 1 more\)"):
        recipe(lr=-1, batch_size=0)


def test_locate_of_an_error_without_a_key_is_none() -> None:
    assert locate(InvalidInputError("found", "need", "hint")) is None


def test_two_lengths_or_none_are_refused() -> None:
    for length in ({"epochs": None}, {"steps": 5}):
        with pytest.raises(InvalidInputError, match=r"exactly one of the two"):
            recipe(**length)


def test_options_of_workers_without_workers_are_refused() -> None:
    every: tuple[dict[str, Any], ...] = ({"prefetch_factor": 2}, {"persistent_workers": True})
    for options in every:
        with pytest.raises(InvalidInputError, match="with num_workers = 0; need num_workers >= 1"):
            LoaderOptions(**options)


def test_target_reads_by_position_and_knows_its_direction() -> None:
    best, least = Target("accuracy", 0.9), Target("loss", 0.1, higher_is_better=False)
    assert (best.is_reached(0.9), best.is_reached(0.89)) == (True, False)
    assert (least.is_reached(0.1), least.is_reached(0.11)) == (True, False)
    assert (str(best), str(least)) == ("accuracy >= 0.9", "loss <= 0.1")


def test_an_optimizer_factory_is_saved_by_name() -> None:
    assert recipe(optimizer=known.facts).model_dump()["optimizer"] == "known:facts"
    assert recipe(optimizer=known.facts).optimizer_name == "known:facts"
    assert recipe(optimizer="sgd").optimizer_name == "sgd"


def test_a_run_of_epochs_counts_examples_and_a_run_of_steps_counts_short_updates() -> None:
    assert recipe(epochs=2.5).total_examples(32, 100) == 250
    assert recipe(epochs=0.001).total_examples(32, 100) == 1
    by_steps = recipe(epochs=None, steps=5)
    assert by_steps.total_examples(32, 128) == 160
    assert by_steps.total_examples(32, 80) == 80 + 64  # 32, 32, 16, then 32, 32
    assert by_steps.total_examples(100, 80) == 5 * 80


def test_a_target_without_its_value_is_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match=r"no `value`.*need `value` in Target"):
        Target("accuracy")
    values = Plan.from_recipe(recipe()).model_dump() | {"target": {"metric": "accuracy"}}
    with pytest.raises(InvalidInputError, match="need `value` in Target"):
        Plan(**values)


def test_loader_options_and_runs_pickle() -> None:
    record = Run(
        task="t",
        outcome=Outcome.FINISHED,
        message="",
        seed=0,
        global_batch_size=8,
        examples=8,
        updates=1,
        seconds=0.1,
        target=Target("accuracy", 0.9),
        evaluations=(
            Evaluation(examples=8, updates=1, seconds=0.1, train_loss=1, metrics={"accuracy": 0.5}),
        ),
        run_dir=Path("runs"),
    )
    assert pickle.loads(pickle.dumps(record)) == record
    assert record.metrics == {"accuracy": 0.5}
    assert not record.target_reached
    assert record.replace(evaluations=()).metrics == {}
    assert pickle.loads(pickle.dumps(LoaderOptions())) == LoaderOptions()


def test_no_passes_are_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="accumulation_steps = 0"):
        Plan.from_recipe(recipe(), accumulation_steps=0)


def test_factors_that_do_not_multiply_are_refused_with_their_product() -> None:
    with pytest.raises(
        InvalidInputError, match=r"global_batch_size = 32, but micro 8 x accumulation 2"
    ):
        Plan.from_recipe(recipe(batch_size=32), micro_batch_size=8, accumulation_steps=2)


def test_a_plan_from_a_recipe_changes_only_what_is_named() -> None:
    today = recipe(batch_size=32, momentum=0.9, optimizer="sgd", warmup_examples=10)
    plan = Plan.from_recipe(today, task="t", accumulation_steps=4)
    assert (plan.micro_batch_size, plan.accumulation_steps, plan.learning_rate) == (8, 4, 0.1)
    assert (plan.momentum, plan.warmup_examples, plan.objective) == (0.9, 10, None)
    assert plan.split == "micro 8 x accumulation 4 x replicas 1"
