"""Accelerators that a plan can be made for without having one.

Memory is what torch reports (``total_memory``), which is less than the name says: driver and error
correction keep a share. Where reports differ between drivers, the smallest that was seen stands.
Rates are the vendor's peaks for dense matrices: nothing reaches them, and many kernels stay far
below.
"""

from __future__ import annotations

from dataclasses import dataclass

from rightbatch.core.errors import InvalidInputError, did_you_mean

_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One kind of device."""

    name: str
    """As in ``cuda:a100-40gb``."""
    title: str
    """As the vendor writes it."""
    memory_bytes: int
    """In all; the context and the allocator share it."""
    memory_reported: bool
    """Whether torch was seen to report it; else it is the round number of the name."""
    capability: tuple[int, int]
    """CUDA compute capability."""
    peak_flops: dict[str, float]
    """Floating-point operations per second by type: ``fp32``, ``tf32``, ``fp16``, ``bf16``."""
    bandwidth_bytes_per_second: float
    """Of device memory."""
    source: str
    """Where rates come from."""
    simulated: bool = True
    """Whether its allocator is the one that ``fit.caching_allocator`` follows."""


# name, title, MiB that torch reports (None: not seen), GiB of the name, capability,
# TFLOP/s in fp32, tf32, fp16, bf16 (0: not supported by the matrix units), GB/s, source
_ROWS: tuple[tuple[str, str, int | None, int, tuple[int, int], str, float, str], ...] = (
    ("v100-16gb", "Tesla V100 SXM2 16GB", 16_130, 16, (7, 0), "15.7 0 125 0", 900, "V100"),
    ("v100-32gb", "Tesla V100 SXM2 32GB", 32_494, 32, (7, 0), "15.7 0 125 0", 900, "V100"),
    ("t4", "Tesla T4", 15_079, 16, (7, 5), "8.1 0 65 0", 300, "T4"),
    ("a100-40gb", "A100 SXM4 40GB", 40_441, 40, (8, 0), "19.5 156 312 312", 1555, "A100"),
    ("a100-80gb", "A100 SXM4 80GB", 81_038, 80, (8, 0), "19.5 156 312 312", 2039, "A100"),
    ("a10", "A10", None, 24, (8, 6), "31.2 62.5 125 125", 600, "A10"),
    ("a10g", "A10G", 22_587, 24, (8, 6), "35 35 70 70", 600, "A10G"),
    ("a40", "A40", 45_416, 48, (8, 6), "37.4 74.8 149.7 149.7", 696, "A40"),
    ("rtx-3090", "GeForce RTX 3090", 24_259, 24, (8, 6), "35.6 35.6 71 71", 936, "GA102"),
    ("rtx-a6000", "RTX A6000", 48_676, 48, (8, 6), "38.7 77.4 154.8 154.8", 768, "RTX A6000"),
    ("l4", "L4", 22_563, 24, (8, 9), "30.3 60 121 121", 300, "L4"),
    ("l40s", "L40S", 45_589, 48, (8, 9), "91.6 183 362 362", 864, "L40S"),
    ("rtx-4090", "GeForce RTX 4090", 24_209, 24, (8, 9), "82.6 82.6 165.2 165.2", 1008, "AD102"),
    ("rtx-6000-ada", "RTX 6000 Ada", 48_520, 48, (8, 9), "91.1 182.1 364.2 364.2", 960, "RTX 6000 Ada"),
    ("h100-80gb", "H100 SXM5 80GB", 81_082, 80, (9, 0), "67 494.7 989.4 989.4", 3350, "H100"),
    ("h200", "H200 SXM 141GB", 143_156, 141, (9, 0), "67 494.7 989.4 989.4", 4800, "H200"),
    ("b200", "B200 SXM 180GB", 182_631, 180, (10, 0), "75 1120 2250 2250", 8000, "HGX B200"),
    ("rtx-5090", "GeForce RTX 5090", 32_102, 32, (12, 0), "104.8 104.8 209.5 209.5", 1792, "GB202"),
    ("mi300x", "Instinct MI300X", 196_592, 192, (9, 4), "163.4 653.7 1307.4 1307.4", 5300, "MI300X"),
)
_WHITEPAPERS = {"GA102": "Ampere GA102", "AD102": "Ada", "GB202": "RTX Blackwell"}


def _accelerator(
    row: tuple[str, str, int | None, int, tuple[int, int], str, float, str],
) -> Accelerator:
    name, title, reported_mib, gib, capability, rates, gigabytes, source = row
    amd = name.startswith("mi")
    kinds = zip(("fp32", "tf32", "fp16", "bf16"), map(float, rates.split()), strict=True)
    paper = f"{_WHITEPAPERS[source]} architecture whitepaper" if source in _WHITEPAPERS else ""
    return Accelerator(
        name=f"cuda:{name}",
        title=f"{'AMD' if amd else 'NVIDIA'} {title}",
        memory_bytes=(reported_mib or 1024 * gib) * _MIB,
        memory_reported=reported_mib is not None,
        capability=capability,
        peak_flops={kind: rate * 1e12 for kind, rate in kinds if rate},
        bandwidth_bytes_per_second=gigabytes * 1e9,
        source=f"{'AMD' if amd else 'NVIDIA'} {paper or source + ' datasheet'}",
        simulated=not amd,
    )


ACCELERATORS: dict[str, Accelerator] = {a.name: a for a in map(_accelerator, _ROWS)}
"""Every known accelerator by name."""


def parse_accelerator(text: str) -> Accelerator:
    """Look up a device such as ``cuda:a100-40gb``; spaces, case and the prefix do not matter.

    >>> parse_accelerator("RTX 4090").capability
    (8, 9)

    Raises:
        InvalidInputError: no accelerator has this name.
    """
    word = text.strip().lower().removeprefix("cuda:").replace(" ", "-").replace("_", "-")
    if (found := ACCELERATORS.get(f"cuda:{word}")) is not None:
        return found
    family = [name for name in ACCELERATORS if name.startswith(f"cuda:{word}-")]
    hint = f"use {' or '.join(family)}" if family else did_you_mean(f"cuda:{word}", ACCELERATORS)
    raise InvalidInputError(f"device {text!r}", need="an accelerator of the catalogue", hint=hint)


def find_accelerator(device_name: str) -> Accelerator | None:
    """The accelerator that torch calls by this name; None where it is none of the catalogue.

    >>> found = find_accelerator("NVIDIA H100 80GB HBM3")
    >>> found.name if found else None
    'cuda:h100-80gb'
    """
    words = set(device_name.lower().replace("-", " ").split())
    for accelerator in ACCELERATORS.values():
        parts = accelerator.name.removeprefix("cuda:").split("-")
        if words >= set(parts):
            return accelerator
    return None
