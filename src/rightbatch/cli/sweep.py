"""``rightbatch validate --sweep``: steps to the target over batch sizes, fitted and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rightbatch.cli.output import Answer, say
from rightbatch.cli.picture import draw
from rightbatch.cli.progress import measure_bar
from rightbatch.cli.source import load
from rightbatch.core.errors import EXIT_DONE, EXIT_FINDING
from rightbatch.report.terminal import render

if TYPE_CHECKING:
    import plotly.graph_objects as go


def run_sweep(
    spec: str,
    batch_sizes: list[int],
    *,
    rates: int,
    seeds: int,
    budget: tuple[int | None, float | None],
    workers: int | Literal["ray"],
    device: str,
    out: Path | None,
) -> Answer:
    """Sweep a task, save the answer with a picture, and say what it means."""
    from rightbatch.report.steps_text import definitions_table, steps_table, sweep_lines
    from rightbatch.validate.sweep_session import SWEEP, sweep

    task = load(spec, device)
    folder = out or Path(f"rightbatch-{task.name}/sweep")
    sizes = ", ".join(map(str, batch_sizes))
    say(f"sweeping {task.name} in {folder}: batch {sizes}; finished runs are kept")
    with measure_bar() as on_progress:
        found = sweep(
            task,
            batch_sizes,
            out=folder,
            rates=rates,
            seeds=seeds,
            budget_runs=budget[0],
            budget_seconds=budget[1],
            workers=workers,
            device=device,
            on_progress=on_progress,
        )

    def plot() -> go.Figure:
        from rightbatch.report.steps_plot import plot_steps

        return plot_steps(found)

    picture = draw(plot, folder / "sweep.html") if found.points else None
    critical = found.critical_batch_size
    bounded = critical is not None and None not in {critical.low, critical.high}
    files = {"sweep": str(folder / SWEEP)} | ({"picture": str(picture)} if picture else {})
    return Answer(
        document=found.model_dump(mode="json") | {"files": files},
        text=(
            render(steps_table(found)),
            *sweep_lines(found),
            render(definitions_table(found.definitions)),
            f"Saved: {', '.join(files.values())}",
        ),
        exit_code=EXIT_DONE if bounded else EXIT_FINDING,
    )
