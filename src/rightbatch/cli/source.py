"""Measurements for a verb: read from where an earlier call saved them, or made now."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from cyclopts import Parameter

from rightbatch.cli.output import say
from rightbatch.cli.progress import measure_bar
from rightbatch.core.errors import InvalidInputError, MeasurementError
from rightbatch.core.recipe import Target
from rightbatch.core.samples import Measurements
from rightbatch.core.store import read_record
from rightbatch.core.units import parse_seconds
from rightbatch.tasks.builtin import BUILTIN_TASKS

if TYPE_CHECKING:
    from rightbatch.tasks.task import Task

Value = TypeVar("Value")

Flag = Annotated[bool, Parameter(show_default=False)]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """How a task is measured; saved measurements leave no room for it."""

    device: str = "cpu"
    """Where to measure, as torch names it: cpu, cuda, cuda:1."""
    time_budget: str = "2m"
    """Longest time to measure, such as 45s, 2m or 1h30m; less where that is enough."""
    seed: int = 0
    """Of the initial weights and of every random draw."""


AS_USUAL = Measuring()


def saved_file(spec: str) -> Path | None:
    """The measurements that TASK names by file or folder; None where it names a task."""
    path = Path(spec)
    if spec in BUILTIN_TASKS:
        return None
    if path.is_dir():
        return path / "measurements.json"
    return path if path.suffix == ".json" else None


def read_saved(path: Path, measuring: Measuring, **needs_task: bool) -> Measurements:
    """Read saved measurements, refusing the options that only a task can honour.

    Args:
        path: of measurements.json.
        measuring: must hold its defaults.
        needs_task: further options and whether they were given.

    Raises:
        InvalidInputError: the file is not readable, or such an option was given.
    """
    given = {name: getattr(measuring, name) != getattr(AS_USUAL, name) for name in AS_USUAL.__slots__}
    if options := [
        f"--{name.replace('_', '-')}" for name, is_on in (given | needs_task).items() if is_on
    ]:
        found = f"{', '.join(options)} with saved measurements, {path}"
        raise InvalidInputError(found, need="a task to run", hint="name the task instead of its files")
    return read_record(path, Measurements)


def load(spec: str, device: str) -> Task:
    """Load a task, once the device is known to be there.

    Raises:
        InvalidInputError: torch cannot use the device here.
        InvalidTaskError: the task cannot be found or built.
    """
    from rightbatch.tasks.build import check_device
    from rightbatch.tasks.load import load_task

    check_device(device)
    return load_task(spec)


def measure_task(
    task: Task,
    measuring: Measuring,
    *,
    stages: Sequence[str] = ("memory", "loader", "speed", "noise"),
    out: Path | None = None,
    refresh: bool = False,
) -> Measurements:
    """Measure a task within its time budget, with a progress bar on stderr.

    Raises:
        InvalidInputError: the time budget is no duration, or ``out`` holds another task's measurements.
        KeyboardInterrupt: passed on with a note of what was kept.
    """
    from rightbatch.measure.session import measure

    seconds = option("--time-budget", parse_seconds, measuring.time_budget)
    say(f"measuring {task.name} on {measuring.device}, for {measuring.time_budget} at most")
    try:
        with measure_bar() as on_progress:
            return measure(
                task,
                out=out,
                device=measuring.device,
                time_budget_seconds=seconds,
                stages=stages,
                seed=measuring.seed,
                on_progress=on_progress,
                refresh=refresh,
            )
    except KeyboardInterrupt as stop:
        if out is not None:
            stop.add_note(f"{out / 'measurements.json'} keeps what was measured")
        raise


def measured(spec: str, measuring: Measuring, stages: Sequence[str]) -> Measurements:
    """Measurements of some stages, saved by an earlier call or made now and not saved."""
    if path := saved_file(spec):
        return read_saved(path, measuring)
    return measure_task(load(spec, measuring.device), measuring, stages=stages)


def require(model: Value | None, stage: str) -> Value:
    """The model of a stage that was asked for.

    Raises:
        MeasurementError: the samples were too few to fit one.
    """
    if model is None:
        hint = "give the measurement more time: --time-budget"
        raise MeasurementError(f"no usable samples of {stage}", need="a few", hint=hint)
    return model


def option(name: str, parse: Callable[[str], Value], text: str) -> Value:
    """Read an option's text, naming the option where it cannot be read.

    Raises:
        InvalidInputError: the text is not what the option takes.
    """
    try:
        return parse(text)
    except InvalidInputError as error:
        raise InvalidInputError(f"{name} {error.found}", need=error.need, hint=error.hint) from error


def parse_sizes(text: str) -> list[int]:
    """Read ``1,8,64`` as batch sizes.

    >>> parse_sizes("1,8,64")
    [1, 8, 64]

    Raises:
        InvalidInputError: a part is no positive integer.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        hint = "write them with commas and without spaces: 1,8,64"
        raise InvalidInputError(repr(text), need="batch sizes of 1 or more", hint=hint)
    return [int(part) for part in parts]


def parse_target(text: str, own: Target | None) -> Target:
    """Read ``METRIC=VALUE``, in the direction of the task's own target, or with >= or <=.

    >>> parse_target("loss<=0.1", None)
    Target(metric='loss', value=0.1, higher_is_better=False)

    Raises:
        InvalidInputError: the text is no such target, or ``=`` leaves the direction open.
    """
    match = re.fullmatch(r"\s*(.+?)\s*(>=|<=|=)\s*(\S+)\s*", text)
    try:
        metric, sign, value = (match[1], match[2], float(match[3])) if match else ("", "", math.nan)
    except ValueError:
        metric, sign, value = "", "", math.nan
    if not math.isfinite(value):
        hint = "as in --target accuracy=0.98"
        raise InvalidInputError(f"--target {text!r}", need="METRIC=VALUE", hint=hint)
    if sign == "=" and (own is None or own.metric != metric):
        found = f"--target {text!r}, while the task's target is {own or 'none'}"
        hint = f"--target '{metric}>={value:g}' or '{metric}<={value:g}'"
        raise InvalidInputError(found, need="the direction of this metric", hint=hint)
    higher = own.higher_is_better if sign == "=" and own else sign == ">="
    return Target(metric, value, higher)


def parse_workers(text: str) -> int | Literal["ray"]:
    """Read a number of processes, or ``ray``.

    >>> parse_workers("4"), parse_workers("ray")
    (4, 'ray')

    Raises:
        InvalidInputError: it is neither.
    """
    if text == "ray":
        return "ray"
    if text.isdecimal() and int(text) > 0:
        return int(text)
    found, hint = repr(text), "--workers 2, or --workers ray on a Ray cluster"
    raise InvalidInputError(found, need="a number of processes, 1 or more, or ray", hint=hint)
