"""Time and examples to the target for every candidate, over draws of everything uncertain.

time(B) = S(B) (k t(b) + t_opt + t_sync + loading), with S(B) from ``fit.steps_model``. All of it is
relative to today's recipe, because a pilot tells ratios of steps and not their number.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.plan import Interval, Objective
from rightbatch.fit.intervals import LEVEL
from rightbatch.fit.steps_model import relative_examples
from rightbatch.plan.candidates import Candidates, Floats, Ints
from rightbatch.plan.draws import Draws

# Another mode or split takes the place of a simpler one where it takes at most this share of its time
# in so many draws: some of many sizes and modes would be quicker in fewer of them by chance.
QUICKER, SHOWN = 0.98, 0.998
CHUNK = 128  # candidates scored at once: their draws stay in the processor's cache

UpdateSeconds = Callable[[Candidates, Draws], Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Each global batch with its quickest split: ratios to today's recipe, [batches, draws]."""

    candidates: Candidates
    """The quickest split of each global batch, in rising order."""
    seconds: Floats
    examples: Floats
    cost: Floats
    """What the objective minimises, positive."""
    least_cost: Floats
    """Least cost of any candidate in each draw, [draws]."""

    @property
    def regret(self) -> Floats:
        """Expected excess of each batch's cost over the best of the same draw, [batches]."""
        return (self.cost / self.least_cost).mean(axis=1) - 1

    @property
    def expected_seconds(self) -> Floats:
        """Geometric mean of the time ratio, [batches]."""
        return np.exp(np.log(self.seconds).mean(axis=1))

    @property
    def expected_cost(self) -> Floats:
        """Geometric mean of the cost, [batches]."""
        return np.exp(np.log(self.cost).mean(axis=1))


def score(
    candidates: Candidates,
    today: Candidates,
    seconds_of: UpdateSeconds,
    draws: Draws,
    objective: Objective,
) -> Scores:
    """Score every candidate against today's recipe under resampled models.

    The split of a batch changes the seconds of its update and nothing else, so each batch is
    represented by the one that ``_best_splits`` takes, while the best of a draw is sought among all.

    Args:
        candidates: within every limit, ordered by global batch.
        today: the recipe's batch, split as it runs today; one candidate.
        seconds_of: seconds of an update for candidates and draws, [candidates, draws].
        draws: worlds to score in.
        objective: ``time`` and ``accuracy`` look at seconds, ``compute`` at examples, ``balanced`` at
            seconds x examples: the knee of their front, where one per cent less time costs one per
            cent more examples.
    """
    sizes, first = np.unique(candidates.global_batch_size, return_index=True)
    best, quickest = _best_splits(candidates, first, seconds_of, draws)
    today_seconds, critical = seconds_of(today, draws)[0], draws.critical
    reference = float(today.global_batch_size[0])
    batches = sizes.astype(float)[:, None]
    examples = relative_examples(batches, reference, critical)
    steps = examples * (reference / batches) / today_seconds
    chosen = candidates.take(best)
    seconds = seconds_of(chosen, draws) * steps
    least = quickest * steps
    return Scores(
        candidates=chosen,
        seconds=seconds,
        examples=examples,
        cost=_cost(objective, seconds, examples),
        least_cost=_cost(objective, least, examples).min(axis=0),
    )


def _best_splits(
    candidates: Candidates, first: Ints, seconds_of: UpdateSeconds, draws: Draws
) -> tuple[Ints, Floats]:
    """For each batch: its split of least expected update seconds, and the least of each draw.

    Modes are ordered by how much they change. A later one is taken where it is shown to be quicker, or
    where no earlier one is allowed; so are more passes than the fewest, which only a cache can make
    quicker, and a slow moment of the machine can seem to.
    """
    mean = np.empty(len(candidates))
    quickest = np.full((len(first), len(draws.noise)), np.inf)
    batch_of = np.searchsorted(first, np.arange(len(candidates)), side="right") - 1
    for start in range(0, len(candidates), CHUNK):
        part = slice(start, start + CHUNK)
        seconds = seconds_of(candidates.take(part), draws)
        mean[part] = seconds.mean(axis=1)
        rows, offsets = np.unique(batch_of[part], return_index=True)
        quickest[rows] = np.minimum(quickest[rows], np.minimum.reduceat(seconds, offsets, axis=0))
    best = np.full(len(first), -1)
    fewest = _fewest_passes(candidates)
    for mode, splits in itertools.product(np.unique(candidates.mode).tolist(), (fewest, True)):
        allowed = (candidates.mode == mode) & splits
        mine = _least_of_each(np.where(allowed, mean, np.inf), first)
        wins = (best < 0) & (mine >= 0)
        (both,) = np.nonzero((best >= 0) & (mine >= 0))
        if len(both):
            before, after = (seconds_of(candidates.take(at[both]), draws) for at in (best, mine))
            wins[both] = (after < QUICKER * before).mean(axis=1) >= SHOWN
        best = np.where(wins, mine, best)
    return best, quickest


def _fewest_passes(candidates: Candidates) -> NDArray[np.bool_]:
    """Which splits have the fewest passes of their batch, mode and number of replicas, [candidates]."""
    passes = candidates.accumulation_steps
    columns = (candidates.global_batch_size, candidates.mode, candidates.num_replicas)
    _, group = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    least = np.full(group.max() + 1, passes.max())
    np.minimum.at(least, group, passes)
    return passes == least[group]


def _least_of_each(values: Floats, first: Ints) -> Ints:
    """Where each run of values that begins at ``first`` is least; -1 where nothing in it is finite."""
    ends = np.append(first[1:], len(values))
    least = np.array([a + int(np.argmin(values[a:b])) for a, b in zip(first, ends, strict=True)])
    return np.where(np.isfinite(values[least]), least, -1)


def _cost(objective: Objective, seconds: Floats, examples: Floats) -> Floats:
    if objective == "compute":
        return examples
    return np.sqrt(seconds * examples) if objective == "balanced" else seconds


def interval(draws: Floats) -> Interval:
    """Median and central 90 % of draws."""
    tail = (1 - LEVEL) / 2
    low, middle, high = (float(q) for q in np.quantile(draws, [tail, 0.5, 1 - tail]))
    return Interval(value=middle, low=low, high=high)


def on_front(seconds: Floats, examples: Floats) -> list[bool]:
    """Whether no other candidate is better in both; ties count as better in that one, [batches].

    >>> on_front(np.array([3.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    [True, True, False]
    """
    pairs = list(zip(seconds.tolist(), examples.tolist(), strict=True))
    return [
        not any(s <= mine[0] and e <= mine[1] and (s, e) != mine for s, e in pairs) for mine in pairs
    ]
