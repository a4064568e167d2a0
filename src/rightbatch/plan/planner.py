"""From measurements to a plan: what fits, what each batch costs, the least regretted choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rightbatch.core.devices import parse_accelerator
from rightbatch.core.errors import InfeasibleError, MeasurementError
from rightbatch.core.facts import TaskFacts
from rightbatch.core.plan import Candidate, Doubt, Guard, Interval, Objective, Plan, Prediction
from rightbatch.core.recipe import Constants
from rightbatch.core.samples import Measurements
from rightbatch.fit.models import fit_models
from rightbatch.fit.stability import find_stability
from rightbatch.plan.batch_schedule import propose_schedule
from rightbatch.plan.candidates import Candidates, Mode, enumerate_candidates
from rightbatch.plan.choose import Choice, choose
from rightbatch.plan.constraints import allowed, make_constraints, memory_option, peak_bytes
from rightbatch.plan.decide import Chosen, decide
from rightbatch.plan.doubts import find_doubts
from rightbatch.plan.draws import Draws
from rightbatch.plan.fitted import Fitted, fit_all, split_today
from rightbatch.plan.guarded import Situation
from rightbatch.plan.guards import find_guards
from rightbatch.plan.inputs import check_measurements, check_target, reached_after, until_target
from rightbatch.plan.lengths import Length, decide_length
from rightbatch.plan.limits import Limits
from rightbatch.plan.modes import decide_modes
from rightbatch.plan.score import Scores, interval, on_front, score
from rightbatch.plan.wishes import NO_WISHES, Wishes, check_wishes

_ROUNDING = 1e-9  # today's own update takes 1 of its time, give or take so much


def make_plan(
    facts: TaskFacts,
    measurements: Measurements,
    objective: Objective = "balanced",
    limits: Limits | None = None,
    *,
    wishes: Wishes | None = None,
) -> Plan:
    """Choose the global batch that minimises expected regret, and move the constants with it.

    Today's batch is kept where it is within 5 % of that one, in the objective and in seconds.

    Every candidate is scored under 1000 draws from the intervals of the fitted models; the same
    measurements always give the same plan. Every constant is moved by its own rule.

    Args:
        facts: the task, with the target that counts.
        measurements: with samples of all four stages.
        objective: ``time`` to the target, ``compute`` for the fewest examples, ``balanced`` between
            the two, ``accuracy`` for the smallest batch within ``limits.slowdown``.
        limits: on memory, batch size, devices and time; None is the device's memory and the data.
        wishes: what else is wanted.

    Raises:
        InvalidInputError: the wishes contradict each other, or a sample is impossible.
        MeasurementError: a stage left no samples.
        InfeasibleError: no batch size satisfies the limits.
    """
    limits, wishes = limits or Limits(), wishes or NO_WISHES
    check_wishes(objective, limits, wishes.batch_schedule)
    check_measurements(measurements)
    check_target(facts, measurements)
    own_target = measurements.task.target
    measurements = _on_device(until_target(facts, measurements).replace(task=facts), wishes)
    models = fit_models(measurements)
    fitted = fit_all(measurements, models, limits, wishes)
    candidates = _candidates(measurements, fitted, limits)
    now = split_today(facts, fitted.modes[0])
    today = Candidates.of([now])
    scores = score(candidates, today, fitted.update_seconds, fitted.draws, objective)
    choice = choose(scores, objective, slowdown=limits.slowdown, today=facts.recipe.batch_size)
    table = _table(scores, fitted, facts)
    mode = fitted.modes[fitted.mode_of(table[choice.index])]
    chosen = Chosen(
        candidate=table[choice.index],
        plateau=(table[choice.first].global_batch_size, table[choice.last].global_batch_size),
        tolerance=choice.tolerance,
        objective=objective,
        speed=mode.speed,
        loader=fitted.loader,
        steps=fitted.steps,
        link=fitted.link,
        limits=limits,
        modes=decide_modes(table[choice.index], candidates, fitted) if wishes.modes else (),
        is_derived=fitted.is_derived,
        today_passes=now.accumulation_steps,
    )
    grows = wishes.batch_schedule is not None
    length = decide_length(chosen.candidate, facts, limits, batch_grows=grows)
    decisions, changes = decide(chosen, length, measurements)
    growth = propose_schedule(
        wishes.batch_schedule,
        chosen,
        table,
        models.noise_points,
        facts,
        length.total_examples,
        warmup=int(changes["warmup_examples"]),
    )
    shared = {name: getattr(facts.recipe, name) for name in Constants.model_fields}
    return Plan(
        **(shared | changes),
        task=facts.name,
        spec=facts.spec,
        target=None if facts.target == own_target else facts.target,
        objective=objective,
        device=measurements.environment.device,
        is_derived=fitted.is_derived,
        batch_schedule=growth.schedule,
        decisions=(*decisions, growth.decision),
        plateau=chosen.plateau,
        tolerance=choice.tolerance,
        predicted=Prediction(
            seconds_to_target_ratio=chosen.candidate.seconds_ratio,
            examples_to_target_ratio=chosen.candidate.examples_ratio,
            probability_better=float((scores.seconds[choice.index] < 1 - _ROUNDING).mean()),
        ),
        candidates=tuple(table),
        memory_limit_bytes=limits.memory_limit_bytes or measurements.environment.memory_bytes,
        notes=measurements.notes,
        guards=_guards(
            chosen,
            table,
            measurements,
            mode=mode,
            length=length,
            rate=float(changes["learning_rate"]),
            fine_tuning=wishes.fine_tuning,
            schedule_ratio=growth.ratio,
        ),
        doubts=_doubts(choice, scores, today, fitted, facts, objective),
    )


def _on_device(measurements: Measurements, wishes: Wishes) -> Measurements:
    """Put the device that is planned for in the place of the one that measured.

    Raises:
        InvalidInputError: no accelerator of the catalogue has this name.
    """
    if wishes.device is None:
        return measurements
    accelerator = parse_accelerator(wishes.device)
    environment = measurements.environment.replace(
        device=accelerator.name,
        device_name=accelerator.title,
        memory_bytes=accelerator.memory_bytes,
    )
    return measurements.replace(environment=environment)


def _candidates(measurements: Measurements, fitted: Fitted, limits: Limits) -> Candidates:
    """Everything within the limits.

    Raises:
        InfeasibleError: nothing is.
        MeasurementError: every timed micro-batch is larger than the data.
    """
    facts = measurements.task
    found = enumerate_candidates(
        fitted.modes,
        largest_global=facts.num_train_examples,
        today=facts.recipe.batch_size,
        num_replicas=limits.num_replicas,
    )
    if not len(found):
        low = fitted.modes[0].speed.valid_range[0]
        what = f"{facts.num_train_examples} training examples, and {low} in the smallest timed step"
        hint = "measure again with --refresh"
        raise MeasurementError(what, need="a timed micro-batch no larger than the data", hint=hint)
    device = measurements.environment.memory_bytes
    _check_one_example(fitted.modes, limits.memory_limit_bytes or device, limits.headroom)
    constraints = make_constraints(
        found,
        facts,
        limits,
        peaks=peak_bytes(found, fitted.modes, facts, upper=True),
        seconds=fitted.central_seconds(found),
        device_bytes=device,
    )
    return found.take(allowed(constraints))


def _check_one_example(modes: Sequence[Mode], limit_bytes: int, headroom: float) -> None:
    """Say at once where not even one example fits in any mode, and which bytes take the room.

    Raises:
        InfeasibleError: as said, of the mode that needs least.
    """
    least = min((mode.memory for mode in modes), key=lambda memory: memory.high_bytes(1))
    try:
        least.max_micro_batch(limit_bytes, headroom)
    except InfeasibleError as error:
        option = memory_option(least.high_bytes(1), headroom)
        hint = option + error.hint.removeprefix("raise the limit")
        raise InfeasibleError(error.found, need=error.need, hint=hint) from error


def _table(scores: Scores, fitted: Fitted, facts: TaskFacts) -> list[Candidate]:
    found, regret = scores.candidates, scores.regret
    seconds = fitted.central_seconds(found)
    peaks = peak_bytes(found, fitted.modes, facts)
    front = on_front(np.median(scores.seconds, axis=1), np.median(scores.examples, axis=1))
    rows: list[Candidate] = []
    for i in range(len(found)):
        split = found.split(i)
        mode = fitted.modes[split.mode]
        rows.append(
            Candidate(
                global_batch_size=split.global_batch_size,
                micro_batch_size=split.micro_batch_size,
                accumulation_steps=split.accumulation_steps,
                num_replicas=split.num_replicas,
                precision=mode.precision,
                checkpointing=mode.checkpointing,
                update_seconds=float(seconds[i]),
                peak_bytes=int(peaks[i]),
                examples_ratio=interval(scores.examples[i]),
                seconds_ratio=interval(scores.seconds[i]),
                regret=float(regret[i]),
                on_front=front[i],
            )
        )
    return rows


def _doubts(
    choice: Choice,
    scores: Scores,
    today: Candidates,
    fitted: Fitted,
    facts: TaskFacts,
    objective: Objective,
) -> tuple[Doubt, ...]:
    """What carries the expected regret; nothing for objectives that do not minimise it."""
    if objective not in {"time", "balanced"}:
        return ()

    def regret_of(draws: Draws) -> float:
        again = score(scores.candidates, today, fitted.update_seconds, draws, objective)
        return float(again.regret[choice.index])

    return find_doubts(regret_of, fitted.draws, facts)


def _guards(
    chosen: Chosen,
    table: list[Candidate],
    measurements: Measurements,
    *,
    mode: Mode,
    length: Length,
    rate: float,
    fine_tuning: bool,
    schedule_ratio: Interval | None,
) -> tuple[Guard, ...]:
    limits, facts = chosen.limits, measurements.task
    memory = limits.memory_limit_bytes or measurements.environment.memory_bytes
    sparse = [s.positives.positives_per_example for s in measurements.gradients if s.positives]
    return find_guards(
        Situation(
            chosen=chosen.candidate,
            candidates=table,
            facts=facts,
            environment=measurements.environment,
            speed=chosen.speed,
            loader=chosen.loader,
            steps=chosen.steps,
            objective=chosen.objective,
            num_updates=length.num_updates,
            rate=rate,
            stability=find_stability(
                (*measurements.rate_checks, *measurements.rate_tunings),
                chosen.candidate.global_batch_size,
                rate,
            ),
            is_derived=chosen.is_derived,
            largest_micro_that_fits=mode.memory.max_micro_batch(memory, limits.headroom),
            usable_bytes=int(memory * (1 - limits.headroom)),
            positives_per_example=sum(sparse) / len(sparse) if sparse else None,
            fine_tuning=fine_tuning,
            today_passes=chosen.today_passes,
            run_examples=None if limits.training_seconds else length.total_examples,
            target_examples=reached_after(facts.target, measurements),
            schedule_ratio=schedule_ratio,
            signal=measurements.signal,
        )
    )
