"""Which batch size, split how, with which learning rate, and how sure are we?

Importing this package is cheap: each name is loaded when it is first used, torch with the first
one that needs it.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rightbatch.api import fit_memory as fit_memory
    from rightbatch.api import measure_noise as measure_noise
    from rightbatch.api import measure_speed as measure_speed
    from rightbatch.core.errors import RightBatchError as RightBatchError
    from rightbatch.core.plan import Decision as Decision
    from rightbatch.core.plan import Plan as Plan
    from rightbatch.core.recipe import LoaderOptions as LoaderOptions
    from rightbatch.core.recipe import Recipe as Recipe
    from rightbatch.core.recipe import Target as Target
    from rightbatch.core.run import Run as Run
    from rightbatch.core.samples import Measurements as Measurements
    from rightbatch.measure.memory import trace_memory as trace_memory
    from rightbatch.measure.meter.noise_meter import NoiseMeter as NoiseMeter
    from rightbatch.measure.session import measure as measure
    from rightbatch.plan.limits import Limits as Limits
    from rightbatch.plan.planner import make_plan as make_plan
    from rightbatch.plan.transformer_memory import (
        estimate_transformer_memory as estimate_transformer_memory,
    )
    from rightbatch.plan.wishes import Wishes as Wishes
    from rightbatch.tasks.load import load_task as load_task
    from rightbatch.tasks.task import Loss as Loss
    from rightbatch.tasks.task import Task as Task
    from rightbatch.train.accumulate import accumulate as accumulate
    from rightbatch.train.exact import check_accumulation as check_accumulation
    from rightbatch.train.loop import train as train
    from rightbatch.train.own_loop import windows as windows
    from rightbatch.validate.session import validate as validate

__version__ = "0.1.0"

_HOMES = {
    "api": ("fit_memory", "measure_noise", "measure_speed"),
    "core.errors": ("RightBatchError",),
    "core.plan": ("Decision", "Plan"),
    "core.recipe": ("LoaderOptions", "Recipe", "Target"),
    "core.run": ("Run",),
    "core.samples": ("Measurements",),
    "measure.memory": ("trace_memory",),
    "measure.meter.noise_meter": ("NoiseMeter",),
    "measure.session": ("measure",),
    "plan.limits": ("Limits",),
    "plan.planner": ("make_plan",),
    "plan.transformer_memory": ("estimate_transformer_memory",),
    "plan.wishes": ("Wishes",),
    "tasks.load": ("load_task",),
    "tasks.task": ("Loss", "Task"),
    "train.accumulate": ("accumulate",),
    "train.exact": ("check_accumulation",),
    "train.loop": ("train",),
    "train.own_loop": ("windows",),
    "validate.session": ("validate",),
}
_HOME = {name: f"rightbatch.{module}" for module, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_HOME)]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


class _Package(ModuleType):
    """Keeps ``rightbatch.measure`` and ``rightbatch.train`` the functions.

    Importing the folders of the same names would bind them here in their place.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rightbatch' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
