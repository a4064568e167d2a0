"""A progress bar on stderr while work goes on; nothing at all where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rightbatch.core.progress import OnProgress, Progress
from rightbatch.core.units import format_number, format_seconds

if TYPE_CHECKING:
    from rightbatch.train.record import Progress as TrainProgress

Draw = Callable[[float, str, float | None], None]  # fraction done, what is done, seconds left


@contextmanager
def measure_bar() -> Generator[OnProgress | None]:
    """Draw how far a measurement has come; yields None where there is nobody to see it."""
    with _bar() as draw:

        def show(progress: Progress) -> None:
            assert draw is not None
            draw(progress.fraction, progress.message, progress.seconds_left)

        yield show if draw else None


@contextmanager
def train_bar() -> Generator[Callable[[TrainProgress], None] | None]:
    """Draw how far a run has come, with its loss, speed and latest metrics."""
    with _bar() as draw:
        metrics = ""

        def show(progress: TrainProgress) -> None:
            nonlocal metrics
            assert draw is not None
            if progress.metrics is not None:
                named = ", ".join(f"{name} {value:.4g}" for name, value in progress.metrics.items())
                metrics = f"; evaluated {named}"
            speed = format_number(round(progress.examples / max(progress.seconds, 1e-9)))
            step = f"batch {progress.batch_size:,}, rate {progress.learning_rate:.3g}"
            message = f"{speed} examples/s, loss {progress.loss:.4g}, {step}{metrics}"
            draw(progress.examples / progress.total_examples, message, progress.seconds_left)

        yield show if draw else None


@contextmanager
def _bar() -> Generator[Draw | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.table import Column

    columns = (  # where the terminal is narrow, the end of the description is what goes
        BarColumn(bar_width=10),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}", style="dim"),
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as progress:
        work = progress.add_task("", total=1.0, left="")

        def draw(fraction: float, message: str, seconds_left: float | None) -> None:
            left = "" if seconds_left is None else f"{format_seconds(seconds_left)} left"
            progress.update(work, completed=fraction, description=message, left=left)

        yield draw
