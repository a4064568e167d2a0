"""``rightbatch plan --device cuda:NAME``: what is added to plan for a device that is not here."""

from __future__ import annotations

from rightbatch.cli.accelerator import names_accelerator, simulated_accelerator
from rightbatch.cli.output import say
from rightbatch.cli.source import Measuring
from rightbatch.core.devices import Accelerator
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.samples import Measurements
from rightbatch.core.units import parse_seconds
from rightbatch.tasks.task import Task


def device_elsewhere(device: str, **needs_device: bool) -> Accelerator | None:
    """The accelerator of the catalogue that --device names; None for a device of this machine.

    Args:
        device: as given.
        needs_device: options that run the planned step, and whether they were given.

    Raises:
        InvalidInputError: no such accelerator, one that is not simulated, or such an option with it.
    """
    if not names_accelerator(device):
        return None
    accelerator = simulated_accelerator(device)
    refused = [name for name in ("train", "tune_lr", "check_lr") if needs_device.get(name)]
    if refused:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in refused)
        hint = f"leave out {options}, or --device"
        raise InvalidInputError(
            f"{options} with --device {device}", need="a device that is here", hint=hint
        )
    return accelerator


def add_elsewhere(
    task: Task,
    measurements: Measurements,
    accelerator: Accelerator,
    measuring: Measuring,
    *,
    modes: bool,
) -> Measurements:
    """Trace the step as the accelerator would run it, unless an earlier call has.

    Raises:
        InvalidInputError: the step cannot run on fake tensors.
        InvalidTaskError: its batches are the same at every size.
    """
    from rightbatch.measure.budget import Budget
    from rightbatch.measure.elsewhere import iterate_elsewhere

    known = [sample for sample in measurements.modes if sample.device == accelerator.name]
    if len(known) > 1 or (known and not modes):
        return measurements
    say(f"tracing {task.name} as {accelerator.title} would run it")
    budget = Budget(seconds=parse_seconds(measuring.time_budget))
    traced = tuple(iterate_elsewhere(task, accelerator, modes=modes, budget=budget))
    others = [sample for sample in measurements.modes if sample.device != accelerator.name]
    return measurements.replace(modes=(*others, *traced))
