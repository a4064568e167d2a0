"""The machine that samples are taken on."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from rightbatch.core.facts import Environment
from rightbatch.tasks.build import check_device

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def read_environment(device: str = "cpu") -> Environment:
    """Describe the device and the software that samples depend on.

    Raises:
        InvalidInputError: torch cannot use the device here.
    """
    check_device(device)
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory = properties.name, properties.total_memory
    else:
        name, memory = _processor_name(), _host_memory_bytes()
    return Environment(
        device=device,
        device_name=name,
        memory_bytes=memory,
        num_threads=torch.get_num_threads(),
        python=platform.python_version(),
        torch=torch.__version__,
        platform=f"{platform.system()} {platform.machine()}",
    )


def _processor_name() -> str:
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()


def _host_memory_bytes() -> int:
    """Physical memory, or the container's share of it where that is smaller."""
    import os

    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(total, int(_CGROUP_LIMIT.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return total
