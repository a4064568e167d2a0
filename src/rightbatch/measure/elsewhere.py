"""What a training step would compute, move and hold on an accelerator that is not here."""

from __future__ import annotations

from collections.abc import Iterator

from rightbatch.core.devices import Accelerator
from rightbatch.core.errors import InvalidInputError, RightBatchError
from rightbatch.core.recipe import Precision
from rightbatch.core.samples import MemoryTrace, ModeSamples
from rightbatch.core.work import StepWork
from rightbatch.measure.budget import Budget
from rightbatch.measure.memory import trace_cuda
from rightbatch.measure.memory.ladder import check_growth, degree_of, trace_lone
from rightbatch.measure.memory.options import AS_TODAY, StepOptions
from rightbatch.measure.memory.steps import caller_untouched
from rightbatch.measure.memory.worst_case import find_worst_case, with_examples
from rightbatch.measure.modes import other_modes, with_precision
from rightbatch.measure.operations import trace_work
from rightbatch.tasks.build import build_model, smallest_micro_batch
from rightbatch.tasks.task import Task
from rightbatch.tasks.where import at, raised_at

# Two sizes give every allocation's line; the third shows a curve, and the fourth gives it.
_SIZES, _CURVED = (2, 3, 5), 9
# Work is a line in the batch size, and a roofline bends in few places: sizes lie so far apart.
SPACING, LARGEST, FEWEST = 4, 4096, 3
OPTIMIZER = frozenset({"setup", "optimizer"})
STEP = frozenset({"forward", "backward"})


def trace_accelerator(
    task: Task, accelerator: Accelerator, options: StepOptions = AS_TODAY
) -> list[MemoryTrace]:
    """Trace the step at a few sizes as the accelerator would run it, on the costliest examples.

    Raises:
        InvalidInputError: the step cannot run on fake tensors.
        InvalidTaskError: its batches are the same at every size.
        RightBatchError: what the task's own code raised.
    """
    with caller_untouched():
        worst_case = find_worst_case(task)
    costliest = with_examples(task, worst_case.indices)

    def trace(size: int) -> MemoryTrace:
        return trace_cuda(costliest, size, options=options, capability=accelerator.capability)

    try:
        traces = [trace(size) for size in _SIZES]
        if degree_of(traces) > 1:
            traces.append(trace(_CURVED))
    except RightBatchError:
        raise
    except Exception as error:  # whatever the user's code raises on tensors without values
        line = str(error).partition("\n")[0]
        found = f"no trace for {accelerator.name}{at(raised_at(error))}: {type(error).__name__}: {line}"
        hint = "keep the step in torch, without .numpy() and without moving the model; or measure here:"
        hint += " --device cpu"
        raise InvalidInputError(found, need="a step that runs on fake tensors", hint=hint) from error
    check_growth(traces)
    if len(worst_case.indices) < 2:  # else no single example is the costliest
        traces += trace_lone(trace)
    return [traced.replace(worst_case=worst_case) for traced in traces]


def iterate_elsewhere(
    task: Task, accelerator: Accelerator, *, modes: bool, budget: Budget
) -> Iterator[ModeSamples]:
    """Trace the recipe's mode, and every other where asked, as the accelerator would run it.

    Args:
        task: built afresh for every trace.
        accelerator: of the catalogue.
        modes: trace other precisions and recomputation, too; one that cannot be is yielded as refused.
        budget: ends the growth of sizes, of which there are at least 3.

    Raises:
        InvalidInputError: the step cannot run on fake tensors.
        InvalidTaskError: its batches are the same at every size.
        RightBatchError: what the task's own code raised in the recipe's mode.
    """
    own = (task.recipe.precision, False)
    names = [own, *(other_modes(task.recipe) if modes else [])]
    for index, (precision, checkpointing) in enumerate(names):
        share = budget.part(1 / (len(names) - index))
        try:
            yield _trace_mode(task, accelerator, precision, checkpointing, share)
        except RightBatchError as error:
            if (precision, checkpointing) == own:
                raise
            yield ModeSamples(
                precision=precision,
                checkpointing=checkpointing,
                device=accelerator.name,
                refused=error.found.partition("\n")[0],
            )


def _trace_mode(
    task: Task, accelerator: Accelerator, precision: Precision, checkpointing: bool, budget: Budget
) -> ModeSamples:
    changed, options = with_precision(task, precision), StepOptions(checkpointing=checkpointing)
    memory = trace_accelerator(changed, accelerator, options)
    capability = accelerator.capability

    def work(size: int, phases: frozenset[str]) -> StepWork:
        return trace_work(changed, size, options=options, capability=capability, phases=phases)

    with caller_untouched():
        size = smallest_micro_batch(build_model(changed))
    optimizer_work = work(max(2, size), OPTIMIZER)
    works: list[StepWork] = []
    while size <= min(LARGEST, task.num_train_examples):
        if len(works) >= FEWEST and budget.left <= 0:
            break
        works.append(work(size, STEP))
        size *= SPACING
    return ModeSamples(
        precision=precision,
        checkpointing=checkpointing,
        device=accelerator.name,
        memory=tuple(memory),
        works=tuple(works),
        optimizer_work=optimizer_work,
    )
