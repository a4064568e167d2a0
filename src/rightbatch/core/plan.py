"""The plan: how one optimizer step is assembled, and why each number is what it is."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.recipe import Constants, Count, Positive, Recipe
from rightbatch.core.record import SCHEMA_VERSION, Record

Evidence = Literal["measured", "derived", "assumed"]
Objective = Literal["time", "balanced"]


class Decision(Record):
    """One number of the plan with the rule, the evidence and the source behind it."""

    name: str
    value: float | int | str | bool | None
    evidence: Evidence
    """``measured`` on this task, ``derived`` by a cited formula, or ``assumed``."""
    rule: str
    """The formula or criterion in one line."""
    source: str
    """A key of ``core.sources``."""
    reason: str
    """One sentence with this task's numbers."""
    low: float | None = None
    high: float | None = None


class Interval(Record):
    """A value with its 90 % interval; a missing bound means the data set none."""

    value: float
    low: float | None
    high: float | None


class Candidate(Record):
    """One global batch size with its best split, scored against today's recipe."""

    global_batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    update_seconds: float
    """Loading, forward and backward of every micro-batch, and one optimizer step."""
    peak_bytes: int
    examples_ratio: Interval
    """Examples to the target, over today's recipe's."""
    seconds_ratio: Interval
    """Seconds to the target, over today's recipe's."""
    regret: float
    """Expected excess of the objective over the best candidate of the same draw."""


class Prediction(Record):
    """What following the plan should change, against today's recipe."""

    seconds_to_target_ratio: Interval
    examples_to_target_ratio: Interval
    probability_better: float
    """Share of the draws in which the plan reaches the target sooner."""


class Plan(Constants):
    """One optimizer step and one run: ``global = micro x accumulation x replicas``."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: str
    global_batch_size: Count
    micro_batch_size: Count
    accumulation_steps: Count = 1
    num_replicas: Literal[1] = 1
    learning_rate: Positive
    warmup_start: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Fraction of the learning rate at which warmup begins."""
    checkpointing: Literal[False] = False
    objective: Objective | None = None
    """None for a plan that no planner made."""
    decisions: tuple[Decision, ...] = ()
    plateau: tuple[int, int] | None = None
    """Smallest and largest global batch within 5 % of the best expected score."""
    predicted: Prediction | None = None
    candidates: tuple[Candidate, ...] = ()
    memory_limit_bytes: int | None = None
    """What the micro-batch had to fit into, headroom included; None for a plan no planner made."""
    notes: tuple[str, ...] = ()
    """Warnings a reader should see beside the answer."""

    @model_validator(mode="after")
    def _factors_multiply(self) -> Plan:
        product = self.micro_batch_size * self.accumulation_steps * self.num_replicas
        if product != self.global_batch_size:
            found = f"global_batch_size = {self.global_batch_size}, but {self.split} = {product}"
            need = "global_batch_size = micro_batch_size x accumulation_steps x num_replicas"
            raise InvalidInputError(found, need=need, hint="change one of the four")
        return self

    @classmethod
    def from_recipe(cls, recipe: Recipe, task: str = "", **changes: Any) -> Self:
        """Copy a recipe into a plan, changing only what is named; nothing is scaled.

        Args:
            recipe: today's recipe.
            task: the task's name; empty fits any task.
            changes: fields of ``Plan``; ``micro_batch_size`` defaults to the global batch over
                ``accumulation_steps``.

        Raises:
            InvalidInputError: the factors do not multiply to the global batch.
        """
        values: dict[str, Any] = {name: getattr(recipe, name) for name in Constants.model_fields}
        values |= {"task": task, "global_batch_size": recipe.batch_size, "learning_rate": recipe.lr}
        values |= changes
        values.setdefault(
            "micro_batch_size", values["global_batch_size"] // values.get("accumulation_steps", 1)
        )
        return cls(**values)

    @property
    def split(self) -> str:
        """The step in one line, as every run prints it."""
        return (
            f"micro {self.micro_batch_size} x accumulation {self.accumulation_steps}"
            f" x replicas {self.num_replicas}"
        )
