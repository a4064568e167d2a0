"""A recipe's constants over a range of batch sizes, all rules for the rate side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rightbatch.core.errors import InvalidInputError, did_you_mean
from rightbatch.core.facts import FAMILIES_BY_NAME, OPTIMIZER_FAMILIES, OptimizerFamily
from rightbatch.core.plan import Decision, Interval
from rightbatch.core.recipe import Recipe
from rightbatch.plan.rates import Surge, gain
from rightbatch.plan.scaling import (
    Move,
    move_constants,
    scale_batch_norm_momentum,
    scale_warmup_steps,
    untuned_warmup,
    with_defaults,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What one rule makes of the learning rate."""

    rule: str
    value: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledRow:
    """The constants for one batch size."""

    batch_size: int
    updates_per_epoch: int | None
    """None where the number of training examples was not given."""
    decisions: tuple[Decision, ...]
    """``learning_rate`` by the optimizer's rule first, then whichever other constants were given."""
    rates: tuple[Rate, ...]
    """The learning rate under every rule that the given numbers allow."""


def find_family(optimizer: str) -> OptimizerFamily:
    """Family of a ``torch.optim`` class in any case; ``other`` for a name that resembles none.

    >>> find_family("AdamW"), find_family("lion")
    ('adam', 'other')

    Raises:
        InvalidInputError: the name looks like a class mistyped.
    """
    name = optimizer.lower()
    if name in FAMILIES_BY_NAME:
        return FAMILIES_BY_NAME[name]
    hint = did_you_mean(name, FAMILIES_BY_NAME)
    if hint.startswith("did you mean"):
        hint += " (--optimizer other keeps every constant)"
        raise InvalidInputError(f"optimizer {name!r}", need="a torch.optim class", hint=hint)
    return "other"


def scaling_table(
    recipe: Recipe,
    batch_sizes: Sequence[int],
    num_examples: int | None = None,
    *,
    noise_scale: float | None = None,
    surge: Surge | None = None,
    batch_norm_momentum: float | None = None,
) -> list[ScaledRow]:
    """Move a recipe's constants to each of several batch sizes.

    Args:
        recipe: tuned at its own batch size; its optimizer is the name of a ``torch.optim`` class, whose
            defaults fill in what the recipe leaves open.
        batch_sizes: examples per update, one for each row.
        num_examples: training examples, for the updates per epoch.
        noise_scale: critical batch size in examples, for the rules that saturate.
        surge: fitted to pairs of batch and rate, for the rule that falls again.
        batch_norm_momentum: of the model's BatchNorm layers.

    Raises:
        InvalidInputError: the optimizer is a mistyped one, or a number is out of its range.
    """
    if noise_scale is not None and not noise_scale > 0:
        found = f"noise scale {noise_scale:g}"
        raise InvalidInputError(found, need="above 0 examples", hint="rightbatch noise TASK")
    if batch_norm_momentum is not None and not 0 <= batch_norm_momentum <= 1:
        found, hint = f"BatchNorm momentum {batch_norm_momentum:g}", "torch's default is 0.1"
        raise InvalidInputError(found, need="a share from 0 to 1", hint=hint)
    family = find_family(recipe.optimizer_name)
    names = {name.lower(): name for name in OPTIMIZER_FAMILIES}
    recipe = with_defaults(recipe, names.get(recipe.optimizer_name.lower(), ""))
    today = recipe.batch_size
    relative = noise_scale / today if noise_scale else None
    critical = Interval(value=relative, low=None, high=None) if relative else None
    rows: list[ScaledRow] = []
    for size in batch_sizes:
        ratio = size / today
        move = Move(
            ratio=ratio, family=family, optimizer_class=recipe.optimizer_name, critical=critical
        )
        decisions = [*move_constants(recipe, recipe.lr, move)]
        if batch_norm_momentum is not None:
            decisions.append(scale_batch_norm_momentum(batch_norm_momentum, ratio))
        if recipe.betas is not None and family == "adam":
            decisions.append(untuned_warmup(recipe.betas[1] ** ratio))
        if recipe.warmup_examples:
            decisions.append(scale_warmup_steps(round(recipe.warmup_examples / today), ratio))
        rows.append(
            ScaledRow(
                batch_size=size,
                updates_per_epoch=None if num_examples is None else math.ceil(num_examples / size),
                decisions=tuple(decisions),
                rates=tuple(_rates(recipe.lr, ratio, relative, surge, size)),
            )
        )
    return rows


def _rates(
    base: float, ratio: float, noise: float | None, surge: Surge | None, size: int
) -> Iterator[Rate]:
    yield Rate(rule="linear", value=base * ratio, source="goyal2017")
    yield Rate(rule="square root", value=base * ratio**0.5, source="malladi2022")
    if noise is not None:
        yield Rate(rule="gain", value=base * gain(ratio, noise), source="johnson2020")
        yield Rate(rule="root of gain", value=base * gain(ratio, noise) ** 0.5, source="mccandlish2018")
    if surge is not None:
        yield Rate(rule="surge", value=surge.rate(size), source="li2024")
