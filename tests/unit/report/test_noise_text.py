"""The noise scale drawn as text and told in sentences."""

from dataclasses import replace

import pytest

from rightbatch.fit.noise_heading import Heading
from rightbatch.fit.noise_scale import NoiseScale
from rightbatch.report.noise import (
    heading_sentence,
    interval_bar,
    noise_chart_table,
    precision_sentence,
    unit_sentence,
)

POINT = NoiseScale(
    examples_seen=100,
    noise_scale=100.0,
    low=10.0,
    high=1000.0,
    grad_sq_norm=1.0,
    trace_covariance=100.0,
    num_samples=10,
    source="groups",
    log_error=0.5,
)
OPEN = replace(POINT, noise_scale=None, high=None, log_error=None)


def test_an_interval_is_placed_by_its_logarithm() -> None:
    assert interval_bar(POINT, (1, 10_000), 9) == "  ├─●─┤"
    assert interval_bar(POINT, (10, 1000), 9) == "├───●───┤"
    assert interval_bar(replace(POINT, low=100.0, high=100.0), (1, 10_000), 9) == "    ●"


def test_an_interval_without_an_upper_end_has_an_arrow() -> None:
    assert interval_bar(OPEN, (1, 10_000), 9) == "  ├─────→"
    assert len(interval_bar(replace(OPEN, low=9999.0), (1, 10_000), 9)) == 9


def test_every_bar_fits_whatever_the_points() -> None:
    points = [POINT, OPEN, replace(POINT, low=0.0), replace(OPEN, low=0.0)]
    table = noise_chart_table(points)
    assert all(len(row[-1]) <= 33 for row in table.rows)
    assert noise_chart_table([OPEN]).rows[0][-1].endswith("→")


@pytest.mark.parametrize(
    ("heading", "said"),
    [
        (("growing", 1.0, 0.5, 1.5, 5, 0), "is growing: x2.00 (1.41 to 2.83) for every doubling"),
        (("flat", 0.0, -0.1, 0.1, 5, 0), "stays where it is: x1.00"),
        (("undecided", 0.0, -1.0, 1.0, 5, 2), "is undecided: x1.00 (0.50 to 2.00)"),
        (("undecided", None, None, None, 2, 0), "is not known: 2 decided point(s)"),
    ],
)
def test_the_heading_is_a_factor_per_doubling(heading: tuple[object, ...], said: str) -> None:
    names = ("direction", "exponent", "low", "high", "num_points", "num_undecided")
    text = heading_sentence(Heading(**dict(zip(names, heading, strict=True))))  # type: ignore[arg-type]
    assert said in text
    assert ("2 point(s) without an upper bound" in text) == (heading[-1] == 2)


def test_targets_are_told_only_where_they_are_not_examples() -> None:
    assert unit_sentence(POINT) is None
    text = unit_sentence(replace(POINT, targets_per_example=24.0)) or ""
    assert "holds 24 counted targets" in text
    assert "2,400 (240 to 24,000) targets" in text
    assert "at least 240 targets" in (unit_sentence(replace(OPEN, targets_per_example=24.0)) or "")


def test_precision_is_told_in_samples_and_seconds_or_not_at_all() -> None:
    assert "takes about 194 more samples like these 10, about 1 min 37 s" in precision_sentence(
        POINT, 0.2, 0.5
    )
    assert precision_sentence(POINT, 100.0, 0.5).endswith("is there already.")
    assert "cannot be forecast" in precision_sentence(OPEN, 0.2, 0.5)
    rough = replace(POINT, high=None)
    assert "as a rough guess" in precision_sentence(rough, 0.2, None)
