"""Measurements without noise, made from laws that a test knows: the best batch follows on paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

from rightbatch.core.facts import Environment, TaskFacts
from rightbatch.core.recipe import LoaderOptions, Recipe, Target
from rightbatch.core.samples import (
    GradientSample,
    LoaderTiming,
    Measurements,
    MemoryTrace,
    Owner,
    StepTiming,
)

SIZES = tuple(2**k for k in range(11))


@dataclass(frozen=True, kw_only=True)
class Laws:
    """``a + c b`` for time and memory, and one noise scale all along the pilot."""

    step_seconds: tuple[float, float] = (1e-3, 1e-5)
    optimizer_seconds: float = 0.0
    load_seconds: tuple[float, float] = (0.0, 0.0)
    num_workers: int = 0
    bytes: tuple[int, int] = (1_000_000, 1_000)
    noise_scale: float = 100.0
    sizes: tuple[int, ...] = SIZES

    def update_seconds(self, batch: float) -> float:
        """One micro-batch, with the loading in the same process."""
        fixed = self.step_seconds[0] + self.optimizer_seconds + self.load_seconds[0]
        return fixed + (self.step_seconds[1] + self.load_seconds[1]) * batch


def facts(**changes: Any) -> TaskFacts:
    """SGD at batch 32 on 10,000 examples."""
    values: dict[str, Any] = {
        "name": "known",
        "spec": "known.py",
        "num_train_examples": 10_000,
        "num_valid_examples": 1_000,
        "num_parameters": 1_000,
        "num_trainable_parameters": 1_000,
        "num_batch_norm_layers": 0,
        "optimizer_class": "SGD",
        "optimizer_family": "sgd",
        "recipe": Recipe(optimizer="sgd", lr=0.1, batch_size=32, epochs=10),
        "target": Target("accuracy", 0.9),
        "loader": LoaderOptions(),
        "fingerprint": "0" * 16,
    }
    return TaskFacts(**(values | changes))


def environment(**changes: Any) -> Environment:
    """A machine with 1 GiB."""
    values: dict[str, Any] = {
        "device": "cpu",
        "device_name": "a processor",
        "memory_bytes": 2**30,
        "num_threads": 1,
        "python": "3.12.0",
        "torch": "2.13.0",
        "platform": "Linux x86_64",
    }
    return Environment(**(values | changes))


def trace(law: tuple[int, int], size: int) -> MemoryTrace:
    """Parameters, then two steps whose inputs and activations are born and die."""
    fixed, slope = law
    inputs, activations = 8 * size, (slope - 8) * size
    step = (inputs, activations, -activations, -inputs)
    return MemoryTrace(
        micro_batch_size=size,
        source="fake",
        delta_bytes=(fixed, *step, *step),
        operator=(0, *(1, 2, 2, 1) * 2),
        phase=(0, *(0, 1, 2, 2) * 2),
        owner=(0, *(4, 5, 5, 4) * 2),
        operators=("model", "batch", "linear"),
        phases=("setup", "forward", "backward"),
        owners=get_args(Owner),
    )


def sample(
    signal: float, covariance: float, *, seen: int = 1000, small: float = 32, big: int = 256
) -> GradientSample:
    """Norms exactly as Eq. A.1 of McCandlish et al. (2018) has them on average."""
    return GradientSample(
        examples_seen=seen,
        small_batch_size=small,
        big_batch_size=big,
        small_sq_norm=signal + covariance / small,
        big_sq_norm=signal + covariance / big,
    )


def measurements(laws: Laws | None = None, **changes: Any) -> Measurements:
    """All four stages, by the laws."""
    laws = laws or Laws()
    (a, c), (l0, l1) = laws.step_seconds, laws.load_seconds
    values: dict[str, Any] = {
        "task": facts(),
        "environment": environment(),
        "memory": tuple(trace(laws.bytes, b) for b in (2, 3, 4, 64)),
        "step_timings": tuple(
            StepTiming(micro_batch_size=b, seconds=(a + c * b,) * 5) for b in laws.sizes
        ),
        "optimizer_seconds": (laws.optimizer_seconds,) * 5,
        "loader_timings": tuple(
            LoaderTiming(
                micro_batch_size=b, num_workers=laws.num_workers, seconds=(max(l0 + l1 * b, 1e-12),) * 4
            )
            for b in (8, 64, 512)
        ),
        "gradients": tuple(
            sample(1.0, laws.noise_scale, seen=seen) for seen in (1000, 2000, 4000) for _ in range(6)
        ),
        "complete": ("memory", "loader", "speed", "noise"),
    }
    return Measurements(**(values | changes))
