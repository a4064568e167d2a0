"""The fitted models that every plan needs, and draws of what they leave uncertain."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from rightbatch.core.devices import parse_accelerator
from rightbatch.core.errors import InvalidInputError, MeasurementError
from rightbatch.core.facts import TaskFacts
from rightbatch.core.plan import Candidate
from rightbatch.core.recipe import mode_name
from rightbatch.core.samples import Measurements, ModeSamples
from rightbatch.fit.cuda_model import CudaMemoryModel
from rightbatch.fit.loader_model import LoaderModel
from rightbatch.fit.memory_model import fit_memory_model
from rightbatch.fit.mode_speed import fit_mode_speed
from rightbatch.fit.models import Models
from rightbatch.fit.roofline import Roofline
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
from rightbatch.plan.wishes import NO_WISHES, Wishes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The models a plan cannot do without, and what they leave uncertain."""

    modes: tuple[Mode, ...]
    loader: LoaderModel
    steps: StepsModel
    link: Link
    draws: Draws
    left_out: tuple[tuple[str, str], ...] = ()
    """Modes that were asked for and cannot be planned with, and why."""

    @property
    def is_derived(self) -> bool:
        """Whether step times were not measured but derived for a device that is not here."""
        return isinstance(self.modes[0].times, Roofline)

    def mode_of(self, candidate: Candidate) -> int:
        """Index of a candidate's mode."""
        names = [(mode.precision, mode.checkpointing) for mode in self.modes]
        return names.index((candidate.precision, candidate.checkpointing))

    def update_seconds(self, candidates: Candidates, draws: Draws) -> Floats:
        """Seconds of an update, [candidates, draws]."""
        return update_seconds(candidates, self.modes, self.loader, self.link, draws)

    def central_seconds(self, candidates: Candidates) -> Floats:
        """Seconds of an update where every model is right, [candidates]."""
        return self.update_seconds(candidates, self.draws.central)[:, 0]


def fit_all(
    measurements: Measurements, models: Models, limits: Limits, wishes: Wishes = NO_WISHES
) -> Fitted:
    """The fitted models with draws from them.

    Raises:
        MeasurementError: a stage left no samples, or those of modes or of an accelerator are missing.
    """
    here = {"memory": models.memory, "speed": models.speed} if wishes.device is None else {}
    stages = {**here, "loader": models.loader, "noise": models.steps}
    if missing := ", ".join(stage for stage, model in stages.items() if model is None):
        hint = "run `rightbatch plan TASK` again with a longer --time-budget: it goes on where it ended"
        need = f"samples of {', '.join(stages)}"
        raise MeasurementError(f"no usable samples of {missing}", need=need, hint=hint)
    assert models.loader is not None
    assert models.steps is not None
    modes, left_out = _modes(measurements, models, wishes)
    given = limits.bandwidth_bytes_per_second
    link = Link(
        num_bytes=GRADIENT_BYTES * measurements.task.num_trainable_parameters,
        bytes_per_second=given or ASSUMED_BANDWIDTH,
        given=given is not None,
    )
    return Fitted(
        modes=modes,
        loader=models.loader,
        steps=models.steps,
        link=link,
        draws=make_draws(modes, models.loader, models.steps, measurements.optimizer_seconds, link),
        left_out=left_out,
    )


def _modes(
    measurements: Measurements, models: Models, wishes: Wishes
) -> tuple[tuple[Mode, ...], tuple[tuple[str, str], ...]]:
    """The recipe's mode first, then others by how much they change; and those without a model.

    Raises:
        InvalidInputError: the accelerator does not compute in the recipe's type.
        MeasurementError: there are no samples of what was wished.
    """
    recipe = measurements.task.recipe
    modes: list[Mode] = []
    if wishes.device is None:
        assert models.memory is not None
        assert models.speed is not None
        modes.append(
            Mode(
                precision=recipe.precision,
                checkpointing=False,
                memory=models.memory,
                speed=models.speed,
            )
        )
    samples = [s for s in measurements.modes if s.device == wishes.device]
    if not wishes.modes:
        own = (recipe.precision, False)
        samples = [s for s in samples if wishes.device and (s.precision, s.checkpointing) == own]
    if not samples and (wishes.modes or wishes.device):
        what = f"a step on {wishes.device}" if wishes.device else "other modes"
        task = shlex.quote(measurements.task.spec)
        options = (f"--device {wishes.device}" if wishes.device else "") + " --modes" * wishes.modes
        hint = f"rightbatch plan {task} {options.strip()}"
        raise MeasurementError(f"no samples of {what}", need="some, beside the noise", hint=hint)
    left_out: list[tuple[str, str]] = []
    for sample in samples:
        try:
            modes.append(_mode(sample, modes))
        except (MeasurementError, InvalidInputError) as error:
            if not modes:
                raise
            name = mode_name(sample.precision, sample.checkpointing)
            left_out.append((name, sample.refused or error.found))
    return tuple(modes), tuple(left_out)


def _mode(sample: ModeSamples, before: Sequence[Mode]) -> Mode:
    """Fit one mode beside the first, or by itself on an accelerator that is not here.

    Raises:
        InvalidInputError: the accelerator does not compute in its type.
        MeasurementError: the step does not run so, or was not timed often enough.
    """
    if sample.refused is not None:
        hint = "run the step in this mode by itself"
        raise MeasurementError(sample.refused, need="a step that runs so", hint=hint)
    if sample.device is None:
        times = fit_mode_speed(before[0].speed, sample.timings)
        memory, speed = fit_memory_model(sample.memory), times.speed
    else:
        accelerator = parse_accelerator(sample.device)
        assert sample.optimizer_work is not None
        times = Roofline(
            works=sample.works, optimizer_work=sample.optimizer_work, accelerator=accelerator
        )
        speed = times.speed()
        memory = CudaMemoryModel(traces=sample.memory, capability=accelerator.capability)
    return Mode(
        precision=sample.precision,
        checkpointing=sample.checkpointing,
        memory=memory,
        speed=speed,
        times=times,
    )


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
