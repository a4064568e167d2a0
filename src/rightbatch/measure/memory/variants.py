"""The options that a training step has, each as a task and options that can be traced."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from rightbatch.core.devices import Accelerator
from rightbatch.core.facts import OPTIMIZER_FAMILIES
from rightbatch.measure.memory.options import AS_TODAY, StepOptions
from rightbatch.tasks.build import build_model, build_optimizer, smallest_micro_batch
from rightbatch.tasks.task import Task

_SPLITS, _DEVICES = (2, 4), (2, 8)
_FORMS = {
    "for-loop": "one parameter after another, the same update",
    "foreach": "all parameters at once, the same update",
    "fused": "one kernel for the whole update, the same up to rounding",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A step as it is or might be."""

    option: str
    task: Task
    micro_batch_size: int
    options: StepOptions = AS_TODAY
    note: str = ""
    """What it changes beside memory, in words."""


def variants(today: Variant, accelerator: Accelerator | None) -> list[Variant]:
    """Every option that today's step does not use yet, in no order.

    Args:
        today: the step as it is.
        accelerator: where it runs; None is the CPU.
    """
    return [*_step_variants(today, accelerator), *_recipe_variants(today), *_parallel_variants(today)]


def _with(today: Variant, option: str, note: str, **changes: Any) -> Variant:
    return replace(today, option=option, note=note, options=replace(today.options, **changes))


def _step_variants(today: Variant, accelerator: Accelerator | None) -> Iterator[Variant]:
    base, size = today.options, today.micro_batch_size
    precision = base.precision or today.task.recipe.precision
    half = "fp16" if accelerator is not None and accelerator.capability < (8, 0) else "bf16"
    lower = precision == "fp32"
    autocast_note = "products in 16 bits, weights and their updates in 32"
    if not base.checkpointing:
        note = "the same gradient; forward of repeated blocks runs twice"
        yield _with(today, "checkpointing", note, checkpointing=True)
        if lower:
            both = f"checkpointing + {half} autocast"
            yield _with(today, both, f"{note}; {autocast_note}", checkpointing=True, precision=half)
    if lower:
        yield _with(today, f"{half} autocast", autocast_note, precision=half)
    if precision != "pure-bf16":
        note = "everything in bf16: updates below 0.4 % of a weight are lost"
        yield _with(today, "bf16 weights", note, precision="pure-bf16")
    smallest = smallest_micro_batch(build_model(today.task))
    for split in _SPLITS:
        if size % split == 0 and size // split >= smallest:
            steps = split * base.accumulation_steps
            note = "the same update" + ("; batch statistics of fewer examples" if smallest > 1 else "")
            name = f"{steps} micro-batches of {size // split}"
            variant = _with(today, name, note, accumulation_steps=steps)
            yield replace(variant, micro_batch_size=size // split)
    optimizer = build_optimizer(today.task.recipe, build_model(today.task), today.task.recipe.lr)
    usual = "foreach" if accelerator is not None else "for-loop"
    for form, note in _FORMS.items():
        if form not in {usual, base.optimizer_form} and form in {"for-loop", *optimizer.defaults}:
            yield _with(today, f"{form} optimizer", note, optimizer_form=form)
    if not base.keep_gradients:
        name, note = "zero_grad(set_to_none=False)", "gradients stay allocated"
        yield _with(today, name, note, keep_gradients=True)
    if not base.evaluation:
        note = "an evaluation batch of the same size after the step"
        yield _with(today, "evaluation", note, evaluation=True)


def _recipe_variants(today: Variant) -> Iterator[Variant]:
    recipe = today.task.recipe

    def changed(option: str, note: str, **changes: Any) -> Variant:
        task = dataclasses.replace(today.task, recipe=recipe.replace(**changes))
        return replace(today, option=option, note=note, task=task)

    unset = {"betas": None, "eps": None, "momentum": None, "weight_decay": None}
    family = next(
        (f for n, f in OPTIMIZER_FAMILIES.items() if n.lower() == recipe.optimizer_name), None
    )
    note = "another optimizer: tune its learning rate anew"
    if family == "adam":
        yield changed("adafactor", note, optimizer="adafactor", **unset)
        sgd = {**unset, "optimizer": "sgd"}
        yield changed("sgd with momentum", note, **{**sgd, "momentum": 0.9})
        yield changed("sgd", note, **sgd)
    elif family == "sgd" and recipe.momentum:
        yield changed("sgd without momentum", note, momentum=None)
    if recipe.ema_decay is not None:
        yield changed("no averaged weights", "evaluation of the last weights", ema_decay=None)
    if recipe.clip_norm is not None:
        yield changed("no clipping", "large gradients stay large", clip_norm=None)


def _parallel_variants(today: Variant) -> Iterator[Variant]:
    if today.options.parallel is not None:
        return
    for devices in _DEVICES:
        note = f"on each of {devices}: shares of weights, gradients and state, gathered block by block"
        yield _with(today, f"fsdp over {devices}", note, parallel="fsdp", world_size=devices)
    note = "on each device: gradients once more, in buckets"
    yield _with(today, "ddp", note, parallel="ddp", world_size=2)
    note = "on each device: gradients live in the buckets"
    yield _with(today, "ddp, gradient_as_bucket_view", note, parallel="ddp-bucket-view", world_size=2)
