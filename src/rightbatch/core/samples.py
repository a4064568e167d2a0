"""Raw facts, as measured; every model is fitted from these and nothing else."""

from __future__ import annotations

from typing import Literal

from rightbatch.core.facts import Environment, TaskFacts
from rightbatch.core.recipe import Precision
from rightbatch.core.record import SCHEMA_VERSION, Record
from rightbatch.core.signal import Signal
from rightbatch.core.work import StepWork

Phase = Literal["setup", "forward", "backward", "optimizer"]
Owner = Literal[
    "parameters", "gradients", "optimizer_state", "buffers", "inputs", "activations", "temporaries"
]


GradientSource = Literal["micro-batches", "per-example", "groups", "replicas"]
Coupling = Literal["batch-norm", "loss"]
"""What makes an example's gradient depend on the others of its batch."""


class WorstCase(Record):
    """The examples that cost most, and how much of the training data was looked at."""

    indices: tuple[int, ...] = ()
    """Into the training data; a batch repeats them. Empty where no two examples differ in size."""
    key: Literal["longest", "largest", "most_items", "fields"] | None = None
    """What ranks them: the longest dimension, the bytes, the number of items of one example, or two
    examples that hold the longest of different fields."""
    scanned: int
    """Examples whose size was seen; 0 where examples show none."""
    of: int

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the scan assumed and what it did not cover, in words."""
        if not self.scanned:
            return ("examples show no size: the first ones were traced, and larger ones may come",)
        assumed = "examples differ in size: every one is taken to be as large as the largest seen"
        missing = (
            f"{self.of - self.scanned:,} of {self.of:,} examples were not looked at and may be larger"
        )
        return (assumed,) * (self.key is not None) + (missing,) * (self.scanned < self.of)


class MemoryTrace(Record):
    """The ordered allocations and frees of two training steps at one micro-batch size.

    Columns of equal length; the running sum of ``delta_bytes`` is the live memory.
    """

    micro_batch_size: int
    source: Literal["fake", "kernels", "fake cuda"]
    """``fake``: traced without running; ``kernels``: what the allocator saw in a real step; ``fake
    cuda``: traced without running, on the paths that a CUDA device would take."""
    delta_bytes: tuple[int, ...]
    """Positive where a storage is born, negative where it dies."""
    operator: tuple[int, ...]
    """Index into ``operators``: who made the storage that is born or dies."""
    phase: tuple[int, ...]
    """Index into ``phases``: what the step was doing at the event."""
    owner: tuple[int, ...]
    """Index into ``owners``: what the storage holds."""
    operators: tuple[str, ...]
    phases: tuple[Phase, ...]
    owners: tuple[Owner, ...]
    storage: tuple[int, ...] = ()
    """Which storage is born or dies, numbered by birth; empty where the trace does not say."""
    caveats: tuple[str, ...] = ()
    """What the trace could not see or had to assume, in words."""
    worst_case: WorstCase | None = None
    """The examples that the batch was made of; None where they were not chosen by size."""


class StepTiming(Record):
    """Seconds of forward and backward for one micro-batch size, one entry per repetition."""

    micro_batch_size: int
    seconds: tuple[float, ...]


class ModeTiming(Record):
    """Seconds of forward and backward in another mode, each beside one step of the recipe's mode.

    The two take turns, so that a slow moment of the machine falls on both alike.
    """

    micro_batch_size: int
    seconds: tuple[float, ...]
    beside_micro_batch_size: int
    """Of the recipe's step; smaller where only the other mode was let run at this size."""
    beside_seconds: tuple[float, ...]


class ModeSamples(Record):
    """One way to run a step that is not today's here: another mode, another device, or both."""

    precision: Precision
    checkpointing: bool
    """Whether the activations of repeated blocks are computed again in backward."""
    device: str | None = None
    """An accelerator that is not here, whose step was traced and not run; None is the device here."""
    memory: tuple[MemoryTrace, ...] = ()
    timings: tuple[ModeTiming, ...] = ()
    """Empty where the step was not run."""
    works: tuple[StepWork, ...] = ()
    """Forward and backward at several micro-batch sizes, where they were counted and not run."""
    optimizer_work: StepWork | None = None
    refused: str | None = None
    """Why no step runs so; None where one does."""


class LoaderTiming(Record):
    """Seconds to read one batch, one entry per batch, with nothing else running."""

    micro_batch_size: int
    num_workers: int
    seconds: tuple[float, ...]


class SparseNorms(Record):
    """Squared norms of the two parts of a gradient whose sum is the whole: positives and negatives."""

    positive_small_sq_norm: float
    positive_big_sq_norm: float
    negative_small_sq_norm: float
    negative_big_sq_norm: float
    positives_per_example: float


class GradientSample(Record):
    """Squared gradient norms at two batch sizes, taken at the same parameters.

    The large batch is the union of the small ones. E|g_B|^2 = |G|^2 + tr(Sigma)/B
    (McCandlish et al. 2018, arXiv:1812.06162, Eq. A.1), so two sizes give both terms.
    """

    examples_seen: int
    """Training progress at which the parameters stood still."""
    small_batch_size: float
    """Harmonic mean where the small batches differ by one example, so that Eq. A.1 stays exact."""
    big_batch_size: int
    small_sq_norm: float
    """Mean over the small batches of the squared norm of their mean gradient."""
    big_sq_norm: float
    preconditioned_small_sq_norm: float | None = None
    """The same with each coordinate's square divided by sqrt(v)+eps; None without such an optimizer."""
    preconditioned_big_sq_norm: float | None = None
    source: GradientSource = "micro-batches"
    """What the small batches are: the micro-batches of accumulation, single examples, groups cut from
    one batch for the measurement, or the replicas of data-parallel training."""
    num_small_batches: int | None = None
    """How many small batches the mean is over; None where it was not recorded."""
    covered: float = 1.0
    """Share of the trainable parameters whose gradients are in the norms, above 0 and at most 1."""
    population: int | None = None
    """Examples from which the large batch was drawn without replacement; None: with replacement."""
    coupling: Coupling | None = None
    """What makes an example's gradient depend on the others of its small batch; None where nothing."""
    targets_per_example: float = 1.0
    """Counted targets (tokens, positions) in an example, on average over the large batch."""
    seconds: float | None = None
    """What taking the sample cost; None where it was not timed."""
    positives: SparseNorms | None = None
    """The same norms of the positives' and the negatives' part; None where the task declares none."""


class PilotPoint(Record):
    """Where the pilot run stood when its gradients were sampled."""

    examples_seen: int
    loss: float | None
    """Mean training loss per target since the previous point; None before the first update."""
    metrics: dict[str, float]
    """What the task's ``evaluate`` returned; empty where it was not called."""


class RateTrial(Record):
    """One learning rate, trained for a while from a point that other rates start from, too."""

    learning_rate: float
    losses: tuple[float, ...]
    """Mean training loss per target over one window of examples after another."""
    diverged: bool = False
    """Whether the loss ceased to be finite after the last window."""


class RateTuning(Record):
    """Trials of several learning rates at one batch size, over the same examples."""

    batch_size: int
    rule_rate: float
    """What the optimizer's rule gave at this batch size."""
    examples_seen: int
    """Training progress at which the trials start."""
    window_examples: int
    trials: tuple[RateTrial, ...]


class Measurements(Record):
    """Every raw sample of one task in one environment, and which stages are complete."""

    schema_version: int = SCHEMA_VERSION
    task: TaskFacts
    environment: Environment
    seed: int = 0
    """Of initialisation, data order and draws."""
    memory: tuple[MemoryTrace, ...] = ()
    step_timings: tuple[StepTiming, ...] = ()
    optimizer_seconds: tuple[float, ...] = ()
    """One optimizer step and zero_grad, without forward and backward."""
    loader_timings: tuple[LoaderTiming, ...] = ()
    gradients: tuple[GradientSample, ...] = ()
    pilot: tuple[PilotPoint, ...] = ()
    rate_tunings: tuple[RateTuning, ...] = ()
    """Learning rates that were tried at planned batch sizes."""
    rate_checks: tuple[RateTuning, ...] = ()
    """Planned rates that were tried for stability alone, beside weights that stand still."""
    modes: tuple[ModeSamples, ...] = ()
    """Other ways to run the step than the recipe's here; the gradient noise is that of all."""
    signal: Signal | None = None
    """What updates see of rare positives; None for a task that declares none."""
    complete: tuple[str, ...] = ()
    """Stages that need no more samples: ``memory``, ``loader``, ``speed``, ``noise``, ``modes``."""
    notes: tuple[str, ...] = ()
    """What cut a stage short, in words."""
