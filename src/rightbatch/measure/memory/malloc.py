"""The C library's allocator and the process's resident memory, as Linux counts it.

glibc keeps freed blocks for later use, and moves the size above which it returns them to the
system up to 32 MiB while a program runs. Training frees and takes large blocks of many sizes, so
the holes add up: resident memory ends well above the live tensors. ``pin_malloc`` fixes that size.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

from rightbatch.core.errors import MeasurementError

MMAP_THRESHOLD_BYTES = 2**20
"""Blocks of this size and more get pages of their own, which go back when freed."""
TRIM_THRESHOLD_BYTES = 128 * 2**10
"""Free bytes at the top of the heap that are kept."""

_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # read by torch's CPU allocator
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def pin_malloc() -> None:
    """Make this process return large blocks to the system as soon as they are freed.

    Blocks that come and go cost page faults then. Huge pages make those few, where the system
    grants them on request; torch asks for them if told so before its first tensor.

    Raises:
        MeasurementError: the allocator is not glibc's own.
    """
    need = "glibc's malloc"
    if platform.libc_ver()[0] != "glibc":
        found = f"malloc of {platform.system()} {platform.machine()}, which is not glibc's"
        raise MeasurementError(found, need=need, hint="run without --pin-malloc")
    libc = ctypes.CDLL(None)
    accepted = libc.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    accepted &= libc.mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
    if not accepted or not _large_blocks_are_mapped(libc):
        found = "an allocator that was preloaded in place of glibc's"
        hint = "unset LD_PRELOAD, or run without --pin-malloc: that allocator has its own settings"
        raise MeasurementError(found, need=need, hint=hint)
    os.environ.setdefault(_HUGE_PAGES, "1")


def trim_malloc() -> None:
    """Return what glibc keeps of freed memory; does nothing where there is no glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Physical memory that this process holds now (VmRSS)."""
    return process_status("VmRSS")


def peak_resident_bytes() -> int:
    """Most physical memory held since the process began or ``reset_peak_resident`` (VmHWM)."""
    return process_status("VmHWM")


def reset_peak_resident() -> None:
    """Begin a new peak from what is resident now.

    Raises:
        MeasurementError: this is not Linux, or the process may not write to its own /proc entry.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise MeasurementError(*_no_proc(f"/proc/self/clear_refs: {error}")) from error


def process_status(key: str) -> int:
    """Read one amount of /proc/self/status, in bytes.

    Raises:
        MeasurementError: this is not Linux, or it has no such amount.
    """
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError as error:
        raise MeasurementError(*_no_proc(f"/proc/self/status: {error}")) from error
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name == key:
            return int(rest.split()[0]) * 1024
    raise MeasurementError(*_no_proc(f"/proc/self/status without {key}"))


def _no_proc(found: str) -> tuple[str, str, str]:
    return f"{found} on {sys.platform}", "Linux, which counts resident memory", "measure on Linux"


class _Mallinfo(ctypes.Structure):
    """``struct mallinfo`` of glibc; every release has it."""

    _fields_ = tuple((f"field{i}", ctypes.c_int) for i in range(10))
    # The fourth is hblks, the number of blocks with pages of their own.


def _large_blocks_are_mapped(libc: ctypes.CDLL) -> bool:
    """Whether a block above the threshold gets pages of its own, counted by glibc."""
    libc.mallinfo.restype = _Mallinfo
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    before = libc.mallinfo().field3
    block = libc.malloc(2 * MMAP_THRESHOLD_BYTES)
    mapped = libc.mallinfo().field3 - before
    libc.free(block)
    return mapped == 1
