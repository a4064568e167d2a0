"""``rightbatch validate``: is a plan, or a batch size, really better than today's recipe?"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rightbatch.cli.output import Answer, say
from rightbatch.cli.picture import if_drawable
from rightbatch.cli.progress import measure_bar
from rightbatch.cli.source import Flag, load, option, parse_workers
from rightbatch.core.comparison import Comparison
from rightbatch.core.errors import EXIT_DONE, EXIT_FINDING, InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.units import parse_seconds
from rightbatch.report.terminal import render
from rightbatch.report.validation_text import remedies_table, remedy_lines, runs_table
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
    remedy: Flag = False,
    budget: str | None = None,
    sweep: str | None = None,
    rates: int | None = None,
    workers: str = "1",
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
        remedy: Where the candidate is worse, or that is undecided, try what may help it: weight decay,
            label smoothing, ghost batch norm, a smaller batch, longer training.
        budget: Such as 20runs or 10m: start so many new runs, or new runs for so long, and answer with
            what is there; the same command goes on.
        sweep: Such as 8:512: instead, train to the target at each doubling with tuned rates, and fit
            the critical batch size.
        rates: Learning rates that each batch of the sweep tries, 3 unless given, a factor 2 apart; and
            further ones while the outermost is best.
        workers: Processes that train at the same time, or ray, for those of a Ray cluster.
        device: Where to train, as torch names it: cpu, cuda, cuda:1.
        out: Folder for the answer and all runs; without it, rightbatch-NAME/validate or .../sweep.
        json: Print one JSON document on stdout.

    Raises:
        InvalidInputError: not exactly one of --plan, --batch and --sweep is given, --rates without
            --sweep, or with it what only a comparison of two sides uses.
    """
    given = [f"--{n}" for n, v in (("plan", plan), ("batch", batch), ("sweep", sweep)) if v is not None]
    if len(given) != 1:
        found = f"{' and '.join(given)} together" if given else "nothing to compare"
        hint = "--batch 256, --plan plan.toml or --sweep 8:512"
        raise InvalidInputError(found, need="one of --plan, --batch and --sweep", hint=hint)
    from rightbatch.validate.allowance import parse_allowance

    at_once = option("--workers", parse_workers, workers)
    runs, until = option("--budget", parse_allowance, budget) if budget else (None, None)
    if sweep is not None:
        of_two_sides = {
            "--against": against != "recipe",
            "--margin": margin != 0.005,
            "--matched-by": matched_by != "examples",
            "--tune-lr": tune_lr is not None,
            "--sharpness": sharpness,
            "--remedy": remedy,
        }
        if unused := [name for name, is_given in of_two_sides.items() if is_given]:
            found, hint = f"{', '.join(unused)} with --sweep", "--batch 256, or leave it out"
            raise InvalidInputError(found, need="a comparison of two sides", hint=hint)
        from rightbatch.cli.sweep import run_sweep

        return run_sweep(
            task,
            option("--sweep", parse_range, sweep),
            rates=3 if rates is None else rates,
            seeds=seeds,
            budget=(runs, until),
            workers=at_once,
            device=device,
            out=out,
        )
    if rates is not None:
        need = "a sweep, whose batches each find their own rate"
        raise InvalidInputError(f"--rates {rates} without --sweep", need=need, hint="--sweep 8:512")
    from rightbatch.report.validation import write_validation
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
            remedy=remedy,
            budget_runs=runs,
            budget_seconds=until,
            workers=at_once,
            device=device,
            on_progress=on_progress,
        )
    lines = (*comparison_lines(comparison), *sharpness_lines(comparison))
    page = if_drawable("page", lambda: write_validation(comparison, folder, lines))
    return _answer(comparison, lines, {"comparison": folder / COMPARISON, "page": page})


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


def _answer(comparison: Comparison, lines: tuple[str, ...], files: dict[str, Path | None]) -> Answer:
    saved = {name: str(path) for name, path in files.items() if path is not None}
    table = remedies_table(comparison)
    is_open = comparison.verdict == "undecided" or comparison.unfinished_runs > 0
    return Answer(
        document=comparison.model_dump(mode="json") | {"files": saved},
        text=(
            comparison.reason[0].upper() + comparison.reason[1:] + ".",
            f"Candidate: {side_text(comparison.candidate)}.",
            f"Reference: {side_text(comparison.reference)}.",
            render(runs_table(comparison)),
            *lines,
            *([render(table)] if table.rows else []),
            *remedy_lines(comparison),
            f"Saved: {', '.join(saved.values())}",
        ),
        exit_code=EXIT_FINDING if is_open else EXIT_DONE,
    )
