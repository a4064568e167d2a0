"""Constants moved to another batch size, against the published statement of each rule."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.facts import OPTIMIZER_FAMILIES
from rightbatch.core.recipe import Recipe
from rightbatch.core.sources import SOURCES
from rightbatch.plan.scaling import (
    ScaledRow,
    scale_betas,
    scale_ema_decay,
    scale_learning_rate,
    scale_warmup_steps,
    scale_weight_decay,
    scaling_table,
)
from rightbatch.tasks.build import optimizer_family

RATIOS = st.floats(2**-10, 2**10)
RECIPE = Recipe(
    optimizer="adamw",
    lr=1e-3,
    batch_size=32,
    epochs=10,
    weight_decay=0.01,
    betas=(0.9, 0.999),
    ema_decay=0.999,
    warmup_examples=3200,
)


def values(row: ScaledRow) -> dict[str, float]:
    return {decision.name: float(decision.value or 0) for decision in row.decisions}


def test_sgd_moves_linearly_and_adam_by_the_square_root() -> None:
    assert scale_learning_rate(0.1, 8.0, "sgd").value == pytest.approx(0.8)
    assert scale_learning_rate(0.1, 9.0, "adam").value == pytest.approx(0.3)


def test_an_optimizer_without_a_rule_keeps_its_rate_and_says_so() -> None:
    decision = scale_learning_rate(0.1, 8.0, "other")
    assert (decision.value, decision.evidence, decision.source) == (0.1, "assumed", "default")


@given(ratio=RATIOS, optimizer=st.sampled_from(["SGD", "AdamW"]))
def test_weight_decay_keeps_its_time_constant_in_epochs(ratio: float, optimizer: str) -> None:
    rate = scale_learning_rate(0.1, ratio, OPTIMIZER_FAMILIES[optimizer]).value
    decay = scale_weight_decay(0.01, ratio, float(rate or 0) / 0.1, optimizer).value
    # B / (rate * weight_decay * N) at the old batch (1) and at the new one (ratio), N = 1
    assert ratio / (float(rate or 0) * float(decay or 0)) == pytest.approx(1 / (0.1 * 0.01))


def test_weight_decay_inside_adam_has_no_rule_and_is_kept() -> None:
    decision = scale_weight_decay(0.01, 4.0, 2.0, "Adam")
    assert (decision.value, decision.source) == (0.01, "default")


@given(ratio=st.integers(1, 64), beta=st.floats(0.5, 0.9999))
def test_averages_forget_as_much_over_the_same_examples(ratio: int, beta: float) -> None:
    # One update at the larger batch replaces ``ratio`` updates at the old one.
    forgotten = math.prod([beta] * ratio)
    for decision in (*scale_betas((beta, beta), ratio), scale_ema_decay(beta, ratio)):
        assert decision.value == pytest.approx(forgotten)


@given(steps=st.integers(1, 10_000), ratio=RATIOS)
def test_warmup_keeps_its_examples_to_within_one_update(steps: int, ratio: float) -> None:
    moved = float(scale_warmup_steps(steps, ratio).value or 0)
    assert moved >= 1
    assert moved == 1 or abs(moved * ratio - steps) <= ratio / 2 + 1e-6 * steps


def test_no_warmup_stays_none() -> None:
    assert scale_warmup_steps(0, 4.0).value == 0


def test_the_table_has_a_row_for_each_batch_size_and_starts_where_the_recipe_stands() -> None:
    rows = scaling_table(RECIPE, [32, 512], num_examples=1437)
    assert [row.batch_size for row in rows] == [32, 512]
    assert [row.updates_per_epoch for row in rows] == [45, 3]
    assert values(rows[0]) == pytest.approx({
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "beta1": 0.9,
        "beta2": 0.999,
        "ema_decay": 0.999,
        "warmup_steps": 100,
    })
    assert values(rows[1])["learning_rate"] == pytest.approx(4e-3)
    assert values(rows[1])["weight_decay"] == pytest.approx(0.04)
    assert values(rows[1])["beta2"] == pytest.approx(0.999**16)


def test_the_table_shows_only_what_the_recipe_has() -> None:
    rows = scaling_table(Recipe(optimizer="SGD", lr=0.1, batch_size=32, epochs=1), [64])
    assert list(values(rows[0])) == ["learning_rate"]
    assert rows[0].updates_per_epoch is None


def test_every_moved_number_names_a_known_source() -> None:
    assert {d.source for d in scaling_table(RECIPE, [64])[0].decisions} <= set(SOURCES)


def test_an_unknown_optimizer_is_refused_with_the_closest_name() -> None:
    recipe = Recipe(optimizer="adamww", lr=0.1, batch_size=32, epochs=1)
    with pytest.raises(InvalidInputError, match=r"'adamww'.*\n  hint: did you mean `adamw`"):
        scaling_table(recipe, [64])


@pytest.mark.parametrize("name", sorted(OPTIMIZER_FAMILIES))
def test_the_families_by_name_are_those_that_tasks_find_by_class(name: str) -> None:
    kind = getattr(torch.optim, name)
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    assert optimizer_family(kind([parameter], lr=0.1)) == OPTIMIZER_FAMILIES[name]
