"""What is known before anything is run, and a line of advice drawn from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from rightbatch.core.devices import Accelerator
from rightbatch.core.errors import InvalidInputError, did_you_mean
from rightbatch.core.facts import FAMILIES_BY_NAME, OptimizerFamily
from rightbatch.core.plan import Decision, Evidence, Objective
from rightbatch.plan.transformer_config import TransformerConfig

Normalization = Literal["batch", "group", "layer", "none"]

PLAN, MEMORY, SPEED = (f"rightbatch {verb} my_task.py" for verb in ("plan", "memory", "speed"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What is known without running anything; None is unknown."""

    accelerator: Accelerator | None = None
    objective: Objective = "balanced"
    fine_tuning: bool = False
    num_train_examples: int | None = None
    num_train_tokens: int | None = None
    """Of a language model's whole run."""
    num_parameters: int | None = None
    transformer: TransformerConfig | None = None
    sequence_length: int | None = None
    optimizer: str = "adamw"
    batch_size: int | None = None
    """Today's global batch, in examples."""
    learning_rate: float | None = None
    """Today's, tuned at ``batch_size``."""
    normalization: Normalization | None = None
    positive_fraction: float | None = None
    """Of all targets."""
    targets_per_example: int = 1
    num_replicas: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One line of a starting configuration."""

    decision: Decision
    command: str
    """What would measure it."""


def line_of(
    name: str,
    value: float | int | str | None,
    evidence: Evidence,
    *,
    rule: str,
    source: str,
    reason: str,
    command: str = PLAN,
    bounds: tuple[float | None, float | None] = (None, None),
) -> Advice:
    """A line of advice; ``bounds`` are the range in which the value may lie."""
    low, high = bounds
    decision = Decision(
        name=name,
        value=value,
        evidence=evidence,
        rule=rule,
        source=source,
        reason=reason,
        low=low,
        high=high,
    )
    return Advice(decision=decision, command=command)


def check_situation(situation: Situation) -> OptimizerFamily:
    """Refuse numbers that no training has, and look up how the optimizer's update scales.

    Raises:
        InvalidInputError: as ``advise`` says.
    """
    counts = {
        "examples": situation.num_train_examples,
        "tokens": situation.num_train_tokens,
        "parameters": situation.num_parameters,
        "seq": situation.sequence_length,
        "batch": situation.batch_size,
        "lr": situation.learning_rate,
        "targets": situation.targets_per_example,
        "replicas": situation.num_replicas,
    }
    for name, count in counts.items():
        if count is not None and not 0 < count < math.inf:
            raise InvalidInputError(
                f"--{name} {count}", need="a positive number", hint=f"change --{name}"
            )
    fraction = situation.positive_fraction
    if fraction is not None and not 0 < fraction < 1:
        need, hint = "a fraction between 0 and 1", "write 0.001 for one in a thousand"
        raise InvalidInputError(f"--positives {fraction}", need=need, hint=hint)
    if situation.num_train_tokens and not (
        situation.sequence_length and (situation.transformer or situation.num_parameters)
    ):
        found = (
            f"--tokens {situation.num_train_tokens:,} without a model and the length of its sequences"
        )
        hint = "give --hf-config or --params, and --seq"
        raise InvalidInputError(found, need="both, for the laws that count tokens", hint=hint)
    if situation.transformer and situation.accelerator and not situation.sequence_length:
        found = f"a model's config and {situation.accelerator.title}, without the length of sequences"
        raise InvalidInputError(found, need="tokens per sequence, for the memory", hint="give --seq")
    if (family := FAMILIES_BY_NAME.get(situation.optimizer.lower())) is None:
        hint = did_you_mean(situation.optimizer.lower(), FAMILIES_BY_NAME)
        raise InvalidInputError(
            f"--optimizer {situation.optimizer}", need="a torch.optim class", hint=hint
        )
    return family
