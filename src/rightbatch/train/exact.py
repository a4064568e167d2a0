"""Whether accumulation is exact on the user's own model and loss, and if not, what breaks it.

In float64 the gradient of a batch in micro-batches equals that of the batch in one, to rounding,
unless something makes an example's gradient depend on the others, or on chance. Each cause is looked
at alone: the loss with the whole model in evaluation mode, then batch statistics, then what else
training mode switches on.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from copy import copy
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from rightbatch.core.errors import InvalidTaskError, RightBatchError
from rightbatch.core.finding import Drift, Finding
from rightbatch.core.plan import Plan
from rightbatch.tasks.build import batch_norm_layers, build_model, join, to_device
from rightbatch.tasks.order import epoch_order
from rightbatch.tasks.task import Task
from rightbatch.train.accumulate import accumulate_pieces
from rightbatch.train.check import check_plan
from rightbatch.train.sampler import split_evenly

TOLERANCE = 1e-10  # rounding in float64 stays near 1e-15, and what breaks exactness far above
_MOST_EXAMPLES = 256  # of today's batch, where no plan asks for more
_CAUSES: dict[str, tuple[str, str]] = {
    "loss": (
        "the loss",
        "return rb.Loss(total, count) over the targets that count; a loss that compares the examples of"
        " a batch needs them in one micro-batch; padding, as long as a micro-batch's longest example"
        " wants it, must be masked in model and loss",
    ),
    "batch-norm": (
        "BatchNorm, which normalises over a micro-batch",
        "keep the micro-batch of today's recipe, or use GroupNorm or LayerNorm",
    ),
    "model": (
        "the model in training mode, which lets examples of a batch see each other",
        "look for means over dimension 0",
    ),
    "dropout": (
        "random numbers such as dropout's, which every split draws in another order",
        "nothing to do: it averages out over updates",
    ),
}


def check_accumulation(
    task: Task, plan: Plan | None = None, *, device: str = "cpu", seed: int = 0
) -> Finding | None:
    """Compare the gradient of one update in micro-batches with that of the batch in one, in float64.

    Args:
        task: what ``load_task`` gave.
        plan: gives batch and split; without one, today's batch in three unequal pieces.
        device: as torch names it.
        seed: of the initial weights and the choice of examples.

    Returns:
        What breaks exactness, with the size of the drift; None where nothing does.

    Raises:
        InvalidInputError: the plan is not this task's.
        InvalidTaskError: model or loss cannot be run in float64.
    """
    if plan is not None:
        plan = check_plan(task, plan)
    sizes = split_sizes(task, plan)
    drifts = measure_drifts(task, sizes, device=device, seed=seed)
    broken = [drift for drift in drifts if max(drift.value, drift.chance) > TOLERANCE]
    if not broken:
        return None
    return Finding(
        rule="accumulation",
        found=f"{sum(sizes)} examples in micro-batches of {', '.join(map(str, sizes))} have another"
        f" gradient than in one: {'; '.join(map(_sentence, broken))}",
        need=f"a relative difference of at most {TOLERANCE:g}",
        hint="; ".join(_CAUSES[drift.cause][1] for drift in broken),
        drifts=tuple(broken),
    )


def split_sizes(task: Task, plan: Plan | None) -> tuple[int, ...]:
    """Micro-batches of the plan's update, or three unequal ones of today's batch."""
    if plan is not None:
        sizes = split_evenly(plan.global_batch_size, plan.micro_batch_size)
        if len(sizes) > 1:
            return sizes
    total = plan.global_batch_size if plan else min(task.recipe.batch_size, _MOST_EXAMPLES)
    total = min(task.num_train_examples, max(total, 8))
    half, third = total // 2, total // 3
    return tuple(size for size in (half, third, total - half - third) if size)


def measure_drifts(
    task: Task, sizes: Sequence[int], *, device: str = "cpu", seed: int = 0
) -> list[Drift]:
    """How far each cause alone takes the split from the one batch.

    Raises:
        InvalidTaskError: model or loss cannot be run in float64.
    """
    model = build_model(task, device, seed).double()
    order = epoch_order("shuffle", task.num_train_examples, seed=seed, epoch=0)
    data: Any = task.train_data
    examples = iter([data[int(i)] for i in order[: sum(sizes)]])  # read once: reading may augment
    pieces = [[next(examples) for _ in range(size)] for size in sizes]

    def gradient(parts: list[list[Any]], draw: int) -> Tensor:
        torch.manual_seed(draw)
        batches = [(len(part), _double(to_device(join(task, part), device))) for part in parts]
        try:
            accumulate_pieces(model, task.loss, batches)
        except RightBatchError:
            raise
        except Exception as error:
            found = f"in float64 it raised {type(error).__name__}: {error}"
            hint = "take dtypes from the inputs instead of writing torch.float32"
            raise InvalidTaskError(found, need="a model and loss that run in it", hint=hint) from error
        return torch.cat([
            p.grad.to_dense().flatten() for p in model.parameters() if p.grad is not None
        ])

    def drift(cause: str) -> Drift:
        whole = [[example for piece in pieces for example in piece]]
        one, again, split = gradient(whole, 1), gradient(whole, 2), gradient(pieces, 1)
        scale = float(one.norm()) or 1.0
        return Drift(
            cause=cast(Any, cause),
            value=float((split - one).norm()) / scale,
            chance=float((again - one).norm()) / scale,
        )

    norms = batch_norm_layers(model)
    # cuDNN's recurrent layers have no backward in evaluation mode.
    with torch.backends.cudnn.flags(enabled=False):
        found = [drift("loss")] if model.eval() else []
        model.train()
        _set_training(norms, False)
        trained = drift("model")
        found.append(trained if trained.chance <= TOLERANCE else trained.replace(cause="dropout"))
        if norms:
            model.eval()
            _set_training(norms, True)
            found.append(drift("batch-norm"))
    # What the loss does by itself shows in every mode.
    return found if found[0].value <= TOLERANCE else found[:1]


def _sentence(drift: Drift) -> str:
    text = f"{100 * drift.value:.3g}% by {_CAUSES[drift.cause][0]}"
    if drift.chance <= TOLERANCE:
        return text
    return f"{text} (two passes of the one batch differ by {100 * drift.chance:.3g}%)"


def _set_training(modules: list[nn.Module], is_training: bool) -> None:
    for module in modules:
        module.train(is_training)


def _double(batch: Any) -> Any:
    """A batch whose floating-point tensors are float64."""
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, MutableMapping):
        doubled = copy(cast(Any, batch))
        for key, value in batch.items():
            doubled[key] = _double(value)
        return doubled
    if is_dataclass(batch):
        kept = [field.name for field in fields(batch) if field.init]
        return replace(cast(Any, batch), **{name: _double(getattr(batch, name)) for name in kept})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*map(_double, batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map(_double, batch))
    return batch
