"""Raw facts, as measured; every model is fitted from these and nothing else."""

from __future__ import annotations

from typing import Literal

from rightbatch.core.facts import Environment, TaskFacts
from rightbatch.core.record import SCHEMA_VERSION, Record

Phase = Literal["setup", "forward", "backward", "optimizer"]
Owner = Literal[
    "parameters", "gradients", "optimizer_state", "buffers", "inputs", "activations", "temporaries"
]


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


class StepTiming(Record):
    """Seconds of forward and backward for one micro-batch size, one entry per repetition."""

    micro_batch_size: int
    seconds: tuple[float, ...]


class LoaderTiming(Record):
    """Seconds to read one batch, one entry per batch, with nothing else running."""

    micro_batch_size: int
    num_workers: int
    seconds: tuple[float, ...]


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
    source: Literal["micro-batches"] = "micro-batches"


class PilotPoint(Record):
    """Where the pilot run stood when its gradients were sampled."""

    examples_seen: int
    loss: float
    """Mean training loss per target since the previous point."""
    metrics: dict[str, float]
    """What the task's ``evaluate`` returned; empty where it was not called."""


class Measurements(Record):
    """Every raw sample of one task in one environment, and which stages are complete."""

    schema_version: int = SCHEMA_VERSION
    task: TaskFacts
    environment: Environment
    memory: tuple[MemoryTrace, ...] = ()
    step_timings: tuple[StepTiming, ...] = ()
    optimizer_seconds: tuple[float, ...] = ()
    """One optimizer step and zero_grad, without forward and backward."""
    loader_timings: tuple[LoaderTiming, ...] = ()
    gradients: tuple[GradientSample, ...] = ()
    pilot: tuple[PilotPoint, ...] = ()
    complete: tuple[str, ...] = ()
    """Stages that need no more samples: ``memory``, ``loader``, ``speed``, ``noise``."""
    notes: tuple[str, ...] = ()
    """What cut a stage short, in words."""
