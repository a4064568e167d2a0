"""Will the optimizer see the positives? Counts per update, their share of the gradient, its noise.

B+ is the noise scale of the positives' part of the gradient: over a batch of B examples that part
has the relative error sqrt(B+ / B) (McCandlish et al. 2018, Eq. A.2, for the part alone). It does not
shrink as the batch grows: the sum over positives is divided by all targets, and there are more of
both. What falls with the batch is its noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import isfinite, sqrt
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rightbatch.core.errors import InvalidInputError, InvalidTaskError
from rightbatch.core.plan import Interval
from rightbatch.core.progress import OnProgress, Progress
from rightbatch.core.samples import GradientSample
from rightbatch.core.signal import GradientSignal, Signal, UpdateSignal
from rightbatch.fit.noise_scale import estimate_noise_scale
from rightbatch.fit.sparse_noise import estimate_sparse_noise
from rightbatch.measure.gradients import draw_examples, sample_gradients, split_evenly, undisturbed
from rightbatch.sparse.statistics import SamplingLaw, law_of_counts, law_of_windows
from rightbatch.sparse.windows import RandomWindows
from rightbatch.tasks.build import build_model, collate, compute_loss, smallest_micro_batch, to_device
from rightbatch.tasks.task import Task

_NUM_SAMPLES = 4  # gradient samples, each of all its groups; at least 3 for an interval
_GROUPS = 8


def measure_signal(
    task: Task,
    batch_sizes: Sequence[int],
    *,
    model: nn.Module | None = None,
    num_examples: int = 64,
    relative_error: float = 0.2,
    device: str = "cpu",
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Signal:
    """Count positives and measure their gradient at initialisation, and now where a model is given.

    Args:
        task: that declares ``positive_loss``, and whose ``loss`` counts its targets.
        batch_sizes: whose updates are described.
        model: as trained so far, in train mode, on the device; its ``.grad`` is cleared.
        num_examples: whose gradients are taken at each point, twice each; at least 16. Where the
            data are no ``RandomWindows``, four times as many are looked at for their counts.
        relative_error: wanted of the positives' gradient.
        device: to run on.
        seed: of the initial weights and of the examples drawn.
        on_progress: called after every forward and backward.

    Raises:
        InvalidTaskError: the task declares no positives, or none was seen.
        InvalidInputError: too few examples, or an error that is not above 0.
        MeasurementError: a gradient is not finite.
    """
    if task.positive_loss is None:
        raise InvalidTaskError(
            "a task without positive_loss",
            need="the part of its loss that positives contribute",
            hint="positive_loss=lambda model, batch: cross_entropy(..., part='positives')",
        )
    if num_examples < 2 * _GROUPS or not 0 < relative_error < float("inf"):
        found = f"num_examples = {num_examples}, relative_error = {relative_error}"
        hint = "num_examples=64, relative_error=0.2"
        raise InvalidInputError(found, need=f"at least {2 * _GROUPS}, and an error above 0", hint=hint)
    stages: list[tuple[Literal["init", "now"], nn.Module]]
    stages = [("init", build_model(task, device, seed))]
    if model is not None:
        stages.append(("now", model))
    progress = _Steps(on_progress, total=len(stages) * _NUM_SAMPLES + 1)
    law, counted = _law(task, stages[0][1], 4 * num_examples, device, seed)
    progress.step("counting positives")
    gradients: list[GradientSignal] = []
    for stage, network in stages:
        with undisturbed(network):
            found = _gradient_signal(
                task,
                network,
                stage,
                num_examples=num_examples,
                device=device,
                seed=seed,
                progress=progress,
            )
        gradients.append(found)
    last = gradients[-1]
    mixed = law.mixed
    return Signal(
        task=task.name,
        positive_fraction=law.positive_fraction,
        positives_per_example=mixed.mean,
        positions_per_example=mixed.positions,
        examples_without=mixed.none,
        design_effect=law.design_effect if mixed.positions > 1 else None,
        correlation=law.correlation,
        counts_evidence="measured" if counted else "derived",
        examples_counted=counted,
        updates=tuple(_update(law, size, last) for size in batch_sizes),
        gradients=tuple(gradients),
        wanted_relative_error=relative_error,
        batch_for_error=_map(last, lambda scale: scale / relative_error**2),
    )


def _law(
    task: Task, model: nn.Module, num_examples: int, device: str, seed: int
) -> tuple[SamplingLaw, int]:
    """The law of positives in an example, and how many examples it was counted on; 0 if exact.

    Raises:
        InvalidTaskError: no positive in the examples drawn.
    """
    data: Any = task.train_data
    if isinstance(data, RandomWindows):
        law = law_of_windows(data)
        in_order = task.recipe.sampler == "sequential"  # else batches mix what was stratified
        return replace(law, stratified=law.stratified and in_order), 0
    generator = torch.Generator().manual_seed(seed)
    positives: list[int] = []
    positions: list[int] = []
    least = smallest_micro_batch(model)
    with torch.no_grad(), undisturbed(model):
        for index in draw_examples(task.num_train_examples, num_examples, generator):
            batch = to_device(collate(task, [index] * least), device)
            whole = compute_loss(task.loss, model, batch, num_examples=least)
            part = compute_loss(task.positive_loss, model, batch, num_examples=least)
            positives.append(int(part.count) // least)
            positions.append(int(whole.count) // least)
    if not sum(positives):
        raise InvalidTaskError(
            f"no positive in {num_examples} examples drawn at random",
            need="at least one",
            hint="raise num_examples, or sample windows around positives: sparse.RandomWindows",
        )
    return law_of_counts(positives, positions), num_examples


def _gradient_signal(
    task: Task,
    model: nn.Module,
    stage: Literal["init", "now"],
    *,
    num_examples: int,
    device: str,
    seed: int,
    progress: _Steps,
) -> GradientSignal:
    generator = torch.Generator().manual_seed(seed + 1)
    per_sample = max(num_examples // _NUM_SAMPLES, _GROUPS * smallest_micro_batch(model))
    samples: list[GradientSample] = []
    positive_mass, mass = 0.0, 0.0
    for number in range(_NUM_SAMPLES):
        indices = draw_examples(task.num_train_examples, per_sample, generator)
        groups = split_evenly(indices, _GROUPS)
        samples.append(sample_gradients(task, model, groups, examples_seen=0, device=device))
        batch = to_device(collate(task, groups[0]), device)
        positive_mass += _mass(task.positive_loss, model, batch, len(groups[0]))
        mass += _mass(task.loss, model, batch, len(groups[0]))
        progress.step(f"gradient of the positives, {stage}, {number + 1} of {_NUM_SAMPLES}")
    model.zero_grad(set_to_none=True)
    noise = estimate_sparse_noise(samples)
    assert noise is not None  # the task declares positives, so every sample holds their norms
    return GradientSignal(
        stage=stage,
        mass_share=positive_mass / mass if isfinite(mass) and mass else None,
        noise_scale=noise.positives.noise_scale,
        noise_low=noise.positives.low,
        noise_high=noise.positives.high,
        whole_noise_scale=estimate_noise_scale(samples).noise_scale,
        cosine=noise.cosine,
    )


def _mass(loss: Any, model: nn.Module, batch: Any, num_examples: int) -> float:
    """Sum of the absolute gradient of a summed loss on the model's outputs; nan without one tensor."""
    outputs: list[Any] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(output)

    handle = model.register_forward_hook(keep)
    try:
        total = compute_loss(loss, model, batch, num_examples).total
    finally:
        handle.remove()
    if len(outputs) != 1 or not isinstance(outputs[0], Tensor) or not outputs[0].requires_grad:
        return float("nan")
    (gradient,) = torch.autograd.grad(total, outputs[0])
    return float(gradient.abs().double().sum())


def _update(law: SamplingLaw, batch_size: int, now: GradientSignal) -> UpdateSignal:
    batch = law.batch(batch_size)
    return UpdateSignal(
        batch_size=batch_size,
        expected_positives=batch.expected_positives,
        positives_sd=batch.positives_sd,
        probability_none=batch.probability_none,
        probability_none_if_independent=batch.probability_none_if_independent,
        relative_error=_map(now, lambda scale: sqrt(scale / batch_size)),
    )


def _map(signal: GradientSignal, rule: Callable[[float], float]) -> Interval | None:
    """A rising function of B+ with its interval."""
    if signal.noise_scale is None:
        return None
    high = None if signal.noise_high is None else rule(signal.noise_high)
    return Interval(value=rule(signal.noise_scale), low=rule(signal.noise_low), high=high)


class _Steps:
    """Tells how many of a known number of steps are done."""

    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self._tell, self._total, self._done = on_progress, total, 0

    def step(self, message: str) -> None:
        self._done += 1
        if self._tell:
            done = self._done / self._total
            self._tell(Progress(stage="signal", fraction=done, seconds_left=None, message=message))
