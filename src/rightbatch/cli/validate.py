"""``rightbatch validate``: is a plan, or a batch size, really better than today's recipe?"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rightbatch.cli.output import Answer, say
from rightbatch.cli.progress import measure_bar
from rightbatch.cli.source import Flag, load, option
from rightbatch.core.comparison import Comparison
from rightbatch.core.errors import EXIT_DONE, EXIT_FINDING, InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.units import format_seconds, parse_seconds
from rightbatch.report.tables import Table
from rightbatch.report.terminal import render
from rightbatch.validate.compare import comparison_lines, sharpness_lines
from rightbatch.validate.sides import side_text


def validate(  # noqa: PLR0913 - each its own
    task: str,
    /,
    *,
    plan: Path | None = None,
    batch: int | None = None,
    against: str = "recipe",
    seeds: int = 3,
    margin: float = 0.005,
    matched_by: Literal["examples", "updates", "time"] = "examples",
    tune_lr: str | None = None,
    sharpness: Flag = False,
    sweep: str | None = None,
    device: str = "cpu",
    out: Path | None = None,
    json: Flag = False,
) -> Answer:
    """Compare a plan or a batch size with today's recipe over paired seeds.

    Give --plan, --batch or --sweep. Finished runs are kept: the same command goes on where it stopped.

    Args:
        task: A built-in name, my_task.py[:name] or package.module:name.
        plan: The plan.toml that is questioned.
        batch: Or today's recipe at this batch size, its rate moved by rule.
        against: What it is held against: recipe, batch=256 or a plan.toml.
        seeds: Pairs of runs; both of a pair begin with the same weights and order of examples.
        margin: Smallest difference in the metric that matters; fixed before the first run.
        matched_by: What the candidate gets as much of as the reference: examples, updates, or time.
        tune_lr: Such as 1m: try rates around each side's in short branches, so long for each side.
        sharpness: Look at the curvature where each run ended, too.
        sweep: Such as 8:512: instead, train to the target at each doubling with tuned rates, and fit
            the critical batch size.
        device: Where to train, as torch names it: cpu, cuda, cuda:1.
        out: Folder for the answer and all runs; without it, rightbatch-NAME/validate or .../sweep.
        json: Print one JSON document on stdout.

    Raises:
        InvalidInputError: not exactly one of --plan, --batch and --sweep is given.
    """
    given = [f"--{n}" for n, v in (("plan", plan), ("batch", batch), ("sweep", sweep)) if v is not None]
    if len(given) != 1:
        found = f"{' and '.join(given)} together" if given else "nothing to compare"
        hint = "--batch 256, --plan plan.toml or --sweep 8:512"
        raise InvalidInputError(found, need="one of --plan, --batch and --sweep", hint=hint)
    if sweep is not None:
        from rightbatch.cli.sweep import run_sweep

        return run_sweep(
            task, option("--sweep", parse_range, sweep), seeds=seeds, device=device, out=out
        )
    from rightbatch.validate.session import COMPARISON
    from rightbatch.validate.session import validate as run_validation
    from rightbatch.validate.statistics import check_design

    check_design(seeds, margin)
    candidate, reference = _given(str(plan) if plan else f"batch={batch}"), _given(against)
    seconds = option("--tune-lr", parse_seconds, tune_lr) if tune_lr else None
    loaded = load(task, device)
    folder = out or Path(f"rightbatch-{loaded.name}/validate")
    say(f"validating {loaded.name} in {folder}: {2 * seeds} runs, of which finished ones are kept")
    assert candidate is not None
    with measure_bar() as on_progress:
        comparison = run_validation(
            loaded,
            candidate,
            out=folder,
            against=reference,
            seeds=seeds,
            margin=margin,
            matched_by=matched_by,
            tune_seconds=seconds,
            sharpness=sharpness,
            device=device,
            on_progress=on_progress,
        )
    return _answer(comparison, folder / COMPARISON)


def parse_range(text: str) -> list[int]:
    """Read ``8:512`` as batch sizes that double from 8 to 512.

    >>> parse_range("8:70")
    [8, 16, 32, 64]

    Raises:
        InvalidInputError: it is no range of batch sizes.
    """
    low, _, high = text.partition(":")
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) < int(high)):
        need = "two batch sizes, the smaller first"
        raise InvalidInputError(repr(text), need=need, hint="write 8:512")
    sizes = [int(low)]
    while sizes[-1] * 2 <= int(high):
        sizes.append(sizes[-1] * 2)
    return sizes


def _given(text: str) -> Plan | int | None:
    """Read ``recipe``, ``batch=256`` or the path of a plan.toml.

    Raises:
        InvalidInputError: it is none of them.
    """
    if text == "recipe":
        return None
    name, _, number = text.partition("=")
    if name == "batch":
        if not number.isdecimal() or int(number) < 1:
            found, hint = repr(text), "as in --against batch=256"
            raise InvalidInputError(found, need="a batch size of 1 or more", hint=hint)
        return int(number)
    from rightbatch.plan.toml import read_plan

    return read_plan(Path(text))


def _answer(comparison: Comparison, path: Path) -> Answer:
    undecided = comparison.verdict == "undecided"
    document = comparison.model_dump(mode="json") | {"files": {"comparison": str(path)}}
    return Answer(
        document=document,
        text=(
            comparison.reason[0].upper() + comparison.reason[1:] + ".",
            f"Candidate: {side_text(comparison.candidate)}.",
            f"Reference: {side_text(comparison.reference)}.",
            render(runs_table(comparison)),
            *comparison_lines(comparison),
            *sharpness_lines(comparison),
            f"Saved: {path}",
        ),
        exit_code=EXIT_FINDING if undecided else EXIT_DONE,
    )


def runs_table(comparison: Comparison) -> Table:
    """Each run of each pair: its metric at the end, and what it took."""
    metric = comparison.metric
    columns = ("seed", "side", metric, f"training {metric}", "updates", "examples", "time", "outcome")
    rows = tuple(
        (
            str(run.seed),
            run.side,
            _number(run.metrics.get(metric)),
            _number(run.train_metrics.get(metric)),
            f"{run.updates:,}",
            f"{run.examples:,}",
            format_seconds(run.seconds),
            run.outcome.value,
        )
        for run in comparison.runs
    )
    return Table(columns=columns, rows=rows, words=frozenset({"side", "outcome"}))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
