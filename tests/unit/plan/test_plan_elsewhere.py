"""A plan for an accelerator that is not here is derived, wide, and says what to measure there."""

from typing import Any

import numpy as np
import pytest

import known
import tiny
from rightbatch.core.devices import parse_accelerator
from rightbatch.core.errors import InfeasibleError, InvalidInputError, MeasurementError
from rightbatch.core.plan import Plan
from rightbatch.core.samples import Measurements, ModeSamples
from rightbatch.fit.models import fit_models
from rightbatch.fit.roofline import FAST, SLOW, USUAL, draw_efficiency
from rightbatch.measure.budget import Budget
from rightbatch.measure.elsewhere import iterate_elsewhere, trace_accelerator
from rightbatch.plan.fitted import fit_all
from rightbatch.plan.limits import Limits
from rightbatch.plan.planner import make_plan
from rightbatch.plan.wishes import Wishes

A100 = parse_accelerator("a100-40gb")


@pytest.fixture(scope="module")
def samples() -> tuple[ModeSamples, ...]:
    """Traces of a linear regression in all modes."""
    return tuple(iterate_elsewhere(tiny.task(), A100, modes=True, budget=Budget(seconds=60)))


@pytest.fixture(scope="module")
def measured(samples: tuple[ModeSamples, ...]) -> Measurements:
    """Noise and loading that were measured here; no step was timed."""
    task = known.facts(num_train_examples=48, recipe=tiny.task().recipe)
    return known.measurements(
        modes=samples, task=task, memory=(), step_timings=(), optimizer_seconds=()
    )


def test_one_example_is_traced_by_itself() -> None:
    sizes = [trace.micro_batch_size for trace in trace_accelerator(tiny.task(), A100)]
    assert sizes == [2, 3, 5, 1]


def plan(measured: Measurements, limits: Limits | None = None, **wishes: Any) -> Plan:
    wanted: dict[str, Any] = {"device": A100.name} | wishes
    return make_plan(measured.task, measured, "time", limits, wishes=Wishes(**wanted))


def test_the_recipes_mode_comes_first_and_what_cannot_run_is_refused(
    samples: tuple[ModeSamples, ...],
) -> None:
    assert [(s.precision, s.checkpointing) for s in samples] == [
        ("fp32", False),
        ("fp32", True),
        ("bf16", False),
        ("bf16", True),
    ]
    assert {s.device for s in samples} == {A100.name}
    assert [s.refused is None for s in samples] == [True, False, True, False]  # no repeated block
    assert [w.micro_batch_size for w in samples[0].works] == [1, 4, 16]  # of 48 examples
    assert samples[0].optimizer_work is not None
    assert samples[0].optimizer_work.flops == 0
    assert samples[0].works[1].flops == 4 * samples[0].works[0].flops


def test_what_was_traced_survives_the_file(samples: tuple[ModeSamples, ...]) -> None:
    assert ModeSamples.model_validate_json(samples[0].model_dump_json()) == samples[0]


def test_the_plan_is_marked_derived_and_says_what_to_measure_there(measured: Measurements) -> None:
    found = plan(measured)
    assert (found.device, found.is_derived) == ("cuda:a100-40gb", True)
    guard = next(g for g in found.guards if g.name == "not_here")
    assert guard.evidence == "derived"
    assert "A100" in guard.text
    assert "`rightbatch plan known.py --device cuda`" in guard.text
    by_name = {d.name: d for d in found.decisions}
    assert by_name["micro_batch_size"].evidence == "derived"
    assert by_name["accumulation_steps"].evidence == "derived"
    assert "against derived step times" in by_name["global_batch_size"].reason
    assert found.memory_limit_bytes == A100.memory_bytes


def test_its_interval_is_wider_than_that_of_the_same_times_measured(measured: Measurements) -> None:
    fitted = fit_all(measured, fit_models(measured), Limits(), Wishes(device=A100.name))
    (factors,) = fitted.draws.step_factors
    low, high = np.quantile(factors, [0.05, 0.95])
    assert high / low > 3
    # All sizes are as efficient as each other in one world: their ratio is surer than each of them.
    ratio = factors[-1] / factors[0]
    assert np.quantile(ratio, 0.95) / np.quantile(ratio, 0.05) < 0.5 * high / low
    assert np.quantile(fitted.draws.loader, 0.95) >= 1.9  # another machine reads the data


def test_efficiencies_are_drawn_around_the_usual_one() -> None:
    drawn = draw_efficiency(np.random.default_rng(0), 20_000)
    for name in ("compute", "bandwidth", "launch_seconds"):
        slow, usual, fast = (getattr(share, name) for share in (SLOW, USUAL, FAST))
        found = np.quantile(getattr(drawn, name), [0.05, 0.5, 0.95])
        assert found == pytest.approx(sorted((slow, usual, fast)), rel=0.03)


def test_modes_of_the_accelerator_are_chosen_from_too(measured: Measurements) -> None:
    found = plan(measured, modes=True)
    reason = next(d for d in found.decisions if d.name == "precision")
    assert reason.evidence == "derived"
    assert "bf16 x" in reason.reason
    assert "left out: fp32 with checkpointing and bf16 with checkpointing (no block of" in reason.reason


def test_its_memory_is_the_limit(measured: Measurements) -> None:
    with pytest.raises(InfeasibleError, match="with the CUDA context"):
        plan(measured, Limits(memory_limit_bytes=2**29))


def test_an_accelerator_that_was_not_traced_is_asked_for(measured: Measurements) -> None:
    with pytest.raises(MeasurementError, match=r"a step on cuda:t4.*\n.*known.py --device cuda:t4"):
        plan(measured, device="cuda:t4")
    with pytest.raises(InvalidInputError, match="accelerator of the catalogue"):
        plan(measured, device="cuda:a99")


DEVICES = {"cpu": 1.0, "mps": 0.05, "cuda:0": 0.002}


@pytest.mark.parametrize("objective", ["time", "balanced", "compute"])
def test_one_global_batch_on_every_device_where_their_times_are_alike_but_for_a_factor(
    objective: Any,
) -> None:
    found: dict[str, Plan] = {}
    for device, factor in DEVICES.items():
        laws = known.Laws(step_seconds=(1e-7 * factor, 1e-4 * factor), optimizer_seconds=2e-3 * factor)
        samples = known.measurements(laws, environment=known.environment(device=device))
        memory = 1_010_000 if device == "mps" else None  # ten examples at once, no more
        limits = Limits(memory_limit_bytes=memory, headroom=0.0)
        found[device] = make_plan(samples.task, samples, objective, limits)
    assert len({plan.global_batch_size for plan in found.values()}) == 1
    assert found["mps"].micro_batch_size <= 10
    if found["cpu"].global_batch_size > 10:
        assert found["mps"].accumulation_steps > found["cpu"].accumulation_steps
    assert {plan.device for plan in found.values()} == set(DEVICES)
