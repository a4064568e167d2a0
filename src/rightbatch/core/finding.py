"""What a check found: in the three parts of an error, with its numbers."""

from __future__ import annotations

from typing import Literal

from rightbatch.core.record import SCHEMA_VERSION, Record

DriftCause = Literal["loss", "batch-norm", "model", "dropout"]


class Drift(Record):
    """How far a batch in pieces is from the same batch in one, through one cause."""

    cause: DriftCause
    value: float
    """Norm of the difference of the two gradients, over the norm of the one batch's."""
    chance: float
    """The same between two passes of the one batch with other random numbers; 0 without any."""


class Finding(Record):
    """Something that a check found; where nothing was found there is none."""

    schema_version: int = SCHEMA_VERSION
    rule: str
    """A stable name."""
    found: str
    need: str
    hint: str
    drifts: tuple[Drift, ...] = ()

    def __str__(self) -> str:
        """Two lines, as errors have them."""
        return f"{self.found}; need {self.need}.\n  hint: {self.hint}"
