"""The gradient noise at several points of a pilot run, taken with today's recipe.

Points lie a factor sqrt(2) of examples apart, up to the whole run of today's recipe. At each the
parameters stand still while large batches are drawn, so that |G|^2, the fragile half of the noise
scale, is seen as well as the time allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch.utils.data import DataLoader

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.samples import Coupling, GradientSample, PilotPoint
from rightbatch.fit.noise_scale import MIN_SAMPLES, NoiseScale, estimate_noise_scale
from rightbatch.measure.budget import Budget
from rightbatch.measure.coupling import find_coupling
from rightbatch.measure.gradients import (
    adam_preconditioner,
    draw_examples,
    sample_gradients,
    split_evenly,
    undisturbed,
)
from rightbatch.measure.pilot import Pilot
from rightbatch.tasks.build import smallest_micro_batch
from rightbatch.tasks.check import evaluate
from rightbatch.tasks.task import Task

NUM_POINTS = 10
SPACING = 2**0.5
GROUPS, MOST_GROUPS = 8, 64
LARGEST_GROUP = 64
# Batch statistics of fewer examples than 8 are another network's; a coupled loss wants all it can get.
_SMALLEST_GROUP: dict[Coupling | None, int] = {None: 1, "batch-norm": 8, "loss": 2**62}
COUPLING_EXAMPLES = 16
ENOUGH_SAMPLES, MAX_SAMPLES = 6, 24
# A point is precise enough at this ratio of upper to lower bound.
WANTED_SPREAD = 1.6
# The large batch aims at this many noise scales: more brings little, less leaves |G|^2 unseen.
BATCH_IN_NOISE_SCALES = 2.0
# Shares of the budget: training between the points, and evaluating whether the target is met.
TRAINING_SHARE, EVALUATION_SHARE = 0.45, 0.15
# Share of what is left that one point may use.
POINT_SHARE = 0.3


@dataclass(slots=True)
class NoiseSamples:
    """What has been sampled so far."""

    gradients: list[GradientSample] = field(default_factory=list)
    points: list[PilotPoint] = field(default_factory=list)
    cut: bool = False
    """Whether time ended the pilot before its target or the recipe's end."""


def measure_noise(
    task: Task, samples: NoiseSamples, *, device: str, budget: Budget, seed: int = 0
) -> Iterator[str]:
    """Sample gradients along a pilot until the target, the end of the recipe or of the time.

    Points that are already in ``samples`` are passed through without sampling again.

    Args:
        task: trained with its own recipe.
        samples: added to in place.
        device: to train on.
        budget: time to spend.
        seed: of initialisation, data order and draws.

    Yields:
        What was just done, after every point.

    Raises:
        MeasurementError: the recipe diverges.
    """
    recipe = task.recipe
    total = recipe.total_examples(recipe.batch_size, task.num_train_examples)
    pilot = Pilot(task, device, seed, total)
    generator = torch.Generator().manual_seed(seed + 1)
    spent = _Spent()
    noise_scale = float(recipe.batch_size)
    coupling = _find_coupling(pilot, recipe.batch_size)
    if task.target is not None and not samples.points:  # a target that needs no training is refused
        metrics = _timed_metrics(pilot, device, spent, budget)
        samples.points.append(PilotPoint(examples_seen=0, loss=None, metrics=metrics))
    pilot.update()  # imports and warms up: its time says nothing of the next
    known = max((point.examples_seen for point in samples.points), default=0)
    for goal in _point_examples(total, recipe.batch_size):
        while pilot.examples_seen < goal and (
            spent.updates == 0 or spent.training < TRAINING_SHARE * budget.seconds
        ):
            before = budget.elapsed
            pilot.update()
            if pilot.examples_seen > known:  # the way to where an earlier call ended is not charged
                spent.training += budget.elapsed - before
                spent.updates += 1
            elif budget.left <= 0:
                samples.cut = True
                return
        if any(point.examples_seen == pilot.examples_seen for point in samples.points):
            if pilot.examples_seen < goal:  # the time for training ended with the point before
                samples.cut = True
                return
            continue
        if samples.gradients and not budget.allows(MIN_SAMPLES * 2 * spent.seconds_per_update):
            samples.cut = True
            return
        last = pilot.examples_seen < goal  # as far as the time reaches
        share = budget.part(1.0 if last else POINT_SHARE)
        taken = _sample_point(pilot, generator, noise_scale, coupling, spent.seconds_per_update, share)
        samples.gradients += taken
        noise_scale = _next_noise_scale(_estimate(taken), noise_scale)
        metrics: dict[str, float] = {}
        expected = spent.evaluating + spent.one_evaluation
        if task.target is not None and expected <= EVALUATION_SHARE * budget.seconds:
            metrics = _timed_metrics(pilot, device, spent, budget)
        samples.points.append(
            PilotPoint(examples_seen=pilot.examples_seen, loss=pilot.mean_loss(), metrics=metrics)
        )
        yield f"gradient noise at {pilot.examples_seen:,} examples"
        reached = task.target and metrics and task.target.is_reached(metrics[task.target.metric])
        samples.cut = last and not reached
        if last or reached:
            return


@dataclass(slots=True)
class _Spent:
    """Where the noise budget has gone, in seconds."""

    training: float = 0.0
    updates: int = 0
    evaluating: float = 0.0
    one_evaluation: float = 0.0

    @property
    def seconds_per_update(self) -> float:
        """What a forward and backward of today's batch costs, with its optimizer step."""
        return self.training / max(1, self.updates)


def _timed_metrics(pilot: Pilot, device: str, spent: _Spent, budget: Budget) -> dict[str, float]:
    start = budget.elapsed
    metrics = evaluate(pilot.task, pilot.model, _validation_batches(pilot.task), device)
    spent.one_evaluation = budget.elapsed - start
    spent.evaluating += spent.one_evaluation
    return metrics


def measure_noise_updates(
    task: Task, *, updates: int, batch_size: int, device: str = "cpu", seed: int = 0
) -> NoiseScale:
    """Train ``updates`` steps and estimate the noise scale from the groups of each.

    Batches are drawn with replacement. Each step's batch is split into up to 8 groups whose mean
    gradient also makes the update, so the measurement costs little beside training. Where examples
    are coupled there are fewer and larger groups, and at least 2.

    Args:
        task: trained with its recipe's optimizer and constants.
        updates: optimizer steps, at least 3.
        batch_size: examples per step, at least 2, or 4 where batch statistics couple examples.
        device: to train on.
        seed: of initialisation and draws.

    Returns:
        One estimate pooled over all steps, in examples.

    Raises:
        InvalidInputError: a batch too small to split.
        MeasurementError: fewer than 3 updates, or training diverges.
    """
    pilot = Pilot(task, device, seed, updates * batch_size)
    smallest = smallest_micro_batch(pilot.model)
    if batch_size < 2 * smallest:
        found, hint = f"batch_size {batch_size}", f"a single group has no spread: use {8 * smallest}"
        need = f"at least 2 groups of {smallest} in every update"
        raise InvalidInputError(found, need=need, hint=hint)
    coupling = _find_coupling(pilot, batch_size)
    num_groups = max(2, min(GROUPS, batch_size // _SMALLEST_GROUP[coupling]))
    generator = torch.Generator().manual_seed(seed + 1)
    samples: list[GradientSample] = []
    for _ in range(updates):
        indices = draw_examples(task.num_train_examples, batch_size, generator)
        samples.append(
            sample_gradients(
                task,
                pilot.model,
                split_evenly(indices, num_groups),
                examples_seen=pilot.examples_seen,
                device=device,
                coupling=coupling,
            )
        )
        pilot.step()
        pilot.examples_seen += batch_size
    return estimate_noise_scale(samples)


def _point_examples(total: int, batch_size: int) -> list[int]:
    """Geometric numbers of examples up to the whole run, none before the eighth update."""
    goals = [round(total / SPACING**k) for k in reversed(range(NUM_POINTS))]
    return [goal for goal in goals if goal >= 8 * batch_size] or [total]


def _sample_point(
    pilot: Pilot,
    generator: torch.Generator,
    noise_scale: float,
    coupling: Coupling | None,
    group_seconds: float,
    budget: Budget,
) -> list[GradientSample]:
    """Draw large batches at fixed parameters until the noise scale is bounded tightly enough."""
    task = pilot.task
    # Groups of today's size see the same batch statistics and the same negatives as training does.
    micro = task.recipe.batch_size
    if coupling != "loss":
        micro = min(micro, LARGEST_GROUP)
    wanted = BATCH_IN_NOISE_SCALES * noise_scale / micro
    affordable = budget.seconds / (MIN_SAMPLES * max(group_seconds, 1e-9))
    num_groups = int(max(2, min(max(GROUPS, wanted), MOST_GROUPS, affordable)))
    weights = adam_preconditioner(pilot.model, pilot.optimizer)
    taken: list[GradientSample] = []
    with undisturbed(pilot.model):
        while len(taken) < MAX_SAMPLES:
            indices = draw_examples(task.num_train_examples, num_groups * micro, generator)
            taken.append(
                sample_gradients(
                    task,
                    pilot.model,
                    split_evenly(indices, num_groups),
                    examples_seen=pilot.examples_seen,
                    device=pilot.device,
                    preconditioner=weights,
                    coupling=coupling,
                )
            )
            if len(taken) < MIN_SAMPLES:
                continue
            late = not budget.allows(budget.elapsed / len(taken))
            if late or (len(taken) >= ENOUGH_SAMPLES and _tight(taken)):
                break
    pilot.model.zero_grad(set_to_none=True)
    return taken


def _find_coupling(pilot: Pilot, batch_size: int) -> Coupling | None:
    size = min(max(2, batch_size), COUPLING_EXAMPLES, pilot.task.num_train_examples)
    if size < 2:
        return None  # a single training example has no other to depend on
    return find_coupling(pilot.task, pilot.model, range(size), pilot.device)


def _estimate(samples: Sequence[GradientSample]) -> NoiseScale:
    """The noise scale as the optimizer sees it: preconditioned where it has second moments."""
    preconditioned = all(s.preconditioned_big_sq_norm is not None for s in samples)
    return estimate_noise_scale(samples, preconditioned=preconditioned)


def _tight(samples: Sequence[GradientSample]) -> bool:
    estimate = _estimate(samples)
    return estimate.high is not None and estimate.high <= WANTED_SPREAD * estimate.low


def _next_noise_scale(estimate: NoiseScale, before: float) -> float:
    """What to size the next point's batches by: the estimate, or more than before if undecided."""
    if estimate.decided and estimate.noise_scale is not None:
        return max(estimate.noise_scale, 1.0)
    return 2 * max(before, estimate.low)


def _validation_batches(task: Task) -> Any:
    batch_size = max(64, task.recipe.batch_size)
    return DataLoader(cast(Any, task.valid_data), batch_size=batch_size, collate_fn=task.collate)
