"""In which order an epoch visits the training examples: a function of sampler, seed and epoch."""

from __future__ import annotations

from typing import Literal

import numpy as np

SamplerName = Literal["shuffle", "sequential", "replacement"]


def fixed_sample(num_examples: int, most: int) -> list[int]:
    """Indices of examples to evaluate on, the same ones each time: random, or all where they are few.

    >>> fixed_sample(3, 10)
    [0, 1, 2]
    """
    return sorted(np.random.default_rng(0).permutation(num_examples)[:most].tolist())


def epoch_order(sampler: SamplerName, num_examples: int, *, seed: int, epoch: int) -> np.ndarray:
    """Indices of an epoch's examples, in order: int64 [num_examples].

    >>> epoch_order("sequential", 4, seed=0, epoch=7)
    array([0, 1, 2, 3])
    """
    if sampler == "sequential":
        return np.arange(num_examples)
    generator = np.random.default_rng((seed, epoch))
    if sampler == "shuffle":
        return generator.permutation(num_examples)
    return generator.integers(num_examples, size=num_examples)
