"""The limits as inequalities, so that an impossible plan can say which to relax, and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.errors import InfeasibleError
from rightbatch.core.facts import TaskFacts
from rightbatch.core.recipe import updates_of
from rightbatch.core.units import format_bytes, format_seconds
from rightbatch.plan.candidates import Candidates, Floats, Mode
from rightbatch.plan.draws import GRADIENT_BYTES
from rightbatch.plan.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """A candidate is allowed where ``needs <= limit``."""

    name: str
    needs: Floats
    """What each candidate needs of the limited thing, [candidates]."""
    limit: float
    relax: Callable[[float], str]
    """What to do so that so much is allowed; the end of an error."""

    @property
    def met(self) -> NDArray[np.bool_]:
        """Which candidates are allowed, [candidates]."""
        return self.needs <= self.limit


def peak_bytes(
    candidates: Candidates, modes: Sequence[Mode], facts: TaskFacts, *, upper: bool = False
) -> Floats:
    """Peak on each device, or the upper end of its interval, [candidates].

    With replicas, a second copy of the gradients lies in the buckets that are reduced.
    """
    peaks = np.zeros(len(candidates))
    for index, mode in enumerate(modes):
        mine = candidates.mode == index
        sizes, place = np.unique(candidates.micro_batch_size[mine], return_inverse=True)
        last = mode.memory.valid_range[1]
        predict = mode.memory.high_bytes if upper else mode.memory.peak_bytes
        peaks[mine] = np.array([predict(int(b)) if b <= last else np.inf for b in sizes])[place]
    buckets = GRADIENT_BYTES * facts.num_trainable_parameters
    return peaks + np.where(candidates.num_replicas > 1, buckets, 0)


def make_constraints(
    candidates: Candidates,
    facts: TaskFacts,
    limits: Limits,
    *,
    peaks: Floats,
    seconds: Floats,
    device_bytes: int,
) -> list[Constraint]:
    """Every limit that this task and these wishes set.

    Args:
        candidates: that the limits are to bound.
        facts: number of examples, length of the run, BatchNorm.
        limits: as wished.
        peaks: bytes on each device, [candidates].
        seconds: of one update, [candidates].
        device_bytes: memory where no limit is wished.
    """
    batches = candidates.global_batch_size.astype(float)
    memory = limits.memory_limit_bytes or device_bytes
    found = [
        Constraint(
            name=f"{format_bytes(memory)} of memory with {limits.headroom:.0%} left free",
            needs=peaks,
            limit=int(memory * (1 - limits.headroom)),
            relax=lambda n: memory_option(n, limits.headroom),
        )
    ]
    if limits.max_batch_size is not None:
        found.append(
            Constraint(
                name=f"a largest batch of {limits.max_batch_size:,}",
                needs=batches,
                limit=limits.max_batch_size,
                relax=lambda n: f"--max-batch {n:.0f}",
            )
        )
    if facts.num_batch_norm_layers:
        lone = [
            candidates.split(i).leaves_one_alone(facts.num_train_examples)
            for i in range(len(candidates))
        ]
        found.append(
            Constraint(
                name="no lone example for BatchNorm at the end of an epoch",
                needs=np.array(lone, float),
                limit=0,
                relax=lambda _: "drop one training example, or time more sizes with --time-budget",
            )
        )
    if limits.min_updates is not None:
        found.append(_updates(candidates, facts, limits, limits.min_updates, seconds))
    if limits.training_seconds is not None:
        found.append(
            Constraint(
                name=f"{format_seconds(limits.training_seconds)} of training",
                needs=seconds,
                limit=limits.training_seconds,
                relax=lambda n: f"--time-budget-train {_rounded_up(n)}s",
            )
        )
    return found


def limit_for(needed_bytes: float, headroom: float) -> int:
    """The least memory limit that leaves so much beside the headroom.

    >>> limit_for(900, 0.1), limit_for(901, 0.1)
    (1000, 1002)
    """
    limit = math.floor(needed_bytes / (1 - headroom))
    while int(limit * (1 - headroom)) < needed_bytes:
        limit += 1
    return limit


def memory_option(needed_bytes: float, headroom: float) -> str:
    """What to ask for so that so much fits, as the end of an error."""
    limit = limit_for(needed_bytes, headroom)
    return f"--memory-limit {limit}, {format_bytes(limit)}"


def _rounded_up(value: float) -> str:
    """To three digits, as options are written.

    >>> _rounded_up(0.39204), _rounded_up(12.0), _rounded_up(3.9204e-5)
    ('0.393', '12', '0.0000393')
    """
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    rounded = math.ceil(round(value / unit, 6)) * unit
    return np.format_float_positional(rounded, precision=3, unique=False, fractional=False, trim="-")


def num_updates(candidates: Candidates, facts: TaskFacts, limits: Limits, seconds: Floats) -> Floats:
    """Updates of the whole run: in the time there is, or over as many examples as today, [candidates].

    Args:
        candidates: whose batches count.
        facts: length of today's run.
        limits: time for the run.
        seconds: of one update, [candidates].
    """
    if limits.training_seconds is not None:
        return np.floor(limits.training_seconds / seconds)
    count = facts.num_train_examples
    total = facts.recipe.total_examples(facts.recipe.batch_size, count)
    sizes = candidates.global_batch_size.tolist()
    return np.array([updates_of(total, size, count) for size in sizes], float)


def _updates(
    candidates: Candidates, facts: TaskFacts, limits: Limits, fewest: int, seconds: Floats
) -> Constraint:
    return Constraint(
        name=f"at least {fewest:,} updates",
        needs=-num_updates(candidates, facts, limits, seconds),
        limit=-fewest,
        relax=lambda n: f"--min-updates {-n:.0f}" if n < 0 else "a longer run",
    )


def allowed(constraints: Sequence[Constraint]) -> NDArray[np.bool_]:
    """Which candidates meet every constraint, [candidates].

    Raises:
        InfeasibleError: none does; names the limits that would do if they alone were relaxed.
    """
    met = np.logical_and.reduce([c.met for c in constraints])
    if met.any():
        return met
    ways: list[str] = []
    for constraint in constraints:
        others = [c.met for c in constraints if c is not constraint]
        rest = np.logical_and.reduce(others) if others else np.ones_like(met)
        if rest.any() and np.isfinite(least := float(constraint.needs[rest].min())):
            ways.append(constraint.relax(least))
    binding = [c.name for c in constraints if not c.met.all()]
    found = "no batch size meets " + " and ".join(binding)
    hint = ", or ".join(ways) or "relax more than one of them"
    raise InfeasibleError(found, need="a batch size that meets them all", hint=hint)
