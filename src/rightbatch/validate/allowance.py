"""How many runs a call may start, or for how long; what is in flight then is finished."""

from __future__ import annotations

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.units import parse_seconds
from rightbatch.measure.budget import Budget


class Allowance:
    """Counts down from a number of new runs, or a time; runs that an earlier call made are free.

    Time lets one run begin in any case: a call that is repeated comes to its end some day. ``ended``
    says whether a run was refused.
    """

    def __init__(self, runs: int | None = None, seconds: float | None = None) -> None:
        """Begin now; None sets no limit."""
        self._runs = runs
        self._begun = 0
        self.ended = False
        self._time = None if seconds is None else Budget(seconds=seconds)

    def take(self) -> bool:
        """Whether one more run may be started; it is then counted."""
        is_late = self._time is not None and self._time.left <= 0 and self._begun > 0
        if is_late or self._begun == self._runs:
            self.ended = True
            return False
        self._begun += 1
        return True


def parse_allowance(text: str) -> tuple[int | None, float | None]:
    """Read ``20runs`` as a number of runs, and ``10m`` as seconds.

    >>> parse_allowance("20runs"), parse_allowance("10m")
    ((20, None), (None, 600.0))

    Raises:
        InvalidInputError: it is neither.
    """
    number = text.strip().removesuffix("runs").removesuffix("run").strip()
    if text.strip().endswith(("run", "runs")):
        if number.isdecimal() and int(number) > 0:
            return int(number), None
        raise InvalidInputError(repr(text), need="1 run or more", hint="write 20runs, or 10m")
    try:
        return None, parse_seconds(text)
    except InvalidInputError as error:
        need = "a number of runs such as 20runs, or a duration such as 10m"
        raise InvalidInputError(error.found, need=need, hint="write 20runs, or 10m") from error
