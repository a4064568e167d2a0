"""How a recipe's constants move when only the batch size changes.

Notation: ``ratio`` is the new batch size over the old one; the run keeps its number of examples, so
updates shrink by the same ratio. Every rule is local: it assumes a tuned base and a batch below the
critical size, which is why a moved learning rate deserves a re-tune on {1/2, 1, 2} times its value.
Imports ``core`` only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rightbatch.core.errors import InvalidInputError, did_you_mean
from rightbatch.core.facts import OPTIMIZER_FAMILIES, OptimizerFamily
from rightbatch.core.plan import Decision
from rightbatch.core.recipe import Recipe
from rightbatch.core.units import format_number

_FAMILIES: dict[str, OptimizerFamily] = {n.lower(): f for n, f in OPTIMIZER_FAMILIES.items()}
# rate ~ ratio**power: SGD's step is the gradient's size, Adam's only its direction.
_RATE_POWERS: dict[OptimizerFamily, tuple[float, str]] = {
    "sgd": (1.0, "goyal2017"),
    "adam": (0.5, "malladi2022"),
}
# Where the optimizer subtracts rate * weight_decay * weight unscaled. Adam's own weight decay is
# divided by its second moment first, and no rule is known for that.
_PLAIN_DECAY = {"sgd", "asgd", "adamw"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledRow:
    """The constants for one batch size."""

    batch_size: int
    updates_per_epoch: int | None
    """None where the number of training examples was not given."""
    decisions: tuple[Decision, ...]
    """``learning_rate`` first, then whichever other constants were given."""


def scale_learning_rate(base: float, ratio: float, family: OptimizerFamily) -> Decision:
    """Move a tuned learning rate: linear for SGD, square root for Adam-like, kept for the rest.

    Goyal et al. (2017), arXiv:1706.02677, Sec. 2.1; Malladi et al. (2022), arXiv:2205.10287.

    >>> [scale_learning_rate(0.001, 4.0, family).value for family in ("sgd", "adam", "other")]
    [0.004, 0.002, 0.001]
    """
    if family not in _RATE_POWERS:
        return _kept("learning_rate", base, "no rule is known for this optimizer")
    power, source = _RATE_POWERS[family]
    rule = "base * ratio" if power == 1 else f"base * ratio**{power:g}"
    return _moved("learning_rate", base, base * ratio**power, ratio, rule=rule, source=source)


def scale_weight_decay(base: float, ratio: float, rate_ratio: float, optimizer: str) -> Decision:
    """Keep the time constant B / (rate * weight_decay * N), in epochs, of the decaying weights.

    Wang and Aitchison (2024), arXiv:2405.13698. It follows that weight decay stays put under a
    linear rate and grows by the square root of the ratio under a square-root rate.

    Args:
        base: today's weight decay.
        ratio: new batch size over the old.
        rate_ratio: new learning rate over the old.
        optimizer: name of the class; the rule holds where weight decay is not preconditioned.

    >>> scale_weight_decay(0.01, 4.0, 2.0, "AdamW").value
    0.02
    """
    if optimizer.lower() not in _PLAIN_DECAY:
        return _kept("weight_decay", base, f"no rule is known for the weight decay of {optimizer}")
    rule = "base * ratio / (rate / base rate)"
    value = base * (ratio / rate_ratio)
    return _moved("weight_decay", base, value, ratio, rule=rule, source="wang2024")


def scale_betas(betas: tuple[float, float], ratio: float) -> tuple[Decision, Decision]:
    """Keep each moving average's half-life in examples: ``beta**ratio``.

    Marek et al. (2025), arXiv:2507.07101, state it for beta2. It agrees to first order with the
    1 - ratio * (1 - beta) of Malladi et al. (2022), which also moves beta1, and never leaves (0, 1).

    >>> [decision.value for decision in scale_betas((0.5, 0.9), 2.0)]
    [0.25, 0.81]
    """
    rule = "base**ratio"
    beta1, beta2 = betas
    return (
        _moved("beta1", beta1, beta1**ratio, ratio, rule=rule, source="malladi2022"),
        _moved("beta2", beta2, beta2**ratio, ratio, rule=rule, source="marek2025"),
    )


def scale_ema_decay(base: float, ratio: float) -> Decision:
    """Keep the averaged weights' horizon in examples: ``decay**ratio``.

    Busbridge et al. (2023), arXiv:2307.13813.

    >>> round(scale_ema_decay(0.99, 2.0).value, 4)
    0.9801
    """
    source = "busbridge2023"
    return _moved("ema_decay", base, base**ratio, ratio, rule="base**ratio", source=source)


def scale_warmup_steps(base: int, ratio: float) -> Decision:
    """Keep the examples that warmup lasts, so updates shrink by the ratio; at least one stays.

    Goyal et al. (2017), arXiv:1706.02677, Sec. 2.2, warm up over epochs, not over updates.

    >>> [scale_warmup_steps(100, ratio).value for ratio in (4.0, 1000.0)]
    [25, 1]
    """
    value = max(1, round(base / ratio)) if base else 0
    rule = "base / ratio, at least 1"
    return _moved("warmup_steps", base, value, ratio, rule=rule, source="goyal2017")


def scaling_table(
    recipe: Recipe, batch_sizes: Sequence[int], num_examples: int | None = None
) -> list[ScaledRow]:
    """Move a recipe's constants to each of several batch sizes.

    Args:
        recipe: tuned at its own batch size; its optimizer is the name of a ``torch.optim`` class.
        batch_sizes: examples per update, one for each row.
        num_examples: training examples, for the updates per epoch.

    Raises:
        InvalidInputError: the optimizer is unknown.
    """
    name = recipe.optimizer_name.lower()
    if name not in _FAMILIES:
        hint = did_you_mean(name, _FAMILIES)
        raise InvalidInputError(f"optimizer {name!r}", need="a torch.optim class", hint=hint)
    return [
        ScaledRow(
            batch_size=size,
            updates_per_epoch=None if num_examples is None else math.ceil(num_examples / size),
            decisions=tuple(_decisions(recipe, size / recipe.batch_size, _FAMILIES[name])),
        )
        for size in batch_sizes
    ]


def _decisions(recipe: Recipe, ratio: float, family: OptimizerFamily) -> Iterator[Decision]:
    rate = scale_learning_rate(recipe.lr, ratio, family)
    yield rate
    if recipe.weight_decay is not None:
        rate_ratio = float(rate.value or 0) / recipe.lr
        yield scale_weight_decay(recipe.weight_decay, ratio, rate_ratio, recipe.optimizer_name)
    if recipe.betas is not None:
        yield from scale_betas(recipe.betas, ratio)
    if recipe.ema_decay is not None:
        yield scale_ema_decay(recipe.ema_decay, ratio)
    if recipe.warmup_examples:
        yield scale_warmup_steps(round(recipe.warmup_examples / recipe.batch_size), ratio)


def _moved(name: str, base: float, value: float, ratio: float, *, rule: str, source: str) -> Decision:
    """A constant moved by a cited formula."""
    moved = f"{format_number(base)} {'stays' if value == base else f'becomes {format_number(value)}'}"
    reason = f"{moved} at {format_number(ratio)} x the batch size"
    return Decision(name=name, value=value, evidence="derived", rule=rule, source=source, reason=reason)


def _kept(name: str, base: float, why: str) -> Decision:
    """A constant left alone because nothing says how it should move."""
    reason = f"{why}, so {format_number(base)} is kept"
    return Decision(
        name=name, value=base, evidence="assumed", rule="kept", source="default", reason=reason
    )
