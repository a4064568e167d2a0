"""``rightbatch memory``: peak bytes of any batch size, and the largest that fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cyclopts import Parameter

from rightbatch.cli.accelerator import accelerator_memory, names_accelerator
from rightbatch.cli.estimate import NO_SHAPE, Shape, estimate_memory
from rightbatch.cli.largest import Room, largest_answer, verify_largest
from rightbatch.cli.output import Answer, say
from rightbatch.cli.progress import measure_bar
from rightbatch.cli.source import (
    AS_USUAL,
    Flag,
    Measuring,
    load,
    option,
    parse_sizes,
    read_saved,
    saved_file,
)
from rightbatch.cli.what_if import what_if_answer
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.progress import Progress
from rightbatch.core.samples import Measurements, MemoryTrace
from rightbatch.core.units import parse_bytes, parse_seconds
from rightbatch.fit.memory_model import fit_memory_model

if TYPE_CHECKING:
    from rightbatch.measure.memory.options import StepOptions
    from rightbatch.plan.transformer_memory import Precision
    from rightbatch.tasks.task import Task

_PRECISIONS: dict[str, Precision] = {"fp32": "fp32", "bf16": "bf16", "pure-bf16": "bf16-pure"}
_SIZES = "1,4,16,64,256,1024"


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What the step does otherwise than in today's recipe."""

    precision: Literal["fp32", "bf16", "fp16", "pure-bf16"] | None = None
    """Of forward and backward: bf16 and fp16 are autocast, pure-bf16 keeps weights in 16 bits, too."""
    checkpointing: Flag = False
    """Keep only the inputs of repeated blocks, and run each again in backward."""
    accumulation: int = 1
    """Micro-batches per optimizer step."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Verifying:
    """Whether and how the answer is run before it is printed."""

    verify: Flag = False
    """Run two steps of the largest size in a process of its own before printing it."""
    pin_malloc: Flag = False
    """Let that process return large blocks at once, as rightbatch train --pin-malloc does."""


NO_CHANGES, UNVERIFIED = Changes(), Verifying()


def memory(  # noqa: PLR0913 - groups of options, each its own
    task: str | None = None,
    /,
    *,
    batch: str = _SIZES,
    limit: str | None = None,
    headroom: float = 0.1,
    what_if: Flag = False,
    step: Changes = NO_CHANGES,
    verifying: Verifying = UNVERIFIED,
    shape: Shape = NO_SHAPE,
    measuring: Measuring = AS_USUAL,
    json: Flag = False,
) -> Answer:
    """Predict the peak memory of any batch size without running it.

    With --device cuda:NAME it is predicted for an accelerator that need not be here, such as
    cuda:a100-40gb; another NAME lists them. With --hf-config no task is needed.

    Args:
        task: A built-in name, my_task.py[:name] or package.module:name, or a folder of an earlier plan.
        batch: Micro-batch sizes to predict, in examples, with commas between them.
        limit: Memory that may be used, such as 20GiB; without it, the device's memory.
        headroom: Share of the limit to leave free, from 0 to below 1.
        what_if: Trace every option of the step: what would save most bytes, and what it would cost.
        step: What the step does otherwise than in today's recipe.
        verifying: Whether and how the answer is run before it is printed.
        shape: A transformer without code.
        measuring: How to measure.
        json: Print one JSON document on stdout.

    Raises:
        InvalidInputError: an option has no such value, or goes without another.
    """
    sizes = option("--batch", parse_sizes, batch)
    given = option("--limit", parse_bytes, limit) if limit else None
    _check(task, step, verifying, shape, measuring)
    if what_if and (task is None or verifying.verify):
        found = "--what-if with " + ("--hf-config" if task is None else "--verify")
        raise InvalidInputError(found, need="a task, whose options are traced", hint="leave one out")
    if not 0 <= headroom < 1:
        found, hint = f"--headroom {headroom}", "--headroom 0.1"
        raise InvalidInputError(found, need="a share of at least 0 and below 1", hint=hint)
    if task is None:
        return estimate_memory(
            shape,
            sizes,
            precision=_PRECISIONS[step.precision or "fp32"],
            checkpointing=step.checkpointing,
            accumulation_steps=step.accumulation,
            device=measuring.device,
            limit_bytes=given,
            headroom=headroom,
        )
    if what_if:
        return what_if_answer(
            task,
            None if batch == _SIZES else sizes,
            _step_options(step),
            device=measuring.device,
            limit_bytes=given,
            headroom=headroom,
        )
    if names_accelerator(measuring.device):
        loaded = load(task, "cpu")
        return accelerator_memory(
            loaded,
            measuring.device,
            sizes,
            limit_bytes=given,
            headroom=headroom,
            options=_step_options(step),
            most_examples=most_examples(loaded.num_train_examples, step.accumulation),
        )
    loaded, measurements = _measured(task, step, verifying, measuring)
    model = fit_memory_model(measurements.memory)
    room = Room(
        limit_bytes=given or _usual_limit(measurements, verifying),
        headroom=headroom,
        most_examples=most_examples(measurements.task.num_train_examples, step.accumulation),
        last_size=model.valid_range[1],
    )
    probed = None
    if verifying.verify and loaded is not None:
        say(f"running the largest size of {loaded.name} in a process of its own")
        probed = verify_largest(
            loaded,
            model,
            room,
            measurements.memory,
            device=measuring.device,
            options=_step_options(step),
            pin_malloc=verifying.pin_malloc,
        )
    return largest_answer(measurements, model, sizes, room, probed)


def most_examples(num_train_examples: int, accumulation_steps: int) -> int:
    """Largest micro-batch that the training data fills.

    Raises:
        InvalidInputError: it fills not one example in each.
    """
    if not 1 <= accumulation_steps <= num_train_examples:
        found = f"--accumulation {accumulation_steps} with {num_train_examples:,} training examples"
        need = "at least 1, and an example for each micro-batch"
        raise InvalidInputError(found, need=need, hint="--accumulation 1")
    return num_train_examples // accumulation_steps


def _check(
    task: str | None, step: Changes, verifying: Verifying, shape: Shape, measuring: Measuring
) -> None:
    """Refuse what leaves an option without effect.

    Raises:
        InvalidInputError: there is such an option, or neither a task nor a shape.
    """
    given = [f"--{name.replace('_', '-')}" for name in shape.given]
    if (task is None) == (shape.hf_config is None):
        found = "neither TASK nor --hf-config" if task is None else f"TASK {task} and --hf-config"
        hint = "rightbatch memory my_task.py, or rightbatch memory --hf-config config.json --seq 512"
        raise InvalidInputError(found, need="one of the two", hint=hint)
    simulated = task is None or names_accelerator(measuring.device)
    pinned, by_shape = verifying.pin_malloc, task is None
    refused = (
        (not by_shape and bool(given), ", ".join(given), "--hf-config beside them", "leave them out"),
        (
            verifying.verify and simulated,
            "--verify",
            "a task, and a device that is here",
            "leave it out",
        ),
        (
            pinned and not verifying.verify,
            "--pin-malloc",
            "--verify: it changes the process's memory, not its tensors",
            "add --verify, or train with rightbatch train --pin-malloc",
        ),
        (
            pinned and measuring.device != "cpu",
            "--pin-malloc",
            "the CPU, whose malloc it is",
            "leave it out",
        ),
        (
            by_shape and step.precision == "fp16",
            "--precision fp16 with --hf-config",
            "fp32, bf16 or pure-bf16",
            "--precision bf16 takes the same",
        ),
        (
            step.accumulation < 1,
            f"--accumulation {step.accumulation}",
            "at least 1",
            "--accumulation 1",
        ),
    )
    for is_wrong, found, need, hint in refused:
        if is_wrong:
            raise InvalidInputError(found, need=need, hint=hint)


def _step_options(step: Changes) -> StepOptions:
    """The options as tracing and probing take them."""
    from rightbatch.measure.memory.options import StepOptions

    return StepOptions(
        precision=step.precision,
        checkpointing=step.checkpointing,
        accumulation_steps=step.accumulation,
    )


def _measured(
    spec: str, step: Changes, verifying: Verifying, measuring: Measuring
) -> tuple[Task | None, Measurements]:
    """Traces that an earlier call saved, or the task and traces made now and not saved."""
    if path := saved_file(spec):
        changed = {name: getattr(step, name) != getattr(NO_CHANGES, name) for name in step.__slots__}
        return None, read_saved(path, measuring, verify=verifying.verify, **changed)
    task = load(spec, measuring.device)
    return task, _trace(task, measuring, _step_options(step))


def _trace(task: Task, measuring: Measuring, options: StepOptions) -> Measurements:
    """Trace the task's steps until a law follows, or the time is up."""
    from rightbatch.measure.budget import Budget
    from rightbatch.measure.environment import read_environment
    from rightbatch.measure.memory import iterate_memory_traces
    from rightbatch.tasks.check import check_task

    budget = Budget(seconds=option("--time-budget", parse_seconds, measuring.time_budget))
    facts = check_task(task, measuring.device)
    most_examples(facts.num_train_examples, options.accumulation_steps)
    say(f"tracing {task.name}, for {measuring.time_budget} at most")
    traces: list[MemoryTrace] = []
    with measure_bar() as on_progress:
        for trace in iterate_memory_traces(task, options=options):
            traces.append(trace)
            if on_progress is not None:
                message = f"memory trace at micro-batch {trace.micro_batch_size}"
                done = min(budget.elapsed / budget.seconds, 0.99)
                left = max(budget.left, 0.0)
                on_progress(Progress(stage="memory", fraction=done, seconds_left=left, message=message))
            if budget.left <= 0 and len(traces) >= 2:  # fewer fit no law
                say("--time-budget ended the traces; more of them narrow the intervals")
                break
    return Measurements(
        task=facts, environment=read_environment(measuring.device), memory=tuple(traces)
    )


def _usual_limit(measurements: Measurements, verifying: Verifying) -> int:
    """The device's memory, or what is free of it now where the answer is to be run."""
    if verifying.verify and measurements.environment.device == "cpu":
        from rightbatch.measure.memory.ladder import free_memory_bytes

        return free_memory_bytes()
    return measurements.environment.memory_bytes
