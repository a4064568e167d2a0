"""On measurements whose best batch is known on paper, the plan finds it and respects every limit."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import known
from rightbatch.core.errors import InfeasibleError, InvalidInputError, MeasurementError
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import Constants, Recipe
from rightbatch.core.sources import SOURCES
from rightbatch.core.store import write_record
from rightbatch.fit.calibration import calibrate
from rightbatch.plan.limits import Limits
from rightbatch.plan.planner import make_plan
from rightbatch.plan.toml import format_plan

LAWS = [
    known.Laws(),
    known.Laws(noise_scale=1000.0),
    known.Laws(noise_scale=20.0, step_seconds=(1e-3, 1e-4)),
    known.Laws(step_seconds=(1e-4, 1e-5), optimizer_seconds=3e-3),
    known.Laws(load_seconds=(2e-3, 2e-5)),
]


def plan(
    laws: known.Laws | None = None,
    objective: Any = "balanced",
    limits: Limits | None = None,
    **changes: Any,
) -> Plan:
    measured = known.measurements(laws, **changes)
    return make_plan(measured.task, measured, objective, limits)


def recipe(**changes: Any) -> Recipe:
    return known.facts().recipe.replace(**changes)


def guards(of: Plan) -> set[str]:
    return {guard.name for guard in of.guards}


def critical(laws: known.Laws) -> float:
    return laws.noise_scale * calibrate("sgd", preconditioned=False).factor


@pytest.mark.parametrize("laws", LAWS)
def test_time_finds_the_minimum_that_follows_on_paper(laws: known.Laws) -> None:
    found = plan(laws, "time")
    slope = laws.step_seconds[1] + laws.load_seconds[1]
    fixed = laws.update_seconds(0)
    best = np.sqrt(fixed * critical(laws) / slope)  # of (1 + B_crit / B) (a + c B)
    assert found.plateau is not None
    assert found.plateau[0] <= best <= found.plateau[1] * 1.5  # the grid has steps of a half
    assert found.plateau[0] <= found.global_batch_size <= found.plateau[1]

    def seconds(batch: float) -> float:
        return (1 + critical(laws) / batch) * laws.update_seconds(batch)

    assert seconds(found.global_batch_size) <= 1.05 * seconds(best)


@pytest.mark.parametrize("laws", LAWS)
def test_balanced_minimises_seconds_times_examples(laws: known.Laws) -> None:
    found = plan(laws, "balanced")

    def cost(batch: float) -> float:
        examples = 1 + batch / critical(laws)
        return examples * (examples / batch * laws.update_seconds(batch))

    best = min(cost(b) for b in np.geomspace(1, 1024, 2000))
    assert cost(found.global_batch_size) <= 1.05**2 * best
    assert found.global_batch_size <= plan(laws, "time").global_batch_size


def test_the_plateau_of_balanced_is_in_the_quantity_that_its_rule_names() -> None:
    found = plan(objective="balanced")
    cost = {
        c.global_batch_size: (c.seconds_ratio.value * c.examples_ratio.value) ** 0.5
        for c in found.candidates
    }
    assert found.plateau is not None
    low, high = found.plateau
    within = [size for size in cost if cost[size] <= 1.05 * min(cost.values())]
    assert (min(within), max(within)) == pytest.approx((low, high), rel=0.5)  # one step of the grid
    rule = next(d for d in found.decisions if d.name == "global_batch_size").rule
    assert "sqrt(seconds x examples)" in rule


def test_predictions_are_ratios_to_todays_recipe() -> None:
    found = plan(objective="time")
    laws = known.Laws()
    assert found.predicted is not None
    ratio = found.predicted.seconds_to_target_ratio
    batch, middle = found.global_batch_size, critical(laws)
    steps = (1 + middle / batch) / (1 + middle / 32)
    expected = steps * laws.update_seconds(batch) / laws.update_seconds(32)
    assert ratio.value == pytest.approx(expected, rel=0.02)
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.low < ratio.value < ratio.high < 1
    assert found.predicted.probability_better > 0.99
    today = next(c for c in found.candidates if c.global_batch_size == 32)
    assert (today.seconds_ratio.low, today.seconds_ratio.high) == pytest.approx((1, 1))


def test_todays_own_update_is_never_called_sooner() -> None:
    rng = np.random.default_rng(0)
    found = known.measurements()
    scattered = tuple(
        timing.replace(seconds=tuple(timing.seconds[0] * rng.lognormal(0, 0.2, 5)))
        for timing in found.step_timings
    )
    found = found.replace(step_timings=scattered)
    kept = make_plan(found.task, found, "time", Limits(max_batch_size=32))
    assert (kept.global_batch_size, kept.accumulation_steps) == (32, 1)
    assert kept.predicted is not None
    assert kept.predicted.probability_better == 0


def test_the_chosen_batch_is_the_candidate_of_least_regret() -> None:
    found = plan()
    best = min(found.candidates, key=lambda candidate: candidate.regret)
    assert best.global_batch_size == found.global_batch_size
    assert best.peak_bytes == 1_000_000 + 1_000 * found.micro_batch_size


@pytest.mark.parametrize("today", [96, 100, 128])
def test_todays_batch_is_kept_where_a_change_brings_nothing(today: int) -> None:
    found = plan(objective="time", task=known.facts(recipe=recipe(batch_size=today)))
    assert found.global_batch_size == today  # the best on paper is 109
    assert found.learning_rate == 0.1
    assert found.predicted is not None
    assert found.predicted.seconds_to_target_ratio.value == pytest.approx(1.0)


def test_a_memory_limit_that_binds_gives_a_smaller_micro_batch() -> None:
    free = plan(known.Laws(noise_scale=1000.0))
    assert free.micro_batch_size > 50
    tight = plan(
        known.Laws(noise_scale=1000.0), limits=Limits(memory_limit_bytes=1_050_000, headroom=0.0)
    )
    assert tight.micro_batch_size <= 50
    assert max(c.peak_bytes for c in tight.candidates) <= 1_050_000


def test_accumulation_is_chosen_where_the_update_is_dear_and_memory_small() -> None:
    laws = known.Laws(noise_scale=1000.0, step_seconds=(1e-5, 1e-5), optimizer_seconds=5e-3)
    found = plan(laws, limits=Limits(memory_limit_bytes=1_040_000, headroom=0.0))
    assert found.accumulation_steps > 1
    assert found.micro_batch_size <= 40
    assert found.global_batch_size == found.micro_batch_size * found.accumulation_steps


def test_headroom_counts_against_the_limit() -> None:
    found = plan(limits=Limits(memory_limit_bytes=2_000_000, headroom=0.49))
    assert max(c.micro_batch_size for c in found.candidates) <= 20


def test_a_limit_below_the_fixed_part_says_how_many_bytes_are_missing() -> None:
    with pytest.raises(InfeasibleError, match=r"55\d,\d{3} bytes more") as caught:
        plan(limits=Limits(memory_limit_bytes=500_000, headroom=0.1))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("largest", [1, 7, 16, 33])
def test_the_largest_batch_is_respected(largest: int) -> None:
    found = plan(known.Laws(noise_scale=1e4), limits=Limits(max_batch_size=largest))
    assert max(c.global_batch_size for c in found.candidates) <= largest


def test_the_batch_never_exceeds_the_data() -> None:
    facts = known.facts(num_train_examples=50)
    found = plan(known.Laws(noise_scale=1e4), task=facts)
    assert max(c.global_batch_size for c in found.candidates) == 48


def test_an_input_bound_task_gains_nothing_from_a_larger_batch() -> None:
    laws = known.Laws(load_seconds=(0.0, 1e-2), num_workers=4)  # 10 ms an example, read beside
    found = plan(laws, "time")
    ratios = [c.seconds_ratio.value for c in found.candidates]
    assert ratios == sorted(ratios)
    assert found.global_batch_size == 1
    computing = plan(known.Laws(num_workers=4), "time")
    assert computing.global_batch_size > 32


def test_batches_that_leave_batch_norm_a_lone_example_are_left_out() -> None:
    facts = known.facts(num_batch_norm_layers=1, num_train_examples=10_001)
    sizes = tuple(b for b in known.SIZES if b > 1)
    with_norm = plan(known.Laws(sizes=sizes), task=facts)
    lone = {b for b in (16, 8, 4) if 10_001 % b == 1}
    assert lone == {16, 8, 4}
    assert not lone & {c.global_batch_size for c in with_norm.candidates}
    assert {c.micro_batch_size for c in with_norm.candidates}.isdisjoint({1, 2})
    without = plan(known.Laws(sizes=sizes), task=facts.replace(num_batch_norm_layers=0))
    assert lone < {c.global_batch_size for c in without.candidates}


def test_no_batch_at_all_is_infeasible_and_says_why() -> None:
    facts = known.facts(num_batch_norm_layers=1, num_train_examples=10_001)
    laws = known.Laws(sizes=(2, 4, 8, 16, 32))
    with pytest.raises(InfeasibleError, match=r"(?s)a largest batch of 2 and no lone .*--max-batch 3"):
        plan(laws, limits=Limits(max_batch_size=2), task=facts)
    with pytest.raises(InfeasibleError, match=r"a largest batch of 1;[^\n]*\n  hint: --max-batch 2$"):
        plan(laws, limits=Limits(max_batch_size=1))


def test_an_undecided_noise_scale_is_noted() -> None:
    lost = tuple(known.sample(s, 300.0, seen=1000) for s in (-1.0, 1.2, -0.4, 0.9, 0.1, -0.2))
    found = plan(gradients=lost)
    assert "undecided_noise" in guards(found)
    assert any("only bounded from below" in text for text in found.warnings)
    ratio = next(c for c in found.candidates if c.global_batch_size == 1024).examples_ratio
    assert ratio.low is not None
    assert ratio.high is not None
    assert ratio.high > 3 * ratio.low
    assert "undecided_noise" not in guards(plan())


def test_a_batch_past_the_critical_one_is_noted() -> None:
    dear = known.Laws(noise_scale=10.0, optimizer_seconds=0.1)
    assert "beyond_critical" in guards(plan(dear, "time"))
    assert "beyond_critical" not in guards(plan())


def test_an_optimizer_without_a_rule_keeps_its_rate_and_says_so() -> None:
    facts = known.facts(optimizer_family="other", optimizer_class="Muon")
    found = plan(task=facts, objective="time")
    assert found.global_batch_size != 32
    assert found.learning_rate == 0.1
    assert "unknown_optimizer" in guards(found)
    assert any("No rule is known for Muon" in text for text in found.warnings)


def test_notes_of_the_measurement_are_passed_on() -> None:
    assert plan(notes=("noise: ended early",)).notes[0] == "noise: ended early"


def test_stages_without_samples_are_named() -> None:
    with pytest.raises(MeasurementError, match="no usable samples of memory, noise"):
        plan(memory=(), gradients=())


def test_a_batch_of_today_that_no_timed_size_divides_is_refused() -> None:
    facts = known.facts(recipe=recipe(batch_size=37))
    with pytest.raises(MeasurementError, match="no equal split of today's batch of 37"):
        plan(known.Laws(sizes=(2, 4, 8, 16, 32)), task=facts)


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="objective = 'fast'"):
        plan(objective="fast")


@pytest.mark.parametrize("family", ["sgd", "adam", "other"])
def test_every_decision_names_a_known_source_and_the_value_that_the_plan_has(family: str) -> None:
    facts = known.facts(
        optimizer_family=family,
        optimizer_class={"sgd": "SGD", "adam": "AdamW", "other": "Muon"}[family],
        recipe=recipe(weight_decay=0.01, epochs=None, steps=500, clip_norm=1.0),
    )
    found = plan(task=facts, objective="time")
    names = [decision.name for decision in found.decisions]
    assert len(set(names)) == len(names)
    assert {"global_batch_size", "micro_batch_size", "learning_rate", "steps"} < set(names)
    for decision in found.decisions:
        assert decision.source in SOURCES, decision
        if decision.name in {"beta1", "beta2"}:
            assert decision.value == (found.betas or ())[decision.name == "beta2"]
        else:
            assert decision.value == getattr(found, decision.name), decision
        assert decision.reason
        assert decision.rule


def test_every_constant_of_the_recipe_is_in_the_plan() -> None:
    today = recipe(
        momentum=0.9,
        betas=None,
        eps=1e-7,
        schedule="cosine",
        clip_norm=0.5,
        ema_decay=0.99,
        precision="bf16",
        sampler="replacement",
        warmup_examples=640,
    )
    found = plan(task=known.facts(recipe=today))
    moved = {d.name for d in found.decisions if d.evidence == "derived"}
    for name in Constants.model_fields:
        if name not in moved:
            assert getattr(found, name) == getattr(today, name), name


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_same_measurements_give_the_same_bytes_in_any_process_without_torch(
    tmp_path: Path, hash_seed: str
) -> None:
    path = tmp_path / "measurements.json"
    measured = known.measurements(known.Laws(load_seconds=(1e-4, 1e-6)))
    write_record(path, measured)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from rightbatch.core.samples import Measurements\n"
        "from rightbatch.core.store import read_record\n"
        "from rightbatch.plan.limits import Limits\n"
        "from rightbatch.plan.planner import make_plan\n"
        "from rightbatch.plan.toml import format_plan\n"
        "measured = read_record(Path(sys.argv[1]), Measurements)\n"
        "plan = make_plan(measured.task, measured, 'time', Limits(num_replicas=4))\n"
        "print(plan.model_dump_json() + format_plan(plan), end='')\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
    )
    here = make_plan(measured.task, measured, "time", Limits(num_replicas=4))
    assert result.stdout == here.model_dump_json() + format_plan(here)
