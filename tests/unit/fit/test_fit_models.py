"""All models of one set of measurements, each where its stage was measured."""

import pytest

import known
from rightbatch.fit.calibration import calibrate
from rightbatch.fit.models import fit_models


def test_every_stage_gives_its_model() -> None:
    models = fit_models(known.measurements())
    assert models.memory is not None
    assert models.memory.peak_bytes(10) == 1_000_000 + 10 * 1_000
    assert models.speed is not None
    assert models.speed.step_seconds(100) == pytest.approx(2e-3)
    assert models.loader is not None
    assert models.steps is not None
    assert models.noise is not None
    assert models.noise.noise_scale == pytest.approx(100.0)
    assert [p.examples_seen for p in models.noise_points] == [1000, 2000, 4000]


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("memory", "memory"),
        ("step_timings", "speed"),
        ("optimizer_seconds", "speed"),
        ("loader_timings", "loader"),
        ("gradients", "steps"),
    ],
)
def test_a_stage_that_was_not_measured_gives_none(field: str, name: str) -> None:
    models = fit_models(known.measurements().replace(**{field: ()}))
    assert getattr(models, name) is None
    if name == "steps":
        assert (models.noise, models.noise_points) == (None, ())


def test_a_stage_cut_before_it_carries_a_model_gives_none() -> None:
    whole = known.measurements()
    assert fit_models(whole.replace(memory=whole.memory[:1])).memory is None
    assert fit_models(whole.replace(optimizer_seconds=(1.0, 1.0))).speed is None


def test_two_gradient_samples_are_no_point() -> None:
    whole = known.measurements()
    assert fit_models(whole.replace(gradients=whole.gradients[:2])).noise is None


def test_preconditioned_norms_are_preferred_and_calibrated_as_such() -> None:
    weighted = tuple(
        s.replace(
            preconditioned_small_sq_norm=1 + 40 / s.small_batch_size,
            preconditioned_big_sq_norm=1 + 40 / s.big_batch_size,
        )
        for s in known.measurements().gradients
    )
    facts = known.facts(optimizer_family="adam", optimizer_class="AdamW")
    models = fit_models(known.measurements(task=facts, gradients=weighted))
    assert models.noise is not None
    assert models.noise.noise_scale == pytest.approx(40.0)
    assert models.steps is not None
    assert models.steps.calibration == calibrate("adam", preconditioned=True).factor
