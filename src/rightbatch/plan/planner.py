"""From measurements to a plan: what fits, what each batch costs, the least regretted choice."""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch.core.errors import InfeasibleError, MeasurementError
from rightbatch.core.facts import TaskFacts
from rightbatch.core.plan import Candidate, Objective, Plan, Prediction
from rightbatch.core.recipe import Constants
from rightbatch.core.samples import Measurements
from rightbatch.core.units import format_number
from rightbatch.fit.loader_model import LoaderModel
from rightbatch.fit.memory_model import MemoryModel
from rightbatch.fit.models import fit_models
from rightbatch.fit.speed_model import SpeedModel
from rightbatch.fit.steps_model import StepsModel
from rightbatch.plan.candidates import (
    Split,
    largest_micro_batch,
    quickest_splits,
    splits,
    update_seconds,
)
from rightbatch.plan.decide import Chosen, decide
from rightbatch.plan.limits import Limits
from rightbatch.plan.score import PLATEAU, Scores, interval, score


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fitted:
    """The four models a plan cannot do without."""

    memory: MemoryModel
    speed: SpeedModel
    loader: LoaderModel
    steps: StepsModel


def make_plan(
    facts: TaskFacts,
    measurements: Measurements,
    objective: Objective = "balanced",
    limits: Limits | None = None,
) -> Plan:
    """Choose the global batch that minimises expected regret, and move the constants with it.

    Today's batch is kept where it is within 5 % of that one, in the objective and in seconds.

    Every candidate is scored under 1000 draws from the intervals of the fitted models; the same
    measurements always give the same plan. The learning rate is moved by the optimizer's rule.

    Args:
        facts: the task.
        measurements: with samples of all four stages.
        objective: ``time`` to the target, or ``balanced`` between time and examples.
        limits: on memory and batch size; None is the device's memory and the data's size.

    Raises:
        MeasurementError: a stage left no samples.
        InfeasibleError: no batch size satisfies the limits.
    """
    limits = limits or Limits()
    fitted = _require(measurements)
    today = _today(facts, fitted.speed)
    candidates = _candidates(facts, measurements, fitted, limits)
    scores = score(
        candidates,
        today,
        speed=fitted.speed,
        loader=fitted.loader,
        steps=fitted.steps,
        objective=objective,
    )
    first, last = scores.plateau()
    table = _table(candidates, scores, fitted)
    plateau = range(first, last + 1)
    sizes = [split.global_batch_size for split in candidates]
    best = scores.best
    if (
        table[best].seconds_ratio.value * PLATEAU > 1
    ):  # a change that brings less than 5 % is not worth it
        best = next((i for i in plateau if sizes[i] == facts.recipe.batch_size), best)
    chosen = Chosen(candidate=table[best], plateau=(sizes[first], sizes[last]), objective=objective)
    decisions, changes = decide(
        chosen, measurements, fitted.speed, fitted.loader, fitted.steps, limits=limits
    )
    shared = {name: getattr(facts.recipe, name) for name in Constants.model_fields}
    return Plan(
        **(shared | changes),
        task=facts.name,
        objective=objective,
        decisions=decisions,
        plateau=chosen.plateau,
        predicted=Prediction(
            seconds_to_target_ratio=chosen.candidate.seconds_ratio,
            examples_to_target_ratio=chosen.candidate.examples_ratio,
            probability_better=float((scores.seconds[:, best] < 1).mean()),
        ),
        candidates=tuple(table),
        memory_limit_bytes=limits.memory_limit_bytes or measurements.environment.memory_bytes,
        notes=_notes(chosen.candidate, facts, measurements, fitted),
    )


def _require(measurements: Measurements) -> _Fitted:
    models = fit_models(measurements)
    if models.memory and models.speed and models.loader and models.steps:
        return _Fitted(
            memory=models.memory, speed=models.speed, loader=models.loader, steps=models.steps
        )
    stages = {
        "memory": models.memory,
        "loader": models.loader,
        "speed": models.speed,
        "noise": models.steps,
    }
    missing = ", ".join(stage for stage, model in stages.items() if model is None)
    hint = "run `rightbatch plan TASK` again with a longer --time-budget: it goes on where it ended"
    raise MeasurementError(
        f"no usable samples of {missing}", need="samples of all four stages", hint=hint
    )


def _today(facts: TaskFacts, speed: SpeedModel) -> Split:
    """Today's batch, in one piece where that was timed, else in the largest equal pieces that were.

    Raises:
        MeasurementError: no equal split of it lies in the timed range.
    """
    low, high = speed.valid_range
    split = next(splits(facts.recipe.batch_size, low, high), None)
    if split is None:
        found = f"no equal split of today's batch of {facts.recipe.batch_size}"
        hint = "give the measurement more time: --time-budget"
        raise MeasurementError(
            found, need=f"micro-batches from {low} to {high}, the timed sizes", hint=hint
        )
    return split


def _candidates(
    facts: TaskFacts, measurements: Measurements, fitted: _Fitted, limits: Limits
) -> list[Split]:
    largest_global = min(limits.max_batch_size or facts.num_train_examples, facts.num_train_examples)
    largest_micro = largest_micro_batch(measurements, fitted.memory, fitted.speed, limits)
    found = quickest_splits(
        fitted.speed,
        fitted.loader,
        largest_micro=largest_micro,
        largest_global=largest_global,
        today=facts.recipe.batch_size,
    )
    if facts.num_batch_norm_layers:
        found = [s for s in found if not s.leaves_one_alone(facts.num_train_examples)]
    if not found:
        smallest = fitted.speed.valid_range[0]
        what = f"a largest batch of {largest_global} and a largest micro-batch of {largest_micro}"
        need = f"room for a micro-batch of {smallest}, the smallest that was timed"
        if facts.num_batch_norm_layers:
            need += ", that leaves BatchNorm no lone example at the end of an epoch"
        raise InfeasibleError(what, need=need, hint="raise --max-batch or --memory-limit")
    return found


def _table(candidates: list[Split], scores: Scores, fitted: _Fitted) -> list[Candidate]:
    regret = scores.regret
    return [
        Candidate(
            global_batch_size=split.global_batch_size,
            micro_batch_size=split.micro_batch_size,
            accumulation_steps=split.accumulation_steps,
            update_seconds=float(
                update_seconds(
                    split,
                    fitted.speed.step_seconds(split.micro_batch_size),
                    fitted.speed.optimizer_seconds,
                    fitted.loader,
                )
            ),
            peak_bytes=fitted.memory.peak_bytes(split.micro_batch_size),
            examples_ratio=interval(scores.examples[:, i]),
            seconds_ratio=interval(scores.seconds[:, i]),
            regret=float(regret[i]),
        )
        for i, split in enumerate(candidates)
    ]


def _notes(
    chosen: Candidate, facts: TaskFacts, measurements: Measurements, fitted: _Fitted
) -> tuple[str, ...]:
    """What a reader should know beside the answer."""
    notes = list(measurements.notes)
    steps = fitted.steps
    if not steps.decided:
        notes.append(
            f"The noise scale is only bounded from below ({format_number(round(steps.noise.low))}"
            " examples): critical batch sizes up to"
            f" {format_number(round(steps.high))} were allowed for."
        )
    if chosen.global_batch_size > steps.critical_batch_size:
        notes.append(
            "The batch lies above the critical batch size of about"
            f" {format_number(round(steps.critical_batch_size))} examples, where learning-rate rules"
            " are least reliable: compare with half of it before a long run."
        )
    if facts.optimizer_family == "other":
        notes.append(
            f"No rule is known for {facts.optimizer_class}: its learning rate is kept as it is."
        )
    return tuple(notes)
