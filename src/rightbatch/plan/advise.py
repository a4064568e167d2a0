"""A starting point without code: from device, model and priorities to a configuration with reasons.

Nothing is measured here, so hardly anything is known. Every line says on what it rests and which
command would replace it by a measurement.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

from rightbatch.core.facts import OptimizerFamily
from rightbatch.plan.scaling import scale_learning_rate
from rightbatch.plan.situation import PLAN, Advice, Situation, check_situation, line_of
from rightbatch.plan.starting_batch import starting_batch, starting_split

# Below this many examples per normalization group accuracy falls: Wu and He (2018), Sec. 4.1.
SMALLEST_NORM_GROUP = 16
_WARMUP_SHARE = 0.05  # Goyal et al. (2017): 5 of 90 epochs
# Rates to begin a search at; None scales with nothing that is known here.
_FIRST_RATES: dict[tuple[OptimizerFamily, bool], float] = {
    ("adam", False): 1e-3,
    ("adam", True): 2e-5,
    ("sgd", False): 0.1,
    ("sgd", True): 0.01,
}


def advise(situation: Situation) -> list[Advice]:
    """Propose a starting configuration, each line with its evidence and what would measure it.

    Raises:
        InvalidInputError: a number is out of its range, or the optimizer is unknown.
        InfeasibleError: the transformer's weights alone exceed the device.
    """
    family = check_situation(situation)
    batch = starting_batch(situation)
    size = int(cast(int, batch.decision.value))
    return [batch, *starting_split(situation, size), *_rest(situation, size, family)]


def _rest(situation: Situation, batch: int, family: OptimizerFamily) -> Iterator[Advice]:
    yield _rate(situation, batch, family)
    yield line_of(
        "warmup_share",
        _WARMUP_SHARE,
        "assumed",
        rule="5 of 90 epochs",
        source="goyal2017",
        reason="whether it is needed depends on curvature early on; it costs little",
    )
    if situation.num_train_examples is not None:
        yield line_of(
            "updates_per_epoch",
            math.ceil(situation.num_train_examples / batch),
            "derived",
            rule="examples / batch",
            source="definition",
            reason=f"{situation.num_train_examples:,} examples in batches of {batch:,}",
        )
    if situation.normalization == "batch":
        yield line_of(
            "smallest_micro_batch_size",
            SMALLEST_NORM_GROUP,
            "assumed",
            rule="examples per BatchNorm group",
            source="wu2018",
            reason="statistics of fewer get noisy (ResNet-50: 23.6 % error at 32, 34.7 % at 2), and"
            " accumulation does not enlarge the group",
        )
    if situation.positive_fraction is not None:
        yield from _sparse(situation.positive_fraction, batch * situation.targets_per_example)


def _rate(situation: Situation, batch: int, family: OptimizerFamily) -> Advice:
    rate, today = situation.learning_rate, situation.batch_size
    if rate is not None and today is not None:
        return Advice(decision=scale_learning_rate(rate, batch / today, family), command=PLAN)
    first = rate or _FIRST_RATES.get((family, situation.fine_tuning))
    rule = "today's" if rate else "where a search customarily begins"
    reason = "no rule gives a rate from nothing: try a third and three times it"
    if first is None:
        rule = "none"
        reason = f"no customary rate is known for {situation.optimizer}: begin with its authors'"
    return line_of("learning_rate", first, "assumed", rule=rule, source="practice", reason=reason)


def _sparse(fraction: float, targets: int) -> Iterator[Advice]:
    """Expected positives and the bias of an output that starts at the prior."""
    none = (1 - fraction) ** targets
    yield line_of(
        "expected_positives",
        round(fraction * targets, 3),
        "derived",
        rule="fraction x targets of an update",
        source="sparse_law",
        reason=f"an update holds no positive in {none:.2%} of cases if positives fall independently, in"
        " more where they cluster",
    )
    yield line_of(
        "prior_bias",
        round(-math.log((1 - fraction) / fraction), 4),
        "derived",
        rule="-log((1 - p) / p)",
        source="lin2017",
        reason="the output starts at the prior, where positives and negatives pull equally",
    )
