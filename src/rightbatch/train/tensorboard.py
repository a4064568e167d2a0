"""The lines of metrics as TensorBoard scalars, where the tensorboard package is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from rightbatch.core.packages import check_installed
from rightbatch.core.run import Run
from rightbatch.train.record import OpenLog


def open_tensorboard() -> OpenLog:
    """What opens the event files of a run, once its folder is there.

    Raises:
        MissingPackageError: tensorboard is not installed.
    """
    check_installed("tensorboard", need="tensorboard, which writes its event files", extra="logs")
    return TensorBoardLog


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics by tag; of an interval the middle.

    >>> scalars({"updates": 3, "metrics": {"accuracy": 0.9}, "noise_scale": [8.0, 4.0, None]})
    {'metrics/accuracy': 0.9, 'noise_scale': 8.0}
    """
    found: dict[str, float] = {}
    for name, value in line.items():
        if isinstance(value, dict):
            parts = cast("dict[str, float]", value)
            found |= {f"{name}/{part}": number for part, number in parts.items()}
        elif isinstance(value, list):
            found |= {} if value[0] is None else {name: value[0]}
        elif name != "updates":
            found[name] = value
    return found


class TensorBoardLog:
    """Owns the event files of a run."""

    def __init__(self, folder: Path, updates: int) -> None:
        """Go on after so many updates; TensorBoard drops what an earlier start logged beyond them."""
        from torch.utils.tensorboard import SummaryWriter

        purge_step = updates + 1 if updates else None
        self._writer: Any = SummaryWriter(folder / "tensorboard", purge_step=purge_step)

    def add(self, line: dict[str, Any]) -> None:
        """Add a line of metrics, by update."""
        for tag, value in scalars(line).items():
            self._writer.add_scalar(tag, value, line["updates"])

    def close(self, run: Run | None) -> None:
        """Write what is still in memory."""
        self._writer.close()
