"""Time and examples to the target for every candidate, over draws of everything uncertain.

time(B) = S(B) (k t(b) + t_opt + loading), with S(B) from ``fit.steps_model``. All of it is relative
to today's recipe, because a pilot tells ratios of steps and not their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.plan import Interval, Objective
from rightbatch.fit.intervals import LEVEL
from rightbatch.fit.loader_model import LoaderModel
from rightbatch.fit.speed_model import SpeedModel
from rightbatch.fit.steps_model import StepsModel, relative_examples
from rightbatch.plan.candidates import Split, update_seconds

NUM_DRAWS = 1000
SEED = 0  # fixed: the same measurements always give the same plan
PLATEAU = 1.05

Draws = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Ratios to today's recipe for each draw and candidate, [draws, candidates]."""

    seconds: Draws
    examples: Draws
    cost: Draws
    """What the objective minimises, positive."""

    @property
    def regret(self) -> NDArray[np.float64]:
        """Expected excess of each candidate's cost over the best of the same draw, [candidates]."""
        return (self.cost / self.cost.min(axis=1, keepdims=True) - 1).mean(axis=0)

    @property
    def best(self) -> int:
        """Index of the candidate with the least expected regret."""
        return int(np.argmin(self.regret))

    def plateau(self) -> tuple[int, int]:
        """First and last index of the run around the best whose expected cost is within 5 %."""
        expected = np.exp(np.log(self.cost).mean(axis=0))
        good = expected <= PLATEAU * expected[self.best]
        first = last = self.best
        while first > 0 and good[first - 1]:
            first -= 1
        while last + 1 < len(good) and good[last + 1]:
            last += 1
        return first, last


def score(
    candidates: Sequence[Split],
    today: Split,
    *,
    speed: SpeedModel,
    loader: LoaderModel,
    steps: StepsModel,
    objective: Objective,
) -> Scores:
    """Score every candidate against today's recipe under resampled models.

    Args:
        candidates: splits within every limit.
        today: the recipe's batch, split as it runs today.
        speed: step times with their errors.
        loader: adds to, or runs beside, the step.
        steps: critical batch size with its interval.
        objective: ``time`` minimises seconds; ``balanced`` minimises seconds x examples, the knee of
            their front, where one per cent less time costs one per cent more examples.
    """
    rng = np.random.default_rng(SEED)
    critical = steps.draw(rng, NUM_DRAWS)[:, None]
    columns = [*candidates, today]
    step_seconds = speed.draw_seconds([s.micro_batch_size for s in columns], rng, NUM_DRAWS)
    updates = np.stack(
        [
            update_seconds(split, step_seconds[:, i], speed.optimizer_seconds, loader)
            for i, split in enumerate(columns)
        ],
        axis=1,
    )
    sizes = np.array([float(split.global_batch_size) for split in columns])
    examples = relative_examples(sizes[None, :], today.global_batch_size, critical)
    seconds = examples / sizes * updates
    seconds /= seconds[:, -1:]
    seconds, examples = seconds[:, :-1], examples[:, :-1]
    cost = seconds if objective == "time" else np.sqrt(seconds * examples)
    return Scores(seconds=seconds, examples=examples, cost=cost)


def interval(draws: NDArray[np.float64]) -> Interval:
    """Median and central 90 % of draws."""
    tail = (1 - LEVEL) / 2
    low, middle, high = (float(q) for q in np.quantile(draws, [tail, 0.5, 1 - tail]))
    return Interval(value=middle, low=low, high=high)
