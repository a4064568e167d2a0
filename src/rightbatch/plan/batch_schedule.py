"""A batch that grows during the run: where it changes, and what that is predicted to bring.

The noise scale grows while a network trains, so a small batch wastes least early and a large one
late. McCandlish et al. (2018), App. D: with the noise scale at every point of the run,
updates = sum (1 + noise / B) and examples = sum (noise + B) over equal progress, for any B along it.
The pilot's noise scales give that progress; beyond the pilot its last value is held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.facts import TaskFacts
from rightbatch.core.plan import BatchSchedule, BatchScheduleKind, Candidate, Decision, Interval
from rightbatch.core.recipe import Recipe
from rightbatch.fit.intervals import NORMAL_QUANTILE
from rightbatch.fit.noise_scale import NoiseScale
from rightbatch.plan.candidates import Floats
from rightbatch.plan.decide import Chosen
from rightbatch.plan.draws import NUM_DRAWS, SEED
from rightbatch.plan.scaling import RATE_POWERS
from rightbatch.plan.score import interval

STAGES = 3  # doublings from the first batch to the plan's
GROWING_SHARE = 0.5  # of the run, over which linear and exponential schedules grow
PARTS = 16  # of the stretch between two points of the pilot, in which the batch may change
WORTH_IT = 0.95  # a schedule is proposed where even the upper end of its ratio is below this
_SOURCES: dict[BatchScheduleKind, str] = {
    "linear": "gray2024",
    "exponential": "devarakonda2017",
    "milestones": "mccandlish2018",
    "seesaw": "meterez2025",
    "noise": "merrill2025",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A schedule or none, and the decision that says why."""

    schedule: BatchSchedule | None
    decision: Decision
    ratio: Interval | None = None
    """Time with the schedule over that with the plan's batch alone; None where it is not predicted."""


def propose_schedule(
    kind: BatchScheduleKind | None,
    chosen: Chosen,
    candidates: Sequence[Candidate],
    noise: Sequence[NoiseScale],
    facts: TaskFacts,
    total_examples: int,
    *,
    warmup: int = 0,
) -> Proposal:
    """Build the schedule that was asked for, or say whether one would pay.

    Args:
        kind: None keeps one batch, and proposes ``milestones`` where they would clearly be quicker.
        chosen: the plan's batch.
        candidates: give the seconds of an update at each batch.
        noise: over the pilot; the gain is predicted only where every point is decided and it grows.
        facts: the optimizer's family and the learning-rate schedule.
        total_examples: of the run.
        warmup: examples of it, after which the rate begins to fall.

    Raises:
        InvalidInputError: ``seesaw`` beside a rate that never falls, or a batch too small to grow to.
    """
    power = RATE_POWERS[facts.optimizer_family]
    known = len(noise) > 1 and all(point.decided for point in noise)
    grows = known and noise[-1].low > (noise[0].high or np.inf)
    batch = chosen.candidate.global_batch_size
    if kind is None:
        ratio: Interval | None = None
        if grows and batch >= 2:
            milestones = _by_noise(chosen, candidates, noise)
            if len(milestones) > 1:
                ratio = _time_ratio(milestones, chosen, candidates, noise, facts.recipe.batch_size)
        return Proposal(schedule=None, decision=_kept(ratio, known=known, grows=grows))
    followed = noise if known else ()
    milestones = _milestones(
        kind, chosen, candidates, followed, facts, total=total_examples, warmup=warmup
    )
    schedule = BatchSchedule(kind=kind, milestones=milestones, rate_power=power)
    ratio = None
    if known and kind != "noise":
        ratio = _time_ratio(milestones, chosen, candidates, noise, facts.recipe.batch_size)
    sizes = " to ".join(f"{size:,}" for size in (milestones[0][1], batch))
    gain = "what it brings is not predicted: the noise scale is not decided all along the pilot"
    if kind == "noise":
        gain = "what it brings depends on the noise scale that training will meet"
    if ratio is not None:
        gain = f"over the pilot it takes {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) of the"
        gain += " time of the one batch"
    return Proposal(
        schedule=schedule,
        ratio=ratio,
        decision=Decision(
            name="batch_schedule",
            value=kind,
            evidence="derived" if ratio else "assumed",
            rule=f"rate x (batch / {batch})**{power:g} while the batch is smaller",
            source="smith2018" if (kind, power) == ("seesaw", 1.0) else _SOURCES[kind],
            reason=f"the batch grows from {sizes}; {gain}",
            low=ratio.low if ratio else None,
            high=ratio.high if ratio else None,
            answers="A batch that grows replaces a rate that falls: with SGD, where the rate is kept",
        ),
    )


def _kept(ratio: Interval | None, *, known: bool, grows: bool) -> Decision:
    if ratio is not None and ratio.high is not None and ratio.high < WORTH_IT:
        reason = "--batch-schedule milestones, following the pilot's noise scale, is predicted to take"
        reason += f" {ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) of the time"
    elif grows:
        reason = "the noise scale grows over the pilot, but a batch that follows it gains too little"
    elif known:
        reason = "the noise scale does not clearly grow over the pilot"
    else:
        reason = "the noise scale is not decided all along the pilot"
    return Decision(
        name="batch_schedule",
        value=None,
        evidence="derived" if known else "assumed",
        rule="one batch, unless one that grows is predicted to be clearly quicker",
        source="mccandlish2018",
        reason=reason,
    )


def _milestones(
    kind: BatchScheduleKind,
    chosen: Chosen,
    candidates: Sequence[Candidate],
    noise: Sequence[NoiseScale],
    facts: TaskFacts,
    *,
    total: int,
    warmup: int,
) -> tuple[tuple[int, int], ...]:
    """Where the batch changes, ending at the plan's.

    Raises:
        InvalidInputError: as ``propose_schedule`` says.
    """
    batch = chosen.candidate.global_batch_size
    stages = min(STAGES, batch.bit_length() - 1)
    if stages == 0:
        found, hint = f"a schedule that grows to a batch of {batch}", "leave --batch-schedule out"
        raise InvalidInputError(found, need="a planned batch of 2 or more", hint=hint)
    if kind == "noise":
        return ((0, batch >> stages),)
    if kind == "milestones":
        if not noise:
            found = "batch milestones without a noise scale decided all along the pilot"
            hint = "--batch-schedule exponential, or measure longer: --time-budget"
            raise InvalidInputError(found, need="a noise scale to follow", hint=hint)
        return _by_noise(chosen, candidates, noise)
    if kind == "seesaw" and facts.recipe.schedule == "step":
        return _at_drops(facts.recipe, batch, total)
    if kind == "seesaw":
        _, *later = _halvings(facts.recipe.schedule, stages)
        starts = [0, *(round(warmup + (total - warmup) * share) for share in later)]
        sizes = [batch >> k for k in range(stages, -1, -1)]
    elif kind == "exponential":
        sizes = [batch >> k for k in range(stages, -1, -1)]
        starts = [round(total * GROWING_SHARE * i / stages) for i in range(stages + 1)]
    else:
        count = min(2**stages, batch)
        sizes = [batch * i // count for i in range(1, count + 1)]
        starts = [round(total * GROWING_SHARE * i / (count - 1)) for i in range(count)]
    pairs = dict(zip(starts, sizes, strict=True))  # a very short run keeps the last of equal starts
    return tuple(pairs.items())


def _at_drops(recipe: Recipe, batch: int, total: int) -> tuple[tuple[int, int], ...]:
    """The batch grows by as much as the rate drops: Smith et al. (2018), arXiv:1711.00489, Sec. 3.

    Raises:
        InvalidInputError: the rate does not drop within the run.
    """
    drops = [at for at in recipe.decay_at or () if at < total]
    if not drops:
        found = f"a seesaw batch schedule beside a rate that does not drop within {total:,} examples"
        raise InvalidInputError(
            found, need="a drop within the run", hint="change decay_at, or train longer"
        )
    sizes = [
        max(1, round(batch * (recipe.decay_factor or 1.0) ** k)) for k in range(len(drops), -1, -1)
    ]
    first: dict[int, int] = {}  # where a small batch cannot be cut further, it stays
    for start, size in zip((0, *drops), sizes, strict=True):
        first.setdefault(size, start)
    return tuple((start, size) for size, start in first.items())


def _halvings(schedule: str, stages: int) -> list[float]:
    """Shares of the run after its warmup at which a falling rate has halved 0, 1, ... times.

    Raises:
        InvalidInputError: the rate does not fall smoothly.
    """
    left = [0.5**k for k in range(stages + 1)]
    if schedule == "linear":
        return [1 - share for share in left]
    if schedule == "cosine":
        return [float(np.arccos(2 * share - 1) / np.pi) for share in left]
    found = f"a seesaw batch schedule beside a {schedule} learning rate"
    need = "a cosine, linear or step one, whose falls become growth of the batch"
    raise InvalidInputError(found, need=need, hint='schedule="cosine" in the recipe')


def _by_noise(
    chosen: Chosen, candidates: Sequence[Candidate], noise: Sequence[NoiseScale]
) -> tuple[tuple[int, int], ...]:
    """The best batch for the noise scale at each point of the pilot, rising, up to the plan's."""
    batch = chosen.candidate.global_batch_size
    smaller = [c for c in candidates if c.global_batch_size <= batch]
    sizes = np.array([float(c.global_batch_size) for c in smaller])
    seconds = np.array([c.update_seconds for c in smaller])
    pairs: list[tuple[int, int]] = []
    for point in noise:
        critical = float(point.noise_scale or 1.0) * chosen.steps.calibration
        best = int(sizes[np.argmin((1 + critical / sizes) * seconds)])
        if not pairs or best > pairs[-1][1]:
            pairs.append((point.examples_seen if pairs else 0, best))
    if pairs[-1][1] < batch:
        last = (noise[-1].examples_seen, batch)
        pairs = [pair for pair in pairs if pair[0] < last[0]] + [last]
    return tuple(pairs)


def _time_ratio(
    milestones: Sequence[tuple[int, int]],
    chosen: Chosen,
    candidates: Sequence[Candidate],
    noise: Sequence[NoiseScale],
    today: int,
) -> Interval:
    """Time over the pilot's progress with a schedule, over that with the plan's batch alone.

    Progress between two points of the pilot is examples / (noise + B) at today's batch, which it was
    run with. With another batch the same progress takes other examples, and the schedule counts those.
    """
    rng = np.random.default_rng(SEED)
    seen = np.array([point.examples_seen for point in noise], float)
    critical = _critical_draws(noise, chosen, rng)
    gaps = np.diff(seen, append=2 * seen[-1] - seen[-2])
    progress = gaps / (critical + today) / PARTS
    known = np.array([float(c.global_batch_size) for c in candidates])
    update = np.array([c.update_seconds for c in candidates])
    starts, batches = (np.array(column, float) for column in zip(*milestones, strict=True))
    examples = np.full(len(critical), seen[0])
    grown, one = np.zeros(len(critical)), np.zeros(len(critical))
    for scale, made in zip(
        *(np.repeat(of.T, PARTS, axis=0) for of in (critical, progress)), strict=True
    ):
        size = batches[np.searchsorted(starts, examples, side="right") - 1]
        grown += made * (1 + scale / size) * np.interp(size, known, update)
        one += made * (1 + scale / batches[-1]) * np.interp(batches[-1], known, update)
        examples += made * (scale + size)
    return interval(grown / one)


def _critical_draws(noise: Sequence[NoiseScale], chosen: Chosen, rng: np.random.Generator) -> Floats:
    """Critical batch sizes along the pilot, [draws, points]; one calibration for each draw."""
    centre = np.array([max(float(p.noise_scale or 1.0), 1.0) for p in noise])
    sd = [np.log(float(p.high or p.low) / max(p.low, 1e-3)) / (2 * NORMAL_QUANTILE) for p in noise]
    spread = chosen.steps.calibration_log_sd * rng.standard_normal((NUM_DRAWS, 1))
    return (
        centre
        * chosen.steps.calibration
        * np.exp(np.array(sd) * rng.standard_normal((NUM_DRAWS, len(noise))) + spread)
    )
