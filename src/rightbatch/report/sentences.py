"""What the numbers say, in plain sentences: one wording for the terminal, the report and the README.

Text in, text out; a command stands between backticks.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from rightbatch.core.errors import InfeasibleError
from rightbatch.core.facts import TaskFacts
from rightbatch.core.plan import Interval, Plan
from rightbatch.core.recipe import Target
from rightbatch.core.samples import Measurements
from rightbatch.core.units import format_bytes, format_number, format_seconds
from rightbatch.fit.memory_model import MemoryModel
from rightbatch.fit.models import Models
from rightbatch.fit.noise_scale import NoiseScale
from rightbatch.plan.limits import Limits
from rightbatch.report.history import RunHistory

STAGES = ("memory", "loader", "speed", "noise")
OVERHEAD_SHARE = 0.05  # below this share of an update, loading is not worth a second look


def interval_text(interval: Interval) -> str:
    """A value and its 90 % interval; an open end is said in words, a width of 0 is left out.

    >>> interval_text(Interval(value=0.6123, low=0.48, high=0.7912))
    '0.61 (0.48 to 0.79)'
    >>> interval_text(Interval(value=2.0, low=1.5, high=None))
    '2.0 (1.5 or more)'
    """
    value, low, high = _short(interval.value), interval.low, interval.high
    if low is None and high is None:
        return f"{value} (no interval)"
    if low == high:
        return value
    if low is None or high is None:
        return (
            f"{value} (up to {_short(high or 0)})"
            if low is None
            else f"{value} ({_short(low)} or more)"
        )
    return f"{value} ({_short(low)} to {_short(high)})"


def noise_text(scale: NoiseScale) -> str:
    """A noise scale and its interval, or its lower bound where the data set no upper one."""
    if scale.high is None or scale.noise_scale is None:
        return f"at least {_short(scale.low)}"
    return interval_text(Interval(value=scale.noise_scale, low=scale.low, high=scale.high))


def percent(share: float) -> str:
    """A share in per cent, as far as it is worth reading.

    >>> percent(0.331), percent(0.0123), percent(7e-5), percent(0)
    ('33 %', '1.2 %', 'under 0.1 %', '0 %')
    """
    value = 100 * share
    if 0 < value < 0.1:
        return "under 0.1 %"
    return f"{value:.2g} %" if value < 10 else f"{value:.0f} %"


def goal_text(facts: TaskFacts) -> str:
    """What time is counted to: the target, or the same loss where the task has none."""
    return str(facts.target) if facts.target else "the same loss"


def answer_sentence(plan: Plan | None, facts: TaskFacts) -> str:
    """The answer: what to train with, what it should change, and how wide the choice is."""
    if plan is None:
        return f"{facts.name} was measured but not planned: no batch size is recommended yet."
    step = f"global batch {plan.global_batch_size} = {plan.split}"
    step += f" at learning rate {plan.learning_rate:.3g}"
    recipe = facts.recipe
    new_rate = plan.learning_rate != recipe.lr
    if plan.global_batch_size == recipe.batch_size and (not new_rate or _takes_as_long(plan)):
        step += f" in place of {recipe.lr:.3g}" * new_rate
        kept = "no other batch size scored better" if plan.candidates else "no other was scored"
        return f"Keep today's batch size for {facts.name}: {step}; {kept}{_plateau(plan, facts)}."
    if plan.predicted is None:
        return f"Train {facts.name} with {step}: nothing is predicted for a plan made by hand."
    return f"Train {facts.name} with {step}: {_prediction(plan, facts)}{_plateau(plan, facts)}."


def noise_sentence(scale: NoiseScale | None) -> str:
    """What the gradients say about how many examples one step can usefully average."""
    if scale is None:
        return "The gradient noise scale was not measured."
    size = f"The gradient noise scale is {noise_text(scale)} examples ({scale.num_samples} samples)"
    if not scale.decided:
        return (
            f"{size}: somewhere in the pilot the mean gradient could not be told from zero, so nothing"
            " bounds the scale from above."
        )
    return f"{size}, averaged over the pilot: far more examples than this in one step add little."


def loader_verdict(models: Models, plan: Plan | None) -> str:
    """Whether the loader or the step sets the pace at the planned micro-batch (else at the knee)."""
    loader, speed = models.loader, models.speed
    if loader is None or speed is None:
        missing = "loader" if loader is None else "step"
        return f"What sets the pace is not known: the {missing} was not timed."
    size = plan.micro_batch_size if plan else speed.knee_micro_batch_size
    low, high = speed.valid_range
    if not low <= size <= high:
        return f"What sets the pace at {size} is not known: micro-batches {low} to {high} were timed."
    load, step = loader.load_seconds(size), speed.step_seconds(size)
    rates = f"at micro-batch {size} the loader alone gives {_rate(size / load)}"
    rates += f", forward and backward alone take {_rate(size / step)}"
    if load > step:
        advice = "add workers or make loading cheaper" if loader.overlaps else "raise num_workers"
        return f"The loader sets the pace: {rates}. A larger batch will not help; {advice}."
    if loader.overlaps:
        return f"The loader keeps up, hidden behind the step: {rates}."
    share = load / (load + step)
    advice = "; worker processes would hide it" if share > OVERHEAD_SHARE else ""
    return (
        f"The step sets the pace: {rates}. Loading takes {percent(share)} of the time of both{advice}."
    )


def memory_sentence(model: MemoryModel, micro_batch_size: int, limit_bytes: int) -> str:
    """Where the peak falls, and how large a micro-batch the limit allows."""
    phase, operator = model.peak_at(micro_batch_size)
    text = f"At micro-batch {micro_batch_size:,} the peak falls in the {phase} phase, in {operator}."
    headroom = Limits().headroom
    try:
        largest = model.max_micro_batch(limit_bytes, headroom)
    except InfeasibleError as error:
        return f"{text} Nothing fits: {error.found}."
    more = " or more" if largest == model.valid_range[1] else ""
    return (
        f"{text} A micro-batch of {largest:,}{more} would fit {format_bytes(limit_bytes)}"
        f" with {percent(headroom)} left free."
    )


def comparison_sentence(plan: Plan, runs: Sequence[RunHistory], facts: TaskFacts) -> str:
    """What the plan's run took against a run of today's batch, where both reached the target."""
    target = plan.target or facts.target
    planned, today = (
        next((r for r in runs if r.global_batch_size == batch and _met(r, target)), None)
        for batch in (plan.global_batch_size, facts.recipe.batch_size)
    )
    if planned is None or today is None or planned is today:
        return ""
    took, before = planned.evaluations[-1].seconds, today.evaluations[-1].seconds
    text = (
        f"The plan took {format_seconds(took)} to {target}, today's recipe"
        f" {format_seconds(before)}: {_short(took / before)} of its time"
    )
    predicted = plan.predicted.seconds_to_target_ratio if plan.predicted else None
    return text + (f", predicted {interval_text(predicted)}." if predicted else ".")


def _met(history: RunHistory, target: Target | None) -> bool:
    return history.run is not None and history.run.target_reached and history.run.target == target


def next_steps(
    plan: Plan | None,
    measurements: Measurements,
    folder: Path,
    *,
    trained: bool,
    compared: bool = False,
) -> list[str]:
    """What to do now, most useful first, each ending in the command that does it.

    Args:
        plan: None where none was made.
        measurements: what the plan rests on.
        folder: that holds plan.toml and measurements.json.
        trained: whether a run of the plan lies in the folder already.
        compared: whether a run of today's recipe does.
    """
    task, where = shlex.quote(measurements.task.spec), shlex.quote(str(folder))
    missing = [stage for stage in STAGES if stage not in measurements.complete]
    plan_again = " ".join(["rightbatch plan", task, *_kept_options(plan), "--out", where])
    again = f"{plan_again} --time-budget 10m"
    if plan is None:
        return [f"Finish the measurement and make the plan: `{again}`"]
    if plan.is_derived:
        there = f"{plan_again} --device cuda"
        return [f"Measure on a machine with {plan.device}: `{there}`"]
    steps: list[str] = []
    if not trained:
        train = f"rightbatch train {task} --plan {where}/plan.toml --run {where}/runs/plan"
        steps.append(f"Train with this plan: `{train}`")
        if all(t.batch_size != plan.global_batch_size for t in measurements.rate_tunings):
            tune = f"{plan_again} --tune-lr"
            steps.append(f"Try other learning rates; a rule trusts that today's was tuned: `{tune}`")
    if missing:
        steps.append(f"Measure on where it was cut short ({', '.join(missing)}): `{again}`")
    elif doubt := _least_certain(plan, f"{again} --refresh"):
        steps.append(doubt)
    if not compared and plan.global_batch_size != measurements.task.recipe.batch_size:
        target = f" --target {shlex.quote(plan.target.option)}" if plan.target else ""
        recipe = f"rightbatch train {task}{target} --run {where}/runs/recipe"
        steps.append(f"Train today's recipe too and compare: `{recipe} && rightbatch report {where}`")
    if steps:
        return steps
    again = f"rightbatch train {task} --plan {where}/plan.toml --run {where}/runs/plan-seed-1 --seed 1"
    return [f"One run a side says little; train with another seed: `{again}`"]


def _kept_options(plan: Plan | None) -> list[str]:
    """What a plan was asked for with; that of a device that is not here names the device."""
    options = list(plan.options) if plan else []
    if plan and plan.is_derived and "--device" in options:
        at = options.index("--device")
        del options[at : at + 2]
    return [shlex.quote(option) for option in options]


def _takes_as_long(plan: Plan) -> bool:
    """Whether an update is today's own, so that its ratios are 1 and say nothing of a moved rate."""
    if plan.predicted is None:
        return False
    ratio = plan.predicted.seconds_to_target_ratio
    return all(end is not None and math.isclose(end, 1) for end in (ratio.low, ratio.high))


def _prediction(plan: Plan, facts: TaskFacts) -> str:
    assert plan.predicted is not None
    seconds = plan.predicted.seconds_to_target_ratio
    examples = plan.predicted.examples_to_target_ratio
    undecided = seconds.high is None or (seconds.low or 0) <= 1 <= seconds.high
    fewer = examples.high is not None and examples.high < 1
    more = examples.low is not None and examples.low > 1
    text = f"predicted {interval_text(seconds)} of today's time to {goal_text(facts)}"
    if plan.batch_schedule is not None:
        text = f"with this batch all along {text}"
    if undecided:
        chance = percent(plan.predicted.probability_better)
        text += f", so whether it is sooner is not decided ({chance} likely)"
    if more or (fewer if undecided else seconds.value > 1):
        text += f", for {interval_text(examples)} of its examples"
    return text


def _plateau(plan: Plan, facts: TaskFacts) -> str:
    if plan.plateau is None:
        return ""
    (low, high), within = plan.plateau, percent(plan.tolerance)
    if low == high:
        return f"; no other batch is within {within}"
    today = facts.recipe.batch_size
    inside = low <= today <= high and today != plan.global_batch_size
    also = f", today's {today} included" if inside else ""
    return f"; every batch from {low} to {high} is within {within}{also}"


def _least_certain(plan: Plan, longer: str) -> str:
    """Name what carries most of the expected regret where measuring it longer helps; else say nothing.

    The step from a noise scale to the critical batch size is narrowed by training alone.
    """
    if not plan.doubts or plan.doubts[0].name not in {"noise scale", "step times", "loader"}:
        return ""
    doubt = plan.doubts[0]
    share = f"{percent(doubt.share)} of the plan's expected regret comes from the {doubt.name}"
    return f"{share}; measure it longer: `{longer}`"


def _short(value: float) -> str:
    """Round for a sentence: two digits below 100, whole numbers above.

    >>> _short(0.6), _short(41.37), _short(1234.5), _short(0)
    ('0.60', '41', '1,234', '0')
    """
    if not value:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 99.5 else f"{value:#.2g}".rstrip(".")


def _rate(examples_per_second: float) -> str:
    return f"{format_number(float(f'{examples_per_second:.3g}'))} examples/s"
