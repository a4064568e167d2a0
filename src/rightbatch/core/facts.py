"""What is known of the task and the machine before anything is measured."""

from __future__ import annotations

from typing import Literal

from rightbatch.core.recipe import LoaderOptions, Recipe, Target
from rightbatch.core.record import Record

OptimizerFamily = Literal["sgd", "adam", "other"]

# The update follows the gradient's size (momentum only averages it), or only its direction,
# coordinate by coordinate, or neither.
_MEMBERS: dict[OptimizerFamily, str] = {
    "sgd": "SGD ASGD",
    "adam": "Adam AdamW NAdam RAdam Adamax RMSprop Adagrad Adadelta SparseAdam",
    "other": "Adafactor LBFGS Muon Rprop",
}
OPTIMIZER_FAMILIES: dict[str, OptimizerFamily] = {
    name: family for family, names in _MEMBERS.items() for name in names.split()
}
"""How the update of each ``torch.optim`` class scales with the gradient."""
FAMILIES_BY_NAME: dict[str, OptimizerFamily] = {
    name.lower(): family for name, family in OPTIMIZER_FAMILIES.items()
}
"""The same by the name of the class in lower case."""


class Environment(Record):
    """Where a sample was taken; samples of two environments are never mixed."""

    device: str
    """As torch names it: ``cpu``, ``cuda:0``."""
    device_name: str
    """The processor or accelerator in words."""
    memory_bytes: int
    """Memory of the device in all."""
    num_threads: int
    """Threads torch computes with on the CPU."""
    python: str
    torch: str
    platform: str


class TaskFacts(Record):
    """A task as plain data: enough to plan without its code."""

    name: str
    spec: str
    """What names the task on the command line: a built-in name, a file or a module."""
    num_train_examples: int
    num_valid_examples: int
    num_parameters: int
    num_trainable_parameters: int
    num_batch_norm_layers: int
    """Layers whose statistics couple the examples of a micro-batch."""
    optimizer_class: str
    """The class that the recipe builds, such as ``AdamW``."""
    optimizer_family: OptimizerFamily
    """How its update scales with the gradient: ``other`` when no rule is known for it."""
    recipe: Recipe
    target: Target | None
    loader: LoaderOptions
    fingerprint: str
    """Changes when model, data size, recipe, target or source file change."""
