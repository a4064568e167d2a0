"""Folders as earlier calls left them, and one thread for everything that computes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import records
from rightbatch.core.store import write_record


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on two busy cores wait for each other more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder of complete measurements."""
    write_record(tmp_path / "saved" / "measurements.json", records.measurements())
    return tmp_path / "saved"


@pytest.fixture
def undecided(tmp_path: Path) -> Path:
    """A folder of measurements in which nothing bounds the noise scale from above."""
    write_record(tmp_path / "undecided" / "measurements.json", records.measurements(undecided=True))
    return tmp_path / "undecided"
