"""The machine in words, and its memory as far as a container lets it be used."""

from pathlib import Path

import pytest
import torch

from rightbatch.core.errors import InvalidInputError
from rightbatch.measure import environment
from rightbatch.measure.environment import read_environment


def test_this_machine_is_described() -> None:
    found = read_environment()
    assert found.device == "cpu"
    assert found.device_name
    assert found.memory_bytes > 2**20
    assert found.num_threads == torch.get_num_threads()
    assert found.torch == torch.__version__
    assert found == read_environment()


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "mps:7"])
def test_a_device_that_torch_cannot_use_is_refused_in_one_line(device: str) -> None:
    with pytest.raises(
        InvalidInputError, match=f"device '{device}': .*need a device torch can use"
    ) as caught:
        read_environment(device)
    assert "\n" not in caught.value.found
    assert "cpu" in caught.value.hint


@pytest.mark.parametrize(("limit", "bounded"), [("1048576\n", True), ("max\n", False), ("", False)])
def test_a_containers_limit_counts_where_it_is_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, bounded: bool
) -> None:
    path = tmp_path / "memory.max"
    path.write_text(limit)
    monkeypatch.setattr(environment, "_CGROUP_LIMIT", path)
    assert (read_environment().memory_bytes == 2**20) == bounded
    monkeypatch.setattr(environment, "_CGROUP_LIMIT", tmp_path / "absent")
    assert read_environment().memory_bytes > 2**20
