import mmap
import os
import subprocess
import sys

import pytest

from rightbatch.core.errors import MeasurementError
from rightbatch.measure.memory import malloc

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# 8 MiB blocks are freed below one block that stays: a heap cannot shrink past it.
SCRIPT = """
import ctypes, sys
from rightbatch.measure.memory.malloc import *
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
    ctypes.c_void_p, (ctypes.c_size_t,), (ctypes.c_void_p,))
if sys.argv[1] == "pinned":
    pin_malloc()
for _ in range(2):  # the first free of a mapped block is what raises glibc's threshold
    libc.free(libc.malloc(24 << 20))
before = resident_bytes()
blocks = [libc.malloc(8 << 20) for _ in range(8)]
for block in blocks:
    ctypes.memset(block, 1, 8 << 20)
stays = libc.malloc(512 << 10)
for block in blocks:
    libc.free(block)
print(resident_bytes() - before)
"""


def kept_bytes(kind: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return int(done.stdout)


def test_pinned_malloc_gives_back_what_the_default_keeps() -> None:
    assert kept_bytes("default") > 60 * 2**20
    assert kept_bytes("pinned") < 2**20


def test_blocks_below_the_threshold_stay_on_the_heap_where_they_are_cheap() -> None:
    script = """
import ctypes, os
from rightbatch.measure.memory import malloc
malloc.pin_malloc()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.mallinfo.restype = malloc._Mallinfo
before = libc.mallinfo().field3
for _ in range(64):  # more than the heap has to spare
    libc.malloc(1000 << 10)
print(libc.mallinfo().field3 - before, os.environ["THP_MEM_ALLOC_ENABLE"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1"]  # and torch is told to ask for huge pages


def hold(num_bytes: int) -> None:
    """Touch pages that no heap has held before, and give them back."""
    with mmap.mmap(-1, num_bytes) as pages:
        pages[:: mmap.PAGESIZE] = bytes([1]) * (num_bytes // mmap.PAGESIZE)


def test_the_peak_begins_anew_and_holds_what_came_and_went() -> None:
    hold(64 * 2**20)
    malloc.reset_peak_resident()
    start = malloc.peak_resident_bytes()
    assert abs(start - malloc.resident_bytes()) < 2**20
    hold(32 * 2**20)
    assert 31 * 2**20 < malloc.peak_resident_bytes() - start < 34 * 2**20


def test_another_c_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malloc.platform, "libc_ver", lambda: ("", ""))
    with pytest.raises(MeasurementError, match=r"not glibc's; need glibc.*\n  hint: .*--pin-malloc"):
        malloc.pin_malloc()


def test_a_preloaded_allocator_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malloc, "_large_blocks_are_mapped", lambda libc: False)
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    with pytest.raises(MeasurementError, match=r"preloaded .*\n  hint: unset LD_PRELOAD"):
        malloc.pin_malloc()


def test_an_unknown_amount_is_named() -> None:
    with pytest.raises(MeasurementError, match="without VmNonsense"):
        malloc.process_status("VmNonsense")
