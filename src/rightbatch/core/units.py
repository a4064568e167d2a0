"""Bytes, seconds and counts: parsed from what people type, printed as people read.

Bytes are binary: 1 GiB is 2**30. Files and JSON hold plain bytes and seconds.
"""

from __future__ import annotations

import math
import re

from rightbatch.core.errors import InvalidInputError

_BYTES = {"": 1, "b": 1} | {
    f"{prefix}{suffix}": 1024**power
    for power, prefix in enumerate("kmgt", start=1)
    for suffix in ("", "b", "ib")
}
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "ms": 1e-3}
_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]*)")


def parse_bytes(text: str) -> int:
    """Read ``20GiB``, ``512MB`` or ``4096`` as bytes; every prefix is binary.

    >>> parse_bytes("20GiB")
    21474836480
    >>> parse_bytes("1.5k")
    1536

    Raises:
        InvalidInputError: the text is no positive amount of bytes.
    """
    return round(_parse(text, _BYTES, "an amount of memory such as 20GiB, 512MiB or 4096"))


def parse_interval(text: str) -> float:
    """Read a duration as ``parse_seconds`` does, or 0: after every one.

    >>> parse_interval("0s"), parse_interval("2m")
    (0.0, 120.0)

    Raises:
        InvalidInputError: the text is no duration.
    """
    return _parse(text, _SECONDS, "0s or a duration such as 45s, 2m or 1h30m", least=0.0)


def parse_seconds(text: str) -> float:
    """Read ``2m``, ``1h30m``, ``45s`` or ``45`` as seconds.

    >>> parse_seconds("1h30m")
    5400.0

    Raises:
        InvalidInputError: the text is no positive duration.
    """
    return _parse(text, _SECONDS, "a duration such as 45s, 2m or 1h30m")


def _parse(
    text: str,
    units: dict[str, float] | dict[str, int],
    need: str,
    least: float = math.ulp(0.0),
) -> float:
    total, end = 0.0, 0
    for match in _NUMBER.finditer(text):
        if match.start() != end or match[2].lower() not in units:
            break
        total += float(match[1]) * units[match[2].lower()]
        end = match.end()
    if end == 0 or text[end:].strip() or not least <= total < math.inf:
        raise InvalidInputError(
            f"{text!r}", need=need, hint="write a number and its unit, without spaces"
        )
    return total


def format_bytes(amount: float) -> str:
    """Print bytes with three digits and a binary unit.

    >>> format_bytes(16_953_432_064)
    '15.8 GiB'
    """
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(amount) >= size:
            return f"{_three_digits(amount / size)} {unit}"
    return f"{amount:.0f} B"


def format_seconds(amount: float) -> str:
    """Print a duration with three digits in the unit a reader would choose.

    >>> format_seconds(0.00123), format_seconds(93)
    ('1.23 ms', '1 min 33 s')
    """
    if amount < 1e-3:
        return f"{_three_digits(amount * 1e6)} µs"
    if amount < 1:
        return f"{_three_digits(amount * 1e3)} ms"
    if amount < 60:
        return f"{_three_digits(amount)} s"
    minutes, seconds = divmod(round(amount), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(round(amount / 60), 60)
    return f"{hours} h {minutes} min"


def format_number(amount: float) -> str:
    """Print a count or rate with at most four significant digits, integers in full.

    >>> format_number(60000), format_number(0.0014142), format_number(2.0)
    ('60,000', '0.001414', '2')
    """
    if float(amount).is_integer() and abs(amount) < 1e15:
        return f"{int(amount):,}"
    return f"{amount:.4g}" if abs(amount) < 9999.5 else f"{amount:,.0f}"


def _three_digits(amount: float) -> str:
    return f"{amount:.3g}" if abs(amount) < 999.5 else f"{amount:.0f}"  # 999.7 is not 1e+03
