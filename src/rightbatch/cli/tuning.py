"""``rightbatch plan --tune-lr`` and ``--check-lr``: trials around the planned rate, with progress."""

from __future__ import annotations

from collections.abc import Iterable

from rightbatch.cli.output import say
from rightbatch.cli.progress import measure_bar
from rightbatch.cli.source import Measuring
from rightbatch.core.plan import Plan
from rightbatch.core.progress import Progress
from rightbatch.core.samples import Measurements, RateTuning
from rightbatch.core.units import parse_seconds
from rightbatch.fit.stability import find_stability
from rightbatch.measure.budget import Budget
from rightbatch.tasks.task import Task


def tune_rate(task: Task, plan: Plan, measurements: Measurements, measuring: Measuring) -> Measurements:
    """Add trials at the planned batch and rate, unless an earlier call has made them.

    They take as long as ``--time-budget`` allows, beside what the measurement took.

    Raises:
        MeasurementError: today's recipe diverges.
    """
    from rightbatch.measure.rates import measure_rates

    rate = next(float(d.value or 0) for d in plan.decisions if d.name == "learning_rate")
    size = plan.global_batch_size
    if any(t.batch_size == size and rate in _rates(t) for t in measurements.rate_tunings):
        say(f"rates around {rate:.3g} at batch {size} were tried already")
        return measurements
    budget = Budget(seconds=parse_seconds(measuring.time_budget))
    trials = measure_rates(task, plan, device=measuring.device, seed=measuring.seed, budget=budget)
    tuning = _last(trials, budget)
    return measurements.replace(rate_tunings=(*measurements.rate_tunings, tuning))


def check_rate(
    task: Task, plan: Plan, measurements: Measurements, measuring: Measuring
) -> Measurements:
    """Add a branch at the planned batch and rate, unless an earlier trial shows what it does.

    Raises:
        MeasurementError: today's recipe diverges.
    """
    from rightbatch.measure.rates import measure_stability

    known = (*measurements.rate_checks, *measurements.rate_tunings)
    size, rate = plan.global_batch_size, plan.learning_rate
    if find_stability(known, size, rate) is not None:
        say(f"rate {rate:.3g} at batch {size} was tried already")
        return measurements
    say(f"training short branches at rate {rate:.3g} and batch {size}")
    budget = Budget(seconds=parse_seconds(measuring.time_budget))
    trials = measure_stability(task, plan, device=measuring.device, seed=measuring.seed, budget=budget)
    return measurements.replace(rate_checks=(*measurements.rate_checks, _last(trials, budget)))


def _last(trials: Iterable[RateTuning], budget: Budget) -> RateTuning:
    """Go through all trials with a progress bar, and return what is known in the end."""
    tuning: RateTuning | None = None
    with measure_bar() as on_progress:
        for tuning in trials:
            if on_progress is not None:
                on_progress(
                    Progress(
                        stage="rates",
                        fraction=min(1.0, budget.elapsed / budget.seconds),
                        seconds_left=max(0.0, budget.left),
                        message=f"{len(tuning.trials)} learning rates",
                    )
                )
    assert tuning is not None
    return tuning


def _rates(tuning: RateTuning) -> list[float]:
    return [trial.learning_rate for trial in tuning.trials]
