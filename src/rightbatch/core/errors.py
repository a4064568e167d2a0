"""Every error raised on purpose says three things: what was found, what is needed, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

EXIT_DONE = 0
EXIT_FINDING = 1  # a finding, or a question that the data left undecided
EXIT_BAD_INPUT = 2
EXIT_INFEASIBLE = 3
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class RightBatchError(Exception):
    """Root of every deliberate error; catch this to catch them all."""

    exit_code = EXIT_BAD_INPUT

    def __init__(self, found: str, need: str, hint: str) -> None:
        """Keep the three parts in ``args``, so the error survives pickling to and from a worker."""
        super().__init__(found, need, hint)
        self.args = (found, need, hint)  # OSError would take the third for a file name

    @property
    def found(self) -> str:
        """What was there, with its values."""
        return str(self.args[0])

    @property
    def need(self) -> str:
        """What would have been right."""
        return str(self.args[1])

    @property
    def hint(self) -> str:
        """What to do: a flag, call or edit that exists."""
        return str(self.args[2])

    @property
    def kind(self) -> str:
        """A stable name for scripts, such as ``invalid_input``."""
        name = type(self).__name__.removesuffix("Error")
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")

    def __str__(self) -> str:
        """Two lines: the contradiction, then the way out."""
        return f"{self.found}; need {self.need}.\n  hint: {self.hint}"


class InvalidInputError(RightBatchError, ValueError):
    """A value the caller gave contradicts itself, the task or the file format."""


class InvalidTaskError(RightBatchError, ValueError):
    """The task cannot be measured or trained as it stands."""


class MeasurementError(RightBatchError, RuntimeError):
    """The samples at hand do not carry the estimate that was asked for."""


class MissingDataError(RightBatchError, FileNotFoundError):
    """A data set that rightbatch never downloads by itself is not on this machine."""


class MissingPackageError(RightBatchError, ImportError):
    """An optional dependency is not installed."""


class InfeasibleError(RightBatchError):
    """No batch size satisfies every limit."""

    exit_code = EXIT_INFEASIBLE


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggest the closest known word, or list them all.

    >>> did_you_mean("learning_rat", ["learning_rate", "momentum"])
    'did you mean `learning_rate`?'
    >>> did_you_mean("zzz", ["lr", "momentum"])
    'use one of lr, momentum'
    """
    names = sorted(known)
    close = get_close_matches(word, names, n=1)
    return f"did you mean `{close[0]}`?" if close else f"use one of {', '.join(names)}"
