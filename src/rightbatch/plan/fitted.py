"""The fitted models that every plan needs, and draws of what they leave uncertain."""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch.core.errors import MeasurementError
from rightbatch.core.facts import TaskFacts
from rightbatch.core.samples import Measurements
from rightbatch.fit.loader_model import LoaderModel
from rightbatch.fit.models import Models
from rightbatch.fit.steps_model import StepsModel
from rightbatch.plan.candidates import Candidates, Floats, Mode, Split, splits
from rightbatch.plan.draws import (
    ASSUMED_BANDWIDTH,
    GRADIENT_BYTES,
    Draws,
    Link,
    make_draws,
    update_seconds,
)
from rightbatch.plan.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The models a plan cannot do without, and what they leave uncertain."""

    modes: tuple[Mode, ...]
    loader: LoaderModel
    steps: StepsModel
    link: Link
    draws: Draws

    def update_seconds(self, candidates: Candidates, draws: Draws) -> Floats:
        """Seconds of an update, [candidates, draws]."""
        return update_seconds(candidates, self.modes, self.loader, self.link, draws)

    def central_seconds(self, candidates: Candidates) -> Floats:
        """Seconds of an update where every model is right, [candidates]."""
        return self.update_seconds(candidates, self.draws.central)[:, 0]


def fit_all(measurements: Measurements, models: Models, limits: Limits) -> Fitted:
    """The fitted models with draws from them.

    Raises:
        MeasurementError: a stage left no samples.
    """
    if not (models.memory and models.speed and models.loader and models.steps):
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
    mode = Mode(
        precision=measurements.task.recipe.precision,
        checkpointing=False,
        memory=models.memory,
        speed=models.speed,
    )
    given = limits.bandwidth_bytes_per_second
    link = Link(
        num_bytes=GRADIENT_BYTES * measurements.task.num_trainable_parameters,
        bytes_per_second=given or ASSUMED_BANDWIDTH,
        given=given is not None,
    )
    draws = make_draws((mode,), models.loader, models.steps, measurements.optimizer_seconds, link)
    return Fitted(modes=(mode,), loader=models.loader, steps=models.steps, link=link, draws=draws)


def split_today(facts: TaskFacts, mode: Mode) -> Split:
    """Today's batch, in one piece where that was timed, else in the largest equal pieces that were.

    Raises:
        MeasurementError: no equal split of it lies in the timed range.
    """
    low, high = mode.speed.valid_range
    split = next(splits(facts.recipe.batch_size, low, high), None)
    if split is None:
        found = f"no equal split of today's batch of {facts.recipe.batch_size}"
        hint = "give the measurement more time: --time-budget"
        raise MeasurementError(
            found, need=f"micro-batches from {low} to {high}, the timed sizes", hint=hint
        )
    return split
