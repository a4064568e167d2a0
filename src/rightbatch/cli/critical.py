"""``rightbatch critical``: up to which batch does the loss keep up, from one point of training on?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rightbatch.cli.output import Answer, say
from rightbatch.cli.picture import draw
from rightbatch.cli.progress import measure_bar
from rightbatch.cli.source import Flag, load, option, parse_workers
from rightbatch.cli.validate import parse_range
from rightbatch.core.errors import EXIT_DONE, EXIT_FINDING, InvalidInputError
from rightbatch.report.steps_text import branch_table, critical_lines, definitions_table
from rightbatch.report.terminal import render

if TYPE_CHECKING:
    import plotly.graph_objects as go


def critical(  # noqa: PLR0913 - each its own
    task: str,
    /,
    *,
    batch: str | None = None,
    points: str | None = None,
    checkpoint: Path | None = None,
    seeds: int = 5,
    tolerance: float = 0.05,
    workers: str = "1",
    device: str = "cpu",
    out: Path | None = None,
    json: Flag = False,
) -> Answer:
    """Measure the critical batch size by branches from points of training.

    Today's recipe is trained to each point, or a checkpoint is read; from there, branches with the
    optimizer's state go on at larger batches over the same examples. The same command goes on where
    it was stopped.

    Args:
        task: A built-in name, my_task.py[:name] or package.module:name.
        batch: Batch sizes that double, as in 32:1024; from today's to 32 times it if not given.
        points: Where in the recipe's run branches begin, as shares of it; 0.05,0.2,0.5 if not given.
        checkpoint: Begin at the checkpoints that a run of rightbatch train kept in this folder, or at
            one of them: checkpoints/update-NNN.json.
        seeds: Pairs of weights and order; more seeds see smaller rises of the loss.
        tolerance: Rise of the loss, as a share of it, that does not count.
        workers: Processes that train at the same time, or ray, for those of a Ray cluster.
        device: Where to train, as torch names it: cpu, cuda, cuda:1.
        out: Folder for critical.json and all branches; rightbatch-NAME/critical if not given.
        json: Print one JSON document on stdout.

    Raises:
        InvalidInputError: --points and --checkpoint together.
    """
    from rightbatch.validate.critical import CRITICAL, measure_critical
    from rightbatch.validate.saved_run import read_run

    if points is not None and checkpoint is not None:
        found, hint = f"--points {points} and --checkpoint {checkpoint} together", "leave one out"
        raise InvalidInputError(found, need="one of the two", hint=hint)
    origins = option("--points", parse_shares, points or "0.05,0.2,0.5")
    at_once = option("--workers", parse_workers, workers)
    sizes = option("--batch", parse_range, batch) if batch else None
    loaded = load(task, device)
    if checkpoint is not None:
        saved = read_run(checkpoint, loaded)
        loaded, origins = saved.task, saved.manifests
    if sizes is None:
        today = loaded.recipe.batch_size
        most = max(2 * today, min(32 * today, loaded.num_train_examples // 8))
        sizes = parse_range(f"{today}:{most}")
    folder = out or Path(f"rightbatch-{loaded.name}/critical")
    say(f"branching {loaded.name} in {folder}: batch {', '.join(map(str, sizes))}")
    with measure_bar() as on_progress:
        found = measure_critical(
            loaded,
            sizes,
            out=folder,
            points=origins,
            seeds=seeds,
            tolerance=tolerance,
            workers=at_once,
            device=device,
            on_progress=on_progress,
        )

    def plot() -> go.Figure:
        from rightbatch.report.branch_plot import plot_branches

        return plot_branches(found)

    picture = draw(plot, folder / "critical.html")
    files = {"critical": str(folder / CRITICAL)} | ({"picture": str(picture)} if picture else {})
    decided = found.points[-1].worse is not None
    return Answer(
        document=found.model_dump(mode="json") | {"files": files},
        text=(
            render(branch_table(found)),
            *critical_lines(found),
            render(definitions_table((found.definition,))),
            f"Saved: {', '.join(files.values())}",
        ),
        exit_code=EXIT_DONE if decided else EXIT_FINDING,
    )


def parse_shares(text: str) -> list[float]:
    """Read ``0.05,0.5`` as shares.

    >>> parse_shares("0.05,0.5")
    [0.05, 0.5]

    Raises:
        InvalidInputError: a part is no number.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        hint = "write them with commas: 0.05,0.5"
        raise InvalidInputError(repr(text), need="shares of the run", hint=hint) from error
