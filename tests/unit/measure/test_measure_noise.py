"""Noise along a pilot: where it looks, what it keeps, when it ends."""

import time
from typing import Any

import pytest
import torch

import known
import tiny
from rightbatch.core.errors import InvalidInputError, MeasurementError
from rightbatch.core.recipe import Target
from rightbatch.measure import noise
from rightbatch.measure.budget import Budget
from rightbatch.measure.noise import (
    ENOUGH_SAMPLES,
    MAX_SAMPLES,
    MIN_SAMPLES,
    NoiseSamples,
    measure_noise,
    measure_noise_updates,
)
from rightbatch.tasks.task import Loss, Task


def run(
    task: Task, samples: NoiseSamples | None = None, seconds: float = 60.0
) -> tuple[NoiseSamples, list[str]]:
    samples = samples or NoiseSamples()
    return samples, list(
        measure_noise(task, samples, device="cpu", budget=Budget(seconds=seconds), seed=0)
    )


def two_targets(model: Any, batch: Any) -> Loss:
    """The squared error as if every example held two targets."""
    return Loss(2 * tiny.squared_error(model, batch).total, 2 * len(batch[0]))


def recipe(**changes: Any) -> Any:
    return tiny.task().recipe.replace(**changes)


def test_points_lie_evenly_in_the_logarithm_up_to_the_whole_run() -> None:
    samples, messages = run(tiny.task(recipe=recipe(epochs=8)))
    before, *seen = [point.examples_seen for point in samples.points]
    assert before == 0  # where the target is looked at before any training
    assert seen == [72, 96, 136, 192, 272, 384]  # 384 over powers of sqrt(2), from 8 updates on
    assert len(messages) == 6
    for point in seen:
        taken = [s for s in samples.gradients if s.examples_seen == point]
        assert MIN_SAMPLES <= len(taken) <= MAX_SAMPLES
    assert all(point.metrics.keys() == {"mse"} for point in samples.points)
    assert samples.points[0].loss is None
    assert samples.points[-1].loss < samples.points[1].loss
    assert not samples.cut


def test_a_run_too_short_for_that_has_one_point_at_its_end() -> None:
    samples, _ = run(tiny.task(recipe=recipe(epochs=0.5)))
    assert [point.examples_seen for point in samples.points] == [0, 24]


def test_the_target_ends_the_pilot() -> None:
    samples, _ = run(tiny.task(target=Target("mse", 1e9, higher_is_better=False)))
    assert len(samples.points) == 2  # before training, and after some
    assert not samples.cut


def test_training_that_time_cuts_short_is_told_even_where_some_time_is_left() -> None:
    def slow(*arguments: Any) -> Any:
        time.sleep(1e-3)
        return tiny.squared_error(*arguments)

    budget = Budget(seconds=0.5)
    samples = NoiseSamples()
    task = tiny.task(loss=slow, recipe=recipe(epochs=500))
    list(measure_noise(task, samples, device="cpu", budget=budget))
    assert samples.points[-1].examples_seen < 500 * 48
    assert samples.cut


def test_training_time_that_ends_on_a_point_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, update = [0.0], noise.Pilot.update

    def timed(pilot: noise.Pilot) -> None:
        update(pilot)
        seconds[0] += 1.0

    monkeypatch.setattr(noise.Pilot, "update", timed)
    samples, budget = NoiseSamples(), Budget(seconds=17.0, clock=lambda: seconds[0])  # 7.65 to train in
    list(measure_noise(tiny.task(recipe=recipe(epochs=8)), samples, device="cpu", budget=budget))
    assert [point.examples_seen for point in samples.points] == [0, 72]  # a warm-up and 8 updates
    assert samples.cut


def test_a_task_without_a_target_is_not_evaluated() -> None:
    def evaluate(*_: Any) -> dict[str, float]:
        raise AssertionError("evaluated")

    samples, _ = run(tiny.task(target=None, evaluate=evaluate))
    assert all(point.metrics == {} for point in samples.points)


@pytest.mark.parametrize("seconds", [1e-9, 0.0])
def test_a_spent_budget_leaves_one_point_with_the_fewest_samples(seconds: float) -> None:
    samples, _ = run(tiny.task(), seconds=seconds)
    assert len(samples.points) == 2
    assert len(samples.gradients) == MIN_SAMPLES
    assert samples.points[1].examples_seen == 16  # the warm-up and one more
    assert samples.cut


def test_points_already_there_are_passed_through_on_the_same_path() -> None:
    task = tiny.task(recipe=recipe(epochs=8))
    whole, _ = run(task)
    cut = NoiseSamples([s for s in whole.gradients if s.examples_seen <= 136], list(whole.points[:4]))
    kept = list(cut.gradients)
    again, messages = run(task, cut)
    assert len(messages) == 3
    assert again.gradients[: len(kept)] == kept
    assert [p.examples_seen for p in again.points] == [p.examples_seen for p in whole.points]
    assert again.points[-1].metrics == pytest.approx(whole.points[-1].metrics)


def test_looking_does_not_change_the_pilot() -> None:
    task = tiny.task(model=tiny.batch_norm, recipe=recipe(epochs=8))
    samples, _ = run(task)
    only_last = NoiseSamples([], list(samples.points[:-1]))
    run(task, only_last)
    assert only_last.points[-1].metrics == pytest.approx(samples.points[-1].metrics)


def test_an_adaptive_optimizer_gives_preconditioned_norms_too() -> None:
    adam, _ = run(tiny.task(recipe=recipe(optimizer="adamw")))
    sgd, _ = run(tiny.task())
    assert all(s.preconditioned_big_sq_norm is not None for s in adam.gradients)
    assert all(s.preconditioned_big_sq_norm is None for s in sgd.gradients)


@pytest.mark.parametrize("plain_is", [1e-3, 1e3])
def test_the_next_point_is_sized_by_the_noise_that_the_optimizer_sees(
    monkeypatch: pytest.MonkeyPatch, plain_is: float
) -> None:
    # Preconditioned scale 102, whatever the plain one: at micro-batches of 8 that asks for 25 groups.
    sample = known.sample(1.0, plain_is, small=8, big=64).replace(
        preconditioned_small_sq_norm=1 + 102 / 8, preconditioned_big_sq_norm=1 + 102 / 64
    )
    sizes: list[int] = []

    def take(_: Any, __: Any, groups: list[Any], **given: Any) -> Any:
        sizes.append(len(groups))
        return sample.replace(examples_seen=given["examples_seen"])

    monkeypatch.setattr(noise, "sample_gradients", take)
    run(tiny.task(recipe=recipe(optimizer="adamw")))
    assert set(sizes[ENOUGH_SAMPLES:]) == {25}


def test_samples_say_how_they_were_taken() -> None:
    samples, _ = run(tiny.task(loss=two_targets))
    for sample in samples.gradients:
        assert (sample.source, sample.coupling, sample.targets_per_example) == ("groups", None, 2.0)
        assert sample.num_small_batches == sample.big_batch_size / sample.small_batch_size
        assert sample.seconds is not None
        assert 0 < sample.seconds < 60


def test_updates_are_reproducible_and_follow_the_seed() -> None:
    first, again = (measure_noise_updates(tiny.task(), updates=4, batch_size=16) for _ in range(2))
    other = measure_noise_updates(tiny.task(), updates=4, batch_size=16, seed=1)
    assert first == again
    assert other != first
    assert (first.num_samples, first.examples_seen) == (4, 48)


def test_updates_train() -> None:
    slow = measure_noise_updates(tiny.task(recipe=recipe(lr=1e-9)), updates=40, batch_size=16)
    fast = measure_noise_updates(tiny.task(recipe=recipe(lr=0.1)), updates=40, batch_size=16)
    assert fast.grad_sq_norm < 0.2 * slow.grad_sq_norm


@pytest.mark.parametrize(("model", "batch_size"), [(tiny.linear, 1), (tiny.batch_norm, 3)])
def test_a_batch_too_small_to_split_is_refused(model: Any, batch_size: int) -> None:
    with pytest.raises(InvalidInputError, match=f"batch_size {batch_size}; need at least 2 groups"):
        measure_noise_updates(tiny.task(model=model), updates=4, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [4, 8, 15])
def test_batch_norm_is_never_given_a_lone_example(batch_size: int) -> None:
    task = tiny.task(model=tiny.batch_norm)
    assert measure_noise_updates(task, updates=3, batch_size=batch_size).num_samples == 3


def test_too_few_updates_are_refused() -> None:
    with pytest.raises(MeasurementError, match="2 gradient sample"):
        measure_noise_updates(tiny.task(), updates=2, batch_size=8)


def test_the_callers_random_numbers_do_not_matter() -> None:
    torch.manual_seed(1)
    first = measure_noise_updates(tiny.task(), updates=3, batch_size=8)
    torch.manual_seed(2)
    assert measure_noise_updates(tiny.task(), updates=3, batch_size=8) == first
