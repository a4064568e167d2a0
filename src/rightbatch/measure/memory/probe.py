"""Does a micro-batch fit? Run it for real, in a process of its own, under a cap.

Linux ends a process that takes too much memory, and torch on the CPU has no limit of its own. So
the steps run in a child process whose ``RLIMIT_DATA`` turns the excess into an exception there. An
exception, a kill, an abort or silence of the child is an outcome; nothing of it reaches the caller.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rightbatch.core.errors import InvalidInputError, MeasurementError
from rightbatch.core.units import format_bytes
from rightbatch.fit.memory_model import MemoryModel
from rightbatch.measure.memory.failure import Outcome, classify_exit
from rightbatch.measure.memory.options import AS_TODAY, StepOptions
from rightbatch.tasks.task import Task

# A step that exceeds the limit by less than this is measured to its end, so that the excess is known.
_ROOM = 1.25
# By how much fresh runs of the same steps differ in resident memory, whatever they hold: it depends
# on hash seeds and addresses how many small blocks fit into holes of the heap.
_REPEATABLE_BYTES = 2 * 2**20
_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What became of one real run."""

    micro_batch_size: int
    outcome: Outcome
    message: str
    """Why it does not fit or did not run; empty where it fits."""
    peak_bytes: int | None
    """Growth of the child's resident memory over what it held after imports and a warm-up, on CUDA
    the allocator's peak; up to the failure where it failed; None where the child could not tell."""
    resident_bytes: int | None
    """Most physical memory that the child's process held (VmHWM), imports included."""
    seconds: float
    """From the child's start to its end."""
    finished: bool
    """Whether both steps ran to their end, within the limit or not."""
    is_guess: bool = False
    """Whether the outcome may have another cause: a kill from outside, a library's vague message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """What the child is told, as JSON."""

    spec: str
    recipe: str
    num_train_examples: int
    micro_batch_size: int
    cap_bytes: int
    """Beyond what the process holds after the warm-up; less where less memory is free."""
    device: str
    num_threads: int
    options: dict[str, Any]
    """Fields of ``StepOptions``."""
    pin_malloc: bool
    indices: tuple[int, ...] | None
    search_path: tuple[str, ...]
    report: str
    """Where it writes what it found."""


def probe_micro_batch(  # noqa: PLR0913 - all but two have defaults
    task: Task,
    micro_batch_size: int,
    *,
    limit_bytes: int,
    repeats: int = 1,
    timeout_seconds: float = _TIMEOUT_SECONDS,
    device: str = "cpu",
    options: StepOptions = AS_TODAY,
    pin_malloc: bool = False,
    indices: Sequence[int] | None = None,
) -> ProbeResult:
    """Run two optimizer steps of the task's recipe in a fresh child process under a memory cap.

    It fits if the child's resident memory grows by no more than ``limit_bytes`` over what imports
    and two warm-up steps of at most 2 examples leave behind. The cap stands a quarter higher, so
    that a small excess is measured, and never above 90 % of the memory that is free.

    Args:
        task: loaded again by the child from its ``spec``, with the recipe of this one.
        micro_batch_size: examples in each forward.
        limit_bytes: what the steps may take.
        repeats: fresh children; all must fit.
        timeout_seconds: for each child, its start included.
        device: ``cpu`` or a CUDA device, whose cap is torch's own.
        options: what the steps do beside the recipe.
        pin_malloc: train with large blocks returned at once; see ``malloc.pin_malloc``.
        indices: the training examples to use, such as the worst case's; None takes the first.

    Returns:
        The run that took most, or the first that did not fit.

    Raises:
        InvalidInputError: the task has no ``spec``, or a number is out of range.
        MeasurementError: this is not Linux, whose caps and counts are used.
    """
    if not task.spec:
        hint = "load it: rb.load_task('my_task.py') or 'package.module:function'"
        found = f"task {task.name!r}, built in this process"
        raise InvalidInputError(found, need="a task that a fresh process can load", hint=hint)
    if min(micro_batch_size, limit_bytes, repeats) < 1 or not timeout_seconds > 0:
        found = f"micro_batch_size {micro_batch_size}, limit_bytes {limit_bytes}, "
        found += f"repeats {repeats}, timeout_seconds {timeout_seconds}"
        raise InvalidInputError(found, need="all positive", hint="give positive numbers")
    if sys.platform != "linux":
        hint = "trust the law, or run the steps on Linux"
        raise MeasurementError(f"platform {sys.platform}", need="Linux", hint=hint)
    request = ProbeRequest(
        spec=task.spec,
        recipe=task.recipe.model_dump_json(),
        num_train_examples=task.num_train_examples,
        micro_batch_size=micro_batch_size,
        cap_bytes=int(_ROOM * limit_bytes),
        device=device,
        num_threads=torch.get_num_threads(),
        options=asdict(options),
        pin_malloc=pin_malloc,
        indices=None if indices is None else tuple(indices),
        search_path=tuple(sys.path),
        report="",
    )
    results: list[ProbeResult] = []
    for _ in range(repeats):
        results.append(_judge(_run_child(request, timeout_seconds), limit_bytes))
        if results[-1].outcome != "fits":
            return results[-1]
    return max(results, key=lambda result: result.peak_bytes or 0)


def largest_that_fits(  # noqa: PLR0913 - all but three have defaults
    task: Task,
    memory_model: MemoryModel,
    limit_bytes: int,
    headroom: float = 0.1,
    *,
    timeout_seconds: float = _TIMEOUT_SECONDS,
    device: str = "cpu",
    options: StepOptions = AS_TODAY,
    pin_malloc: bool = False,
    indices: Sequence[int] | None = None,
) -> tuple[int, list[ProbeResult]]:
    """Find the largest micro-batch: the law proposes, and one real run confirms or corrects it.

    Args:
        task: as ``probe_micro_batch`` takes it; one step takes no more examples than its data has.
        memory_model: fitted to this task.
        limit_bytes: what the steps may take.
        headroom: share of it that the proposal leaves free.
        timeout_seconds: for each run.
        device: where it is to run.
        options: what the steps do beside the recipe; the model has to be fitted to the same.
        pin_malloc: as in training.
        indices: as ``probe_micro_batch`` takes them; the model has to be fitted to the same.

    Returns:
        A size that was run and fits, and the one or two runs.

    Raises:
        InfeasibleError: one example does not fit by the law.
        MeasurementError: one or two sizes did not fit and no other would, or a step fails.
    """
    results: list[ProbeResult] = []
    most = max(1, task.num_train_examples // options.accumulation_steps)
    kept_bytes = max(1, limit_bytes - _REPEATABLE_BYTES)  # so that later runs fit, too
    usable_bytes, share = limit_bytes, headroom
    for _ in range(2):
        size = min(memory_model.max_micro_batch(usable_bytes, share), most)
        results.append(
            probe_micro_batch(
                task,
                size,
                limit_bytes=kept_bytes,
                timeout_seconds=timeout_seconds,
                device=device,
                options=options,
                pin_malloc=pin_malloc,
                indices=indices,
            )
        )
        if results[-1].outcome == "fits":
            return size, results
        if results[-1].outcome == "failed":
            need, hint = "two steps that run", "run two steps of the recipe in Python"
            found = f"micro-batch size {size}: {results[-1].message}"
            raise MeasurementError(found, need=need, hint=hint)
        usable_bytes, share = _corrected(results[-1], memory_model.high_bytes(size), kept_bytes), 0.0
        if usable_bytes < memory_model.high_bytes(1):
            break  # what the run took beside its tensors leaves no room for one example
    tried = ", ".join(f"{r.micro_batch_size} ({r.outcome}: {r.message})" for r in results)
    hint = "raise the limit, or leave more headroom: the law misses what these steps take"
    raise MeasurementError(f"no fit at sizes {tried}", need="a size that fits", hint=hint)


def _corrected(result: ProbeResult, predicted_bytes: int, limit_bytes: int) -> int:
    """What the law may use next: the limit less the excess that was measured, or half of it."""
    if result.outcome == "too_large_for_kernel" or not result.finished or result.peak_bytes is None:
        return min(predicted_bytes, limit_bytes) // 2
    return limit_bytes - _REPEATABLE_BYTES - max(0, result.peak_bytes - predicted_bytes)


def _judge(result: ProbeResult, limit_bytes: int) -> ProbeResult:
    """Steps that ran to their end have to have kept the limit, too."""
    if not result.finished or result.peak_bytes is None or result.peak_bytes <= limit_bytes:
        return result
    took, limit = result.peak_bytes, limit_bytes
    message = f"took {took:,} bytes ({format_bytes(took)}), {took - limit:,} above the limit"
    return replace(result, outcome="out_of_memory", message=message)


def _run_child(request: ProbeRequest, timeout_seconds: float) -> ProbeResult:
    """Start one child, wait for it, and read its report or its remains."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="rightbatch-probe-") as folder:
        report, errors = Path(folder, "report.json"), Path(folder, "stderr")
        told = json.dumps(asdict(replace(request, report=str(report))))
        command = [sys.executable, "-m", "rightbatch.measure.memory.probe_child"]
        with errors.open("wb") as stderr:
            try:
                done = subprocess.run(
                    command,
                    input=told.encode(),
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    timeout=timeout_seconds,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                done = None
        seconds = time.perf_counter() - start
        if done is not None and report.is_file():
            return ProbeResult(seconds=seconds, **json.loads(report.read_text(encoding="utf-8")))
        text = errors.read_text(encoding="utf-8", errors="replace")
    if done is None:
        outcome, is_guess = "failed", False
        message = f"no end within {timeout_seconds:g} s"
    else:
        verdict = classify_exit(done.returncode, text)
        outcome, message, is_guess = verdict.outcome, verdict.message, verdict.is_guess
    return ProbeResult(
        micro_batch_size=request.micro_batch_size,
        outcome=outcome,
        message=message,
        peak_bytes=None,
        resident_bytes=None,
        seconds=seconds,
        finished=False,
        is_guess=is_guess,
    )
