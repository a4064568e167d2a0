"""What long work says of itself while it runs; whoever called decides how to draw it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a measurement has come."""

    stage: str
    """``memory``, ``loader``, ``speed`` or ``noise``."""
    fraction: float
    """Of the whole measurement, 0 to 1."""
    seconds_left: float | None
    """At most, if the whole budget is used; None where there is none."""
    message: str
    """What is being done, in a few words."""


OnProgress = Callable[[Progress], None]
