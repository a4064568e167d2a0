"""How a recipe's constants move when only the batch size changes: one implementation for all verbs.

Notation: ``ratio`` is the new batch size over the old one; the run keeps its number of examples, so
updates shrink by the same ratio. Every rule is local: it assumes a tuned base and a batch below the
critical size, which is why a moved learning rate deserves a re-tune on {1/2, 1, 2} times its value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rightbatch.core.facts import OptimizerFamily
from rightbatch.core.plan import Decision, Evidence, Interval
from rightbatch.core.recipe import Constants, Recipe
from rightbatch.core.units import format_number
from rightbatch.plan.rates import gain

# rate ~ ratio**power: SGD's step is the gradient's size, Adam's only its direction.
RATE_POWERS: dict[OptimizerFamily, float] = {"sgd": 1.0, "adam": 0.5, "other": 0.0}
# Where the optimizer subtracts rate * weight_decay * weight unscaled. Adam's own weight decay is
# divided by its second moment first, and no rule is known for that.
_PLAIN_DECAY = {"sgd", "asgd", "adamw"}
# What torch.optim takes where a recipe leaves a constant open; only constants that a rule moves.
TORCH_DEFAULTS: dict[str, dict[str, object]] = {
    name: {"betas": (0.9, 0.999), "eps": 1e-8} for name in ("Adam", "AdamW", "NAdam", "RAdam", "Adamax")
}
TORCH_DEFAULTS["AdamW"] |= {"weight_decay": 0.01}
TORCH_BATCH_NORM_MOMENTUM = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """From one batch size to another, with an optimizer and what is known of the noise."""

    ratio: float
    """The new batch over the old."""
    family: OptimizerFamily
    optimizer_class: str
    critical: Interval | None = None
    """Critical batch size over the old batch; None where it is not known, or not bounded above."""


def with_defaults(recipe: Recipe, optimizer_class: str) -> Recipe:
    """Fill in the optimizer's own defaults, so that they can be moved; a factory keeps its own.

    >>> with_defaults(Recipe(lr=0.1, batch_size=8, epochs=1), "AdamW").weight_decay
    0.01
    """
    if ":" in recipe.optimizer_name:
        return recipe
    left_open = {
        name: value
        for name, value in TORCH_DEFAULTS.get(optimizer_class, {}).items()
        if getattr(recipe, name) is None
    }
    return recipe.replace(**left_open)


def move_constants(constants: Constants, rate: float, move: Move) -> Iterator[Decision]:
    """Every constant that the recipe holds, changed or kept, the learning rate first.

    Args:
        constants: of the recipe, tuned at the old batch; what is None is left out.
        rate: its learning rate.
        move: from which batch to which.
    """
    moved = scale_learning_rate(rate, move.ratio, move.family, move.critical)
    yield moved
    yield from scale_companions(constants, move, float(moved.value or rate) / rate)


def scale_companions(constants: Constants, move: Move, rate_ratio: float) -> Iterator[Decision]:
    """Every constant beside the learning rate; weight decay follows the rate's own ratio."""
    ratio = move.ratio
    if constants.momentum is not None:
        yield _keep_momentum(constants.momentum)
    if constants.betas is not None:
        yield from scale_betas(constants.betas, ratio, move.family)
    if constants.eps is not None:
        yield scale_eps(constants.eps, ratio, move.family)
    if constants.weight_decay is not None:
        yield scale_weight_decay(constants.weight_decay, ratio, rate_ratio, move.optimizer_class)
    if constants.ema_decay is not None:
        yield scale_ema_decay(constants.ema_decay, ratio)


def scale_learning_rate(
    base: float, ratio: float, family: OptimizerFamily, critical: Interval | None = None
) -> Decision:
    """Move a tuned learning rate by its optimizer's rule.

    SGD's follows AdaScale's gain where the critical batch size is known: linear below it, saturating
    above; and is linear where it is not. An Adam-like one's follows the square root, and no rule is
    known for the rest. Goyal et al. (2017), arXiv:1706.02677, Sec. 2.1; Johnson et al. (2020),
    arXiv:2007.05105; Malladi et al. (2022), arXiv:2205.10287.

    Args:
        base: today's rate.
        ratio: new batch size over the old.
        family: of the optimizer.
        critical: critical batch size over the old batch, where it is known.

    >>> [scale_learning_rate(0.001, 4.0, family).value for family in ("sgd", "adam", "other")]
    [0.004, 0.002, 0.001]
    """
    name = "learning_rate"
    if family == "other":
        return _kept(name, base, "no rule is known for this optimizer")
    if family == "adam":
        return _moved(
            name,
            base,
            base * ratio**0.5,
            ratio,
            rule="base * ratio**0.5",
            source="malladi2022",
            answers="The linear rule holds for Adam too: no, its update has the gradient's direction"
            " and not its size",
        )
    answers = "A k times larger batch takes a k times larger rate: for SGD, below the noise scale"
    if critical is None:
        return _moved(
            name, base, base * ratio, ratio, rule="base * ratio", source="goyal2017", answers=answers
        )
    decision = _moved(
        name,
        base,
        base * gain(ratio, critical.value),
        ratio,
        rule="base * (1 + B_crit / B_old) / (1 + B_crit / B)",
        source="johnson2020",
        answers=answers,
    )
    if critical.low is None or critical.high is None:
        return decision
    low, high = sorted(base * gain(ratio, noise) for noise in (critical.low, critical.high))
    return decision.replace(low=low, high=high)


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
    return _moved(
        "weight_decay",
        base,
        base * (ratio / rate_ratio),
        ratio,
        rule="base * ratio / (rate / base rate)",
        source="wang2024",
        answers="Weight decay grows with the square root of the batch: only where the rate does",
    )


def scale_betas(
    betas: tuple[float, float], ratio: float, family: OptimizerFamily = "adam"
) -> tuple[Decision, Decision]:
    """Keep each moving average's half-life in examples: ``beta**ratio``.

    Marek et al. (2025), arXiv:2507.07101, state it for beta2. It agrees to first order with the
    1 - ratio * (1 - beta) of Malladi et al. (2022), which also moves beta1, and never leaves (0, 1).

    >>> [decision.value for decision in scale_betas((0.5, 0.9), 2.0)]
    [0.25, 0.81]
    """
    rule = "base**ratio"
    beta1, beta2 = betas
    if family != "adam":
        why = "no rule is known for the averages of this optimizer"
        return _kept("beta1", beta1, why), _kept("beta2", beta2, why)
    return (
        _moved("beta1", beta1, beta1**ratio, ratio, rule=rule, source="malladi2022"),
        _moved("beta2", beta2, beta2**ratio, ratio, rule=rule, source="marek2025"),
    )


def scale_eps(base: float, ratio: float, family: OptimizerFamily) -> Decision:
    """Keep eps in proportion to the gradient noise that it is added to: ``base / sqrt(ratio)``.

    Malladi et al. (2022), arXiv:2205.10287, Def. 5.2.

    >>> scale_eps(1e-8, 4.0, "adam").value
    5e-09
    """
    if family != "adam":
        return _kept("eps", base, "no rule is known for the eps of this optimizer")
    return _moved("eps", base, base / ratio**0.5, ratio, rule="base / ratio**0.5", source="malladi2022")


def scale_ema_decay(base: float, ratio: float) -> Decision:
    """Keep the averaged weights' horizon in examples: ``decay**ratio``.

    Busbridge et al. (2023), arXiv:2307.13813.

    >>> round(scale_ema_decay(0.99, 2.0).value, 4)
    0.9801
    """
    return _moved(
        "ema_decay",
        base,
        base**ratio,
        ratio,
        rule="base**ratio",
        source="busbridge2023",
        answers="The average is updated once per optimizer step: yes, and its decay follows the batch",
    )


def scale_batch_norm_momentum(base: float, ratio: float) -> Decision:
    """Keep the examples that running statistics remember: ``1 - (1 - momentum)**ratio``.

    They move once for each micro-batch, so ``ratio`` is that of the micro-batches.

    >>> round(scale_batch_norm_momentum(0.1, 2.0).value, 4)
    0.19
    """
    return _moved(
        "batch_norm_momentum",
        base,
        1 - (1 - base) ** ratio,
        ratio,
        rule="1 - (1 - base)**ratio, of micro-batches",
        source="batch_norm_window",
        answers="Large batches need a smaller BatchNorm momentum: no, a larger one",
    )


def scale_warmup_steps(base: int, ratio: float) -> Decision:
    """Keep the examples that warmup lasts, so updates shrink by the ratio; at least one stays.

    Goyal et al. (2017), arXiv:1706.02677, Sec. 2.2, warm up over epochs, not over updates.

    >>> [scale_warmup_steps(100, ratio).value for ratio in (4.0, 1000.0)]
    [25, 1]
    """
    value = max(1, round(base / ratio)) if base else 0
    rule = "base / ratio, at least 1"
    return _moved("warmup_steps", base, value, ratio, rule=rule, source="goyal2017")


def untuned_warmup(beta2: float) -> Decision:
    """Updates of linear warmup that need no tuning for Adam: ``2 / (1 - beta2)``.

    Ma and Yarats (2021), arXiv:1910.04209, Sec. 5.

    >>> untuned_warmup(0.999).value
    2000
    """
    value = round(2 / (1 - beta2))
    return Decision(
        name="untuned_warmup_steps",
        value=value,
        evidence="derived",
        rule="2 / (1 - beta2)",
        source="ma2021",
        reason=f"two horizons of beta2 = {format_number(beta2)}, for an Adam that was never warmed up",
    )


def _keep_momentum(base: float) -> Decision:
    """Goyal et al. (2017), Sec. 3: kept beside a linear rate; torch's form needs no correction."""
    return Decision(
        name="momentum",
        value=base,
        evidence="assumed",
        rule="kept",
        source="goyal2017",
        reason=f"{format_number(base)} is kept beside a scaled rate; torch multiplies the rate after"
        " averaging, so that no correction is due when the rate moves",
        answers="Momentum works best with small batches: no, it helps more the larger they are",
    )


def _moved(
    name: str,
    base: float,
    value: float,
    ratio: float,
    *,
    rule: str,
    source: str,
    answers: str | None = None,
) -> Decision:
    """A constant moved by a cited formula."""
    moved = f"{format_number(base)} {'stays' if value == base else f'becomes {format_number(value)}'}"
    evidence: Evidence = "derived"
    return Decision(
        name=name,
        value=value,
        evidence=evidence,
        rule=rule,
        source=source,
        reason=f"{moved} at {format_number(ratio)} x the batch size",
        answers=answers,
    )


def _kept(name: str, base: float, why: str) -> Decision:
    """A constant left alone because nothing says how it should move."""
    reason = f"{why}, so {format_number(base)} is kept"
    return Decision(
        name=name, value=base, evidence="assumed", rule="kept", source="default", reason=reason
    )
