"""Constants moved to another batch size, against the published statement of each rule."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.facts import OPTIMIZER_FAMILIES
from rightbatch.core.plan import Interval
from rightbatch.core.recipe import Recipe
from rightbatch.core.sources import SOURCES
from rightbatch.plan.rates import fit_surge
from rightbatch.plan.scaling import (
    Move,
    move_constants,
    scale_batch_norm_momentum,
    scale_betas,
    scale_ema_decay,
    scale_eps,
    scale_learning_rate,
    scale_warmup_steps,
    scale_weight_decay,
    untuned_warmup,
    with_defaults,
)
from rightbatch.plan.scaling_table import ScaledRow, scaling_table
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
        "eps": 1e-8,  # torch's default
        "ema_decay": 0.999,
        "untuned_warmup_steps": 2000,
        "warmup_steps": 100,
    })
    assert values(rows[1])["learning_rate"] == pytest.approx(4e-3)
    assert values(rows[1])["weight_decay"] == pytest.approx(0.04)
    assert values(rows[1])["beta2"] == pytest.approx(0.999**16)


def test_the_table_shows_only_what_the_recipe_or_its_optimizer_has() -> None:
    rows = scaling_table(Recipe(optimizer="SGD", lr=0.1, batch_size=32, epochs=1), [64])
    assert list(values(rows[0])) == ["learning_rate"]
    assert rows[0].updates_per_epoch is None


def test_every_moved_number_names_a_known_source() -> None:
    assert {d.source for d in scaling_table(RECIPE, [64])[0].decisions} <= set(SOURCES)


def test_sgds_rate_is_linear_below_the_critical_batch_and_saturates_above() -> None:
    def rate(ratio: float, critical: float) -> float:
        bounds = Interval(value=critical, low=critical / 2, high=critical * 2)
        decision = scale_learning_rate(0.1, ratio, "sgd", bounds)
        assert decision.low is not None
        assert decision.high is not None
        assert decision.low <= float(decision.value or 0) <= decision.high
        return float(decision.value or 0)

    assert rate(4.0, critical=1e6) == pytest.approx(0.4, rel=1e-5)
    assert rate(10.0, critical=10.0) == pytest.approx(0.1 * 11 / 2)  # eps_max / (1 + B_noise / B)
    assert rate(1e9, critical=10.0) == pytest.approx(0.1 * 11)
    assert scale_learning_rate(0.1, 4.0, "adam", Interval(value=1.0, low=None, high=None)).value == 0.2


@given(ratio=st.integers(1, 64), beta=st.floats(0.5, 0.99))
def test_batch_norm_remembers_as_many_examples(ratio: int, beta: float) -> None:
    kept = 1 - float(scale_batch_norm_momentum(1 - beta, ratio).value or 0)
    assert kept == pytest.approx(math.prod([beta] * ratio))


def test_eps_follows_the_noise_that_it_stands_beside() -> None:
    assert scale_eps(1e-8, 16.0, "adam").value == pytest.approx(2.5e-9)
    assert scale_eps(1e-8, 16.0, "other").value == 1e-8


@pytest.mark.parametrize("name", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax", "SGD", "Muon"])
def test_what_a_recipe_leaves_open_is_filled_with_torchs_own_defaults(name: str) -> None:
    filled = with_defaults(Recipe(optimizer=name.lower(), lr=0.1, batch_size=8, epochs=1), name)
    defaults = inspect.signature(getattr(torch.optim, name)).parameters
    for field in ("betas", "eps", "weight_decay"):
        value = getattr(filled, field)
        if value is not None:
            assert value == defaults[field].default, field
    assert (filled.betas is not None) == name.startswith(("Adam", "NAdam", "RAdam"))


def test_a_factory_keeps_its_own_constants() -> None:
    recipe = Recipe(optimizer="my_task:build", lr=0.1, batch_size=8, epochs=1)
    assert with_defaults(recipe, "AdamW") == recipe


def test_nothing_moves_where_the_batch_stays() -> None:
    move = Move(ratio=1.0, family="adam", optimizer_class="AdamW")
    found = {d.name: d.value for d in move_constants(RECIPE, RECIPE.lr, move)}
    assert found == {
        "learning_rate": 1e-3,
        "beta1": 0.9,
        "beta2": 0.999,
        "weight_decay": 0.01,
        "ema_decay": 0.999,
    }


def test_an_optimizer_without_a_rule_keeps_all_but_what_does_not_depend_on_it() -> None:
    move = Move(ratio=4.0, family="other", optimizer_class="Muon")
    recipe = RECIPE.replace(eps=1e-7, momentum=0.95)
    kept = {d.name for d in move_constants(recipe, recipe.lr, move) if d.rule == "kept"}
    assert kept == {"learning_rate", "momentum", "beta1", "beta2", "eps", "weight_decay"}


def test_the_table_sets_every_rule_for_the_rate_side_by_side() -> None:
    surge = fit_surge([(32, 1e-3), (512, 1.5e-3)])
    rows = scaling_table(RECIPE, [32, 128], noise_scale=320.0, surge=surge)
    assert [rate.value for rate in rows[0].rates] == pytest.approx([1e-3] * 5)
    found = {rate.rule: rate.value for rate in rows[1].rates}
    assert found == pytest.approx({
        "linear": 4e-3,
        "square root": 2e-3,
        "gain": 1e-3 * 11 / 3.5,
        "root of gain": 1e-3 * (11 / 3.5) ** 0.5,
        "surge": surge.rate(128),
    })
    assert {rate.source for rate in rows[0].rates} <= set(SOURCES)
    assert [rate.rule for rate in scaling_table(RECIPE, [64])[0].rates] == ["linear", "square root"]


def test_a_noise_scale_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="noise scale 0; need above 0"):
        scaling_table(RECIPE, [64], noise_scale=0.0)


@given(rate=st.floats(1e-5, 1.0), peak=st.floats(2.0, 1e5))
def test_the_surge_form_is_found_from_its_own_values(rate: float, peak: float) -> None:
    def at(batch: float) -> float:  # Eq. 2 of Li et al. (2024)
        return rate / (0.5 * (math.sqrt(peak / batch) + math.sqrt(batch / peak)))

    found = fit_surge([(b, at(b)) for b in (1.0, 8.0, 64.0, 1024.0)])
    assert found.max_rate == pytest.approx(rate, rel=1e-6)
    assert found.peak_batch_size == pytest.approx(peak, rel=1e-6)


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        ([(32, 1e-3)], "pairs 32:0.001"),
        ([(32, 1e-3), (32, 2e-3)], "pairs 32:0.001, 32:0.002"),
        ([(32, 1e-3), (64, -2e-3)], "64:-0.002"),
        ([(32, 1e-3), (64, math.inf)], "64:inf"),
        ([(32, 1e-3), (64, 4e-3)], "faster than the square root"),
        ([(32, 1e-3), (64, 1e-4)], "against the square root"),
    ],
)
def test_pairs_without_a_bend_are_refused(pairs: list[tuple[float, float]], found: str) -> None:
    with pytest.raises(InvalidInputError, match=found):
        fit_surge(pairs)


def test_adams_untuned_warmup_is_two_horizons_of_its_second_average() -> None:
    assert untuned_warmup(0.95).value == 40


def test_an_optimizer_of_another_name_keeps_its_constants() -> None:
    row = scaling_table(Recipe(optimizer="lion", lr=0.1, batch_size=32, epochs=1), [64])[0]
    assert row.decisions[0].value == 0.1
    assert row.decisions[0].evidence == "assumed"


def test_a_mistyped_optimizer_is_refused_with_the_closest_name() -> None:
    recipe = Recipe(optimizer="adamww", lr=0.1, batch_size=32, epochs=1)
    with pytest.raises(InvalidInputError, match=r"'adamww'.*\n  hint: did you mean `adamw`"):
        scaling_table(recipe, [64])


@pytest.mark.parametrize("name", sorted(OPTIMIZER_FAMILIES))
def test_the_families_by_name_are_those_that_tasks_find_by_class(name: str) -> None:
    kind = getattr(torch.optim, name)
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    assert optimizer_family(kind([parameter], lr=0.1)) == OPTIMIZER_FAMILIES[name]
