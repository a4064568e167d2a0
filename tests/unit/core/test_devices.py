"""The catalogue is complete, consistent and forgiving of spelling."""

from __future__ import annotations

import pytest

from rightbatch.core.devices import ACCELERATORS, Accelerator, parse_accelerator
from rightbatch.core.errors import InvalidInputError


@pytest.mark.parametrize("device", ACCELERATORS.values(), ids=ACCELERATORS)
def test_every_entry_is_plausible(device: Accelerator) -> None:
    assert 14 * 2**30 < device.memory_bytes < 256 * 2**30
    assert (7, 0) <= device.capability <= (12, 0)
    assert device.peak_flops["fp32"] <= device.peak_flops["fp16"]
    assert ("bf16" in device.peak_flops) == (device.capability >= (8, 0))
    assert 1e11 < device.bandwidth_bytes_per_second < 1e13
    assert device.source.split()[-1] in {"datasheet", "whitepaper"}


def test_reported_memory_is_less_than_the_name_says() -> None:
    assert ACCELERATORS["cuda:a100-40gb"].memory_bytes < 40 * 2**30
    assert not ACCELERATORS["cuda:a10"].memory_reported


def test_only_cudas_allocator_is_simulated() -> None:
    assert [name for name, device in ACCELERATORS.items() if not device.simulated] == ["cuda:mi300x"]


@pytest.mark.parametrize("text", ["cuda:a100-40gb", "A100 40GB", " a100_40gb "])
def test_spelling_does_not_matter(text: str) -> None:
    assert parse_accelerator(text).name == "cuda:a100-40gb"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("cuda:a100", "use cuda:a100-40gb or cuda:a100-80gb"),
        ("cuda:h10-80gb", "did you mean `cuda:h100-80gb`"),
    ],
)
def test_an_unknown_device_says_which_are_meant(text: str, hint: str) -> None:
    with pytest.raises(InvalidInputError, match=hint):
        parse_accelerator(text)
