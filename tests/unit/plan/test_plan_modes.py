"""A mode wins where it is shown to be quicker or where nothing else fits, and nowhere else."""

from typing import Any

import numpy as np
import pytest

import known
from rightbatch.core.errors import InfeasibleError, MeasurementError
from rightbatch.core.plan import Plan
from rightbatch.core.samples import Measurements, ModeSamples, ModeTiming
from rightbatch.plan.limits import Limits
from rightbatch.plan.planner import make_plan
from rightbatch.plan.toml import format_plan, read_plan
from rightbatch.plan.wishes import Wishes

LAWS = known.Laws(bytes=(1_000_000, 500_000))
SMALL = (1_000_000, 50_000)


def mode(ratio: float, *, spread: float = 0.0, seed: int = 0, **changes: Any) -> ModeSamples:
    """A mode that takes ``ratio`` of the recipe's time at every size, with some scatter."""
    rng = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "precision": "fp32",
        "checkpointing": True,
        "memory": tuple(known.trace(SMALL, b) for b in (2, 3, 4, 64)),
        "timings": tuple(
            ModeTiming(
                micro_batch_size=size,
                seconds=tuple((ratio * np.exp(spread * rng.standard_normal(9))).tolist()),
                beside_micro_batch_size=size,
                beside_seconds=(1.0,) * 9,
            )
            for size in LAWS.sizes
        ),
    }
    return ModeSamples(**(values | changes))


BF16: dict[str, Any] = {"precision": "bf16", "checkpointing": False}
BOTH: dict[str, Any] = {"precision": "bf16", "checkpointing": True}


def measured(*modes: ModeSamples, **changes: Any) -> Measurements:
    return known.measurements(LAWS, modes=modes, **changes)


def plan(
    *modes: ModeSamples, limits: Limits | None = None, wanted: bool = True, objective: Any = "time"
) -> Plan:
    samples = measured(*modes)
    return make_plan(samples.task, samples, objective, limits, wishes=Wishes(modes=wanted))


def reason(of: Plan, name: str = "precision") -> str:
    return next(d.reason for d in of.decisions if d.name == name)


def test_only_the_recipes_mode_is_planned_with_unless_others_are_wished() -> None:
    found = plan(mode(0.5, **BF16), wanted=False)
    assert (found.precision, found.checkpointing) == ("fp32", False)
    assert found == make_plan(known.facts(), known.measurements(LAWS), "time")
    assert {c.precision for c in found.candidates} == {"fp32"}


@pytest.mark.parametrize("objective", ["time", "balanced", "compute", "accuracy"])
@pytest.mark.parametrize("ratio", [1.01, 1.3, 3.0])
def test_a_slower_mode_that_memory_does_not_ask_for_never_wins(ratio: float, objective: Any) -> None:
    found = plan(mode(ratio), mode(ratio, **BF16), mode(ratio, **BOTH), objective=objective)
    assert {(c.precision, c.checkpointing) for c in found.candidates} == {("fp32", False)}
    assert "no other mode that fits is shown to be quicker" in reason(found)


@pytest.mark.parametrize("seed", range(6))
def test_scatter_alone_makes_no_mode_win(seed: int) -> None:
    others = [mode(1.0, spread=0.1, seed=10 * seed + k, **kind) for k, kind in enumerate((BF16, BOTH))]
    found = plan(*others)
    assert (found.precision, found.checkpointing) == ("fp32", False)


def test_a_quicker_mode_wins_with_its_ratio_and_a_word_on_what_was_not_measured() -> None:
    found = plan(mode(0.5, spread=0.02, **BF16), mode(1.3), mode(0.65, **BOTH, spread=0.02))
    assert (found.precision, found.checkpointing) == ("bf16", False)
    assert "bf16: shown to be quicker than fp32, today's" in reason(found)
    assert "bf16 x 0.50 (" in reason(found)
    assert "fp32 with checkpointing x 1.30" in reason(found)
    assert "computing activations twice takes x 1.3" in reason(found, "checkpointing")
    guard = next(g for g in found.guards if g.name == "lower_precision")
    assert guard.evidence == "assumed"
    assert "`rightbatch validate known.py --plan plan.toml`" in guard.text
    assert found.predicted is not None
    assert found.predicted.seconds_to_target_ratio.value < 0.6


def test_the_winner_is_in_the_file_that_training_reads(tmp_path: Any) -> None:
    found = plan(mode(0.5, **BF16))
    path = tmp_path / "plan.toml"
    path.write_text(format_plan(found))
    again = read_plan(path)
    assert (again.precision, again.checkpointing) == ("bf16", False)
    assert "x 0.50" in path.read_text()


def test_of_two_modes_that_are_quicker_alike_the_simpler_wins() -> None:
    found = plan(mode(0.5, spread=0.05, **BF16), mode(0.5, spread=0.05, seed=1, **BOTH))
    assert (found.precision, found.checkpointing) == ("bf16", False)


def test_of_two_modes_that_fit_alike_the_one_that_leaves_the_numbers_wins() -> None:
    limits = Limits(memory_limit_bytes=1_300_000, headroom=0.0)
    found = plan(mode(1.3, spread=0.05), mode(1.3, spread=0.05, seed=1, **BF16), limits=limits)
    assert (found.precision, found.checkpointing) == ("fp32", True)
    quicker = plan(mode(1.3), mode(0.9, **BF16), limits=limits)
    assert (quicker.precision, quicker.checkpointing) == ("bf16", False)


def test_memory_that_todays_mode_cannot_meet_is_met_by_recomputing() -> None:
    limits = Limits(memory_limit_bytes=1_300_000, headroom=0.0)
    with pytest.raises(InfeasibleError, match="one example needs"):
        plan(mode(1.3), limits=limits, wanted=False)
    found = plan(mode(1.3), limits=limits)
    assert found.checkpointing
    assert found.micro_batch_size <= 6
    assert "fp32, today's, has no split of" in reason(found)
    assert max(c.peak_bytes for c in found.candidates) <= 1_300_000


def test_recomputing_wins_too_where_larger_micro_batches_make_up_for_it() -> None:
    limits = Limits(memory_limit_bytes=2_010_000, headroom=0.0)  # two examples, or twenty
    found = plan(mode(1.3), limits=limits)
    assert found.checkpointing
    assert found.micro_batch_size > 2
    slow = plan(mode(30.0), limits=limits)
    assert not slow.checkpointing
    assert slow.micro_batch_size <= 2


def test_a_limit_that_no_mode_meets_is_refused_for_the_one_that_needs_least() -> None:
    limits = Limits(memory_limit_bytes=1_020_000, headroom=0.0)
    with pytest.raises(InfeasibleError, match=r"one example needs 1,10\d,\d{3} bytes"):
        plan(mode(1.3), limits=limits)


def test_a_mode_that_does_not_run_is_named_with_the_reason() -> None:
    refused = mode(1.0, timings=(), memory=(), refused="a model without repeated blocks")
    found = plan(refused, mode(0.8, **BF16))
    assert found.precision == "bf16"
    assert "left out: fp32 with checkpointing (a model without repeated blocks)" in reason(found)
    assert "no other choice in bf16" in reason(found, "checkpointing")


def test_modes_that_were_not_measured_are_asked_for() -> None:
    with pytest.raises(MeasurementError, match=r"no samples of other modes.*\n.*known.py --modes"):
        plan()


@pytest.mark.parametrize("today", [96, 150])  # the best on paper is 109
def test_todays_batch_is_kept_in_a_quicker_mode_where_another_batch_brings_nothing(today: int) -> None:
    task = known.facts(recipe=known.facts().recipe.replace(batch_size=today))
    samples = measured(mode(0.5, **BF16), task=task)
    found = make_plan(task, samples, "time", wishes=Wishes(modes=True))
    assert (found.global_batch_size, found.precision) == (today, "bf16")


def test_times_that_are_unsure_alike_leave_the_ratio_sure() -> None:
    rng = np.random.default_rng(0)
    scattered = tuple(
        timing.replace(
            seconds=tuple((timing.seconds[0] * np.exp(0.5 * rng.standard_normal(9))).tolist())
        )
        for timing in known.measurements(LAWS).step_timings
    )
    samples = measured(mode(0.9, **BF16), step_timings=scattered)
    found = make_plan(samples.task, samples, "time", wishes=Wishes(modes=True))
    assert found.precision == "bf16"
    assert "bf16 x 0.90 (0.90 to 0.90)" in reason(found)
