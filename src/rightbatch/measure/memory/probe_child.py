"""The child process of a probe: cap, warm up, run two steps, report. Run by ``probe.py`` alone.

Told as JSON on standard input; everything that the task prints goes nowhere.
"""

from __future__ import annotations

import gc
import json
import mmap
import resource
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rightbatch.core.errors import InvalidTaskError
from rightbatch.core.recipe import Recipe
from rightbatch.measure.memory.failure import classify_error
from rightbatch.measure.memory.ladder import free_memory_bytes
from rightbatch.measure.memory.malloc import (
    peak_resident_bytes,
    pin_malloc,
    process_status,
    reset_peak_resident,
    resident_bytes,
    trim_malloc,
)
from rightbatch.measure.memory.options import StepOptions
from rightbatch.measure.memory.probe import ProbeRequest
from rightbatch.measure.memory.steps import build_subject, read_batches, run_steps
from rightbatch.measure.memory.worst_case import with_examples
from rightbatch.tasks.build import to_device
from rightbatch.tasks.load import load_task
from rightbatch.tasks.step import precision_context
from rightbatch.tasks.task import Task

_WARM_UP_EXAMPLES = 2
# Of the free memory: what no run may exceed, whatever its limit.
_FREE_SHARE = 0.9
# What a limit counts, as /proc/self/status names it: private memory, or all addresses.
_LIMITED = {resource.RLIMIT_DATA: "VmData", resource.RLIMIT_AS: "VmSize"}


def run(request: ProbeRequest) -> dict[str, Any]:
    """Do what was asked; whatever the steps raise becomes the report's outcome."""
    meter = _CudaMeter(request) if request.device != "cpu" else _CpuMeter(request)
    outcome, message, is_guess, finished = "fits", "", False, False
    try:
        task = _load(request)
        size = request.micro_batch_size
        meter.start(meter.free_bytes())
        _two_steps(task, min(_WARM_UP_EXAMPLES, size), request)
        meter.start(min(request.cap_bytes, meter.free_bytes()))
        _two_steps(task, size, request)
        finished = True
    except Exception as error:  # the report carries it
        verdict = classify_error(error)
        outcome, message, is_guess = verdict.outcome, verdict.message, verdict.is_guess
    peak = meter.peak_bytes()
    meter.lift()
    return {
        "micro_batch_size": request.micro_batch_size,
        "outcome": outcome,
        "message": message,
        "peak_bytes": peak,
        "resident_bytes": peak_resident_bytes(),
        "finished": finished,
        "is_guess": is_guess,
    }


def _load(request: ProbeRequest) -> Task:
    """The caller's task, as far as a spec and a recipe tell.

    Raises:
        InvalidTaskError: its data has another length here.
    """
    task = load_task(request.spec)
    if task.recipe.model_dump_json() != request.recipe:
        task = replace(task, recipe=Recipe(**json.loads(request.recipe)))
    if task.num_train_examples != request.num_train_examples:
        found = (
            f"{task.num_train_examples} training examples, the caller has {request.num_train_examples}"
        )
        hint = "give a task as load_task returns it, with indices for other examples"
        raise InvalidTaskError(found, need=f"the task of {request.spec}", hint=hint)
    return task if request.indices is None else with_examples(task, request.indices)


def _two_steps(task: Task, micro_batch_size: int, request: ProbeRequest) -> None:
    """The steps that are traced, on any device."""
    device, options = request.device, StepOptions(**request.options)
    subject = build_subject(task, options, values=True)
    batches = read_batches(task, micro_batch_size, options)
    if device != "cpu":
        subject.model.to(device)
        subject.average = [average.to(device) for average in subject.average]
        batches = to_device(batches, device)
        precision = options.precision or task.recipe.precision
        task, options = _with_precision(task, precision, device), replace(options, precision="fp32")
    run_steps(task, subject, batches, micro_batch_size, lambda phase: None, options)


def _with_precision(task: Task, precision: str, device: str) -> Task:
    """The same loss, under the device's own autocast."""

    def loss(model: Any, batch: Any) -> Any:
        with precision_context(precision, device):
            return task.loss(model, batch)

    return replace(task, loss=loss)


class _CpuMeter:
    """Caps private memory and reads resident memory, from a fresh start for each run."""

    def __init__(self, request: ProbeRequest) -> None:
        if request.pin_malloc:
            pin_malloc()
        with suppress(OSError):  # memory that runs out all the same shall end this process, no other
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        self._limits = {kind: resource.getrlimit(kind) for kind in _LIMITED}
        self._base_bytes = 0

    def free_bytes(self) -> int:
        """What may be taken without harm to other processes."""
        return int(_FREE_SHARE * free_memory_bytes())

    def start(self, cap_bytes: int) -> None:
        """Begin a run that may take ``cap_bytes`` more than what is held now."""
        gc.collect()
        trim_malloc()
        self.lift()
        _cap_memory(cap_bytes)
        reset_peak_resident()
        self._base_bytes = resident_bytes()

    def peak_bytes(self) -> int:
        """Most that the run held."""
        return peak_resident_bytes() - self._base_bytes if self._base_bytes else 0

    def lift(self) -> None:
        """Let the report be written."""
        for kind, limits in self._limits.items():
            resource.setrlimit(kind, limits)


class _CudaMeter:
    """Caps and reads torch's own allocator of one device."""

    def __init__(self, request: ProbeRequest) -> None:
        self._device = torch.device(request.device)

    def free_bytes(self) -> int:
        """What other processes leave."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]

    def start(self, cap_bytes: int) -> None:
        """Begin a run that may take ``cap_bytes``."""
        gc.collect()
        torch.cuda.empty_cache()
        total_bytes = torch.cuda.mem_get_info(self._device)[1]
        share = min(1.0, cap_bytes / total_bytes)
        torch.cuda.set_per_process_memory_fraction(share, self._device)
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak_bytes(self) -> int:
        """Most that the run held."""
        return torch.cuda.max_memory_allocated(self._device)

    def lift(self) -> None:
        """Let the report be written."""
        torch.cuda.set_per_process_memory_fraction(1.0, self._device)


def _cap_memory(cap_bytes: int) -> None:
    """Let allocations fail that would add more than this to what is held now."""
    for kind, key in _LIMITED.items():
        soft, hard = resource.getrlimit(kind)
        limit = process_status(key) + cap_bytes
        resource.setrlimit(kind, (limit if soft == resource.RLIM_INFINITY else min(limit, soft), hard))
        if _refuses(cap_bytes + mmap.PAGESIZE):
            return  # old kernels and sandboxes accept the first kind and ignore it


def _refuses(num_bytes: int) -> bool:
    try:
        mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return True
    return False


def main() -> None:
    """Read the request, set the process up as the caller's, and write the report."""
    told = json.load(sys.stdin)
    sys.path += [entry for entry in told["search_path"] if entry not in sys.path]
    request = ProbeRequest(**told)
    torch.set_num_threads(request.num_threads)
    report = Path(request.report)
    unfinished = report.with_suffix(".part")
    unfinished.write_text(json.dumps(run(request)), encoding="utf-8")
    unfinished.rename(report)


if __name__ == "__main__":
    main()
