"""What ``rightbatch plan`` adds for a task with rare positives."""

from __future__ import annotations

from rightbatch.cli.output import say
from rightbatch.cli.progress import measure_bar
from rightbatch.cli.source import Measuring
from rightbatch.core.samples import Measurements
from rightbatch.tasks.task import Task


def add_signal(task: Task, measurements: Measurements, measuring: Measuring) -> Measurements:
    """Count positives per update and measure their gradient at the initial weights.

    Raises:
        InvalidTaskError: no positive was seen.
        MeasurementError: a gradient is not finite.
    """
    from rightbatch.sparse.diagnose import measure_signal

    today, most = task.recipe.batch_size, task.num_train_examples
    sizes = sorted({min(max(1, round(today * 2.0**power)), most) for power in range(-2, 5)})
    say("counting positives, and measuring their part of the gradient")
    with measure_bar() as on_progress:
        signal = measure_signal(
            task, sizes, device=measuring.device, seed=measuring.seed, on_progress=on_progress
        )
    return measurements.replace(signal=signal)
