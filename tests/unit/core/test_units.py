"""Bytes, seconds and counts as people type and read them."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.units import (
    format_bytes,
    format_number,
    format_seconds,
    parse_bytes,
    parse_interval,
    parse_seconds,
)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("4096", 4096),
        ("4096b", 4096),
        ("1KB", 1024),
        ("1k", 1024),
        ("512MiB", 512 * 2**20),
        ("20 GiB", 20 * 2**30),
        ("0.5g", 2**29),
        ("1e3", 1000),
        ("2T", 2**41),
        ("1GiB512MiB", 2**30 + 2**29),
    ],
)
def test_bytes_are_binary_whatever_the_spelling(text: str, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize(
    ("text", "amount"), [("45", 45), ("45s", 45), ("2m", 120), ("1h30m", 5400), ("250ms", 0.25)]
)
def test_durations_add_their_parts(text: str, amount: float) -> None:
    assert parse_seconds(text) == amount


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1GiB", "0", "0s", "20 parsecs", "1GiB!", "1e999", "nan", "inf"]
)
def test_what_is_no_positive_amount_is_refused(text: str) -> None:
    for parse in (parse_bytes, parse_seconds):
        with pytest.raises(InvalidInputError, match=r"need a(n amount| duration)"):
            parse(text)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (999.7 * 1024, "1000 KiB"),
        (1023.6 * 1024, "1024 KiB"),
        (1.5 * 2**30, "1.5 GiB"),
        (3 * 2**40, "3 TiB"),
        (-2048, "-2 KiB"),
    ],
)
def test_bytes_print_with_three_digits(amount: float, text: str) -> None:
    assert format_bytes(amount) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0.0000005, "0.5 µs"),
        (0.0009997, "1000 µs"),
        (0.25, "250 ms"),
        (0.9999, "1000 ms"),
        (12.34, "12.3 s"),
        (59.99, "60 s"),
        (60, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (5400, "1 h 30 min"),
    ],
)
def test_seconds_print_in_the_unit_a_reader_would_choose(amount: float, text: str) -> None:
    assert format_seconds(amount) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (60000, "60,000"),
        (2.0, "2"),
        (-1234.0, "-1,234"),
        (0.25, "0.25"),
        (9999.7, "10,000"),
        (12345.6, "12,346"),
        (1.41421356e-3, "0.001414"),
    ],
)
def test_numbers_print_with_four_digits_and_integers_in_full(amount: float, text: str) -> None:
    assert format_number(amount) == text


@settings(deadline=None)
@given(st.floats(1e-9, 1e15))
def test_no_amount_prints_in_a_notation_that_parsing_or_a_reader_trips_on(amount: float) -> None:
    assert "e+" not in format_bytes(amount) + format_seconds(amount) + format_number(amount)


@settings(deadline=None)
@given(st.integers(1, 2**50))
def test_bytes_read_back_within_the_digits_printed(amount: int) -> None:
    assert parse_bytes(format_bytes(amount)) == pytest.approx(amount, rel=6e-3)


@settings(deadline=None)
@given(st.floats(1e-3, 1e6))
@example(4061.0)  # 1 h 7.7 min is nearer to 8 minutes
def test_seconds_read_back_within_the_digits_printed(amount: float) -> None:
    text = re.sub(" (?=[0-9a-z])", "", format_seconds(amount))
    assert parse_seconds(text) == pytest.approx(amount, rel=1e-2)


def test_an_interval_may_be_zero_and_a_duration_may_not() -> None:
    assert (parse_interval("0s"), parse_interval("90s")) == (0.0, 90.0)
    with pytest.raises(InvalidInputError, match="need 0s or a duration such as"):
        parse_interval("-1s")
    with pytest.raises(InvalidInputError, match="need a duration such as"):
        parse_seconds("0s")
