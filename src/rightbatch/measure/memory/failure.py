"""Why a training step did not run: out of memory, too large for a kernel, or anything else.

A typed exception decides first. Wordings come after, and only those that allocators and libraries
really print, on exceptions of the type that they print them with: a text that merely mentions
memory is no proof. Where the cause can only be guessed, the verdict says so.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

Outcome = Literal["fits", "out_of_memory", "too_large_for_kernel", "failed"]

_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator: (can't allocate memory|not enough memory)"
    r"|\b(CUDA|HIP|XPU|NPU) out of memory\b"
    r"|\bMPS backend out of memory\b"
    r"|\b(CUDA|HIP|CUDA driver) error: out of memory\b"
    r"|\bCU(BLAS|DNN|SPARSE|RAND|SOLVER|FFT)_(STATUS_)?ALLOC(ATION)?_FAILED\b"
    r"|\bstd::bad_alloc\b"
    r"|could not create a memory object"  # oneDNN
    r"|Unable to allocate .* for an array with shape"  # numpy
    r"|[Uu]nable to mmap \d+ bytes from file .*: Cannot allocate memory"
    r"|\[Errno 12\] Cannot allocate memory"
)
# Libraries say this too when memory is short and they don't look for the cause.
_PERHAPS_OUT_OF_MEMORY = re.compile(
    r"CUBLAS_STATUS_NOT_INITIALIZED when calling `?cublasCreate"
    r"|failed to map segment from shared object"
    r"|could not create a primitive"
    r"|Thread creation failed: Resource temporarily unavailable"
    r"|can't start new thread"
)
_TOO_LARGE = re.compile(
    r"invalid configuration argument"  # more blocks than a CUDA grid has
    r"|canUse32BitIndexMath"
    r"|32-bit index math"
    r"|Storage size calculation overflowed"
    r"|integer (multiplication|out of range|overflow)"
    r"|INT_MAX"
)
_ENDED_FOR_LACK_OF_MEMORY = "the system ended it (SIGKILL), which Linux does when memory runs out"
_LONGEST_MESSAGE = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an exception or an exit means."""

    outcome: Outcome
    message: str
    is_guess: bool = False
    """Whether another cause is possible."""


def classify_error(error: BaseException) -> Verdict:
    """Say why a step raised, looking through what was raised ``from`` something else.

    >>> classify_error(torch.OutOfMemoryError("Tried to allocate 2.00 GiB")).outcome
    'out_of_memory'
    >>> classify_error(ValueError("policy must be 'CUDA out of memory'")).outcome
    'failed'
    """
    verdicts = [_classify_one(link) for link in _causes(error)]
    return next((v for v in verdicts if v.outcome != "failed"), verdicts[0])


def classify_exit(return_code: int, stderr: str) -> Verdict:
    """Say why a process ended that could not report it itself.

    Args:
        return_code: as ``subprocess`` gives it: negative for a signal.
        stderr: what it printed, or the end of that.
    """
    tail = stderr.strip()[-_LONGEST_MESSAGE:]
    if return_code == -signal.SIGKILL:
        return Verdict(outcome="out_of_memory", message=_ENDED_FOR_LACK_OF_MEMORY, is_guess=True)
    ended = f"exit code {return_code}" if return_code >= 0 else signal.Signals(-return_code).name
    message = f"{ended}: {tail}" if tail else ended
    return _judge(stderr, message, typed_out_of_memory=False)


def _causes(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _classify_one(error: BaseException) -> Verdict:
    text = f"{type(error).__name__}: {error}"
    message = text[:_LONGEST_MESSAGE]
    typed = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    )
    if not typed and not isinstance(error, (RuntimeError, ImportError)):
        return Verdict(outcome="failed", message=message)
    return _judge(text, message, typed_out_of_memory=typed)


def _judge(text: str, message: str, *, typed_out_of_memory: bool) -> Verdict:
    if typed_out_of_memory or _OUT_OF_MEMORY.search(text):
        return Verdict(outcome="out_of_memory", message=message)
    if _TOO_LARGE.search(text):
        return Verdict(outcome="too_large_for_kernel", message=message)
    if _PERHAPS_OUT_OF_MEMORY.search(text):
        return Verdict(outcome="out_of_memory", message=message, is_guess=True)
    return Verdict(outcome="failed", message=message)
