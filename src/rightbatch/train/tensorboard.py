"""The lines of metrics as TensorBoard scalars, where the tensorboard package is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from rightbatch.core.errors import MissingPackageError

LogLine = Callable[[dict[str, Any]], None]


def check_tensorboard() -> None:
    """Refuse a run whose log could not be written.

    Raises:
        MissingPackageError: tensorboard is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        found, need = "tensorboard is not installed", "tensorboard, which writes its event files"
        raise MissingPackageError(found, need=need, hint="pip install 'rightbatch[logs]'")


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics by tag; of an interval the middle.

    >>> scalars({"updates": 3, "loss": 0.5, "metrics": {"accuracy": 0.9}, "noise_scale": [8.0, 4.0, None]})
    {'loss': 0.5, 'metrics/accuracy': 0.9, 'noise_scale': 8.0}
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


def open_log(folder: Path, updates: int) -> tuple[LogLine, Callable[[], None]]:
    """A function that adds a line, by update, and one that closes the file.

    Args:
        folder: of the event files; those of a run that goes on are added to.
        updates: made so far; TensorBoard drops what an earlier start logged after them.
    """
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(folder, purge_step=updates + 1 if updates else None)

    def log(line: dict[str, Any]) -> None:
        for tag, value in scalars(line).items():
            writer.add_scalar(tag, value, line["updates"])

    return log, writer.close
