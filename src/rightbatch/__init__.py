"""Which batch size, split how, with which learning rate, and how sure are we?

Importing this package is cheap: each name is loaded when it is first used, torch with the first
one that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rightbatch.core.recipe import LoaderOptions as LoaderOptions
    from rightbatch.core.recipe import Recipe as Recipe
    from rightbatch.core.recipe import Target as Target
    from rightbatch.tasks.load import load_task as load_task
    from rightbatch.tasks.task import Loss as Loss
    from rightbatch.tasks.task import Task as Task

__version__ = "0.1.0"

_HOMES = {
    "core.recipe": ("LoaderOptions", "Recipe", "Target"),
    "tasks.load": ("load_task",),
    "tasks.task": ("Loss", "Task"),
}
_HOME = {name: f"rightbatch.{module}" for module, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_HOME)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'rightbatch' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
