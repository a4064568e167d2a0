"""The plan: how one optimizer step is assembled, and why each number is what it is."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.recipe import Constants, Count, NonNegative, Positive, Precision, Recipe, Target
from rightbatch.core.record import SCHEMA_VERSION, Record

Evidence = Literal["measured", "derived", "assumed"]
Objective = Literal["time", "compute", "balanced", "accuracy"]
Doubtful = Literal["noise scale", "calibration", "step times", "loader", "bandwidth"]
"""What a plan's models leave uncertain; ``calibration`` leads from noise scale to critical batch."""
BatchScheduleKind = Literal["linear", "exponential", "milestones", "seesaw", "noise"]


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
    answers: str | None = None
    """The common claim that it answers, and how."""


class Guard(Record):
    """A warning that a rule raised about the plan, with its numbers."""

    name: str
    text: str
    evidence: Evidence
    source: str
    """A key of ``core.sources``."""


class Doubt(Record):
    """How much of the plan's expected regret one uncertain input carries."""

    name: Doubtful
    share: float
    """Of the expected regret, that would go if this input were known exactly; from 0 to 1."""
    measure: str
    """What would narrow it, ending in the command where there is one."""


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
    num_replicas: int = 1
    precision: Precision = "fp32"
    checkpointing: bool = False
    on_front: bool = False
    """Whether no other candidate needs both less time and fewer examples."""


class Prediction(Record):
    """What following the plan should change, against today's recipe."""

    seconds_to_target_ratio: Interval
    examples_to_target_ratio: Interval
    probability_better: float
    """Share of the draws in which the plan reaches the target sooner."""


class BatchSchedule(Record):
    """How the global batch grows to the plan's; everything is counted in examples."""

    kind: BatchScheduleKind
    """How the milestones were placed. ``noise`` holds only its first: the batch doubles while training,
    whenever the measured noise scale has doubled, until it is the plan's."""
    milestones: tuple[tuple[Annotated[int, Field(ge=0)], Count], ...]
    """Pairs of examples seen and the global batch from there on; the first begins at 0."""
    rate_power: NonNegative
    """The learning rate is that of the plan times ``(batch / the plan's batch) ** rate_power``."""

    @model_validator(mode="after")
    def _grows(self) -> BatchSchedule:
        starts, sizes = zip(*self.milestones, strict=True) if self.milestones else ((), ())
        rises = all(a < b for column in (starts, sizes) for a, b in pairwise(column))
        if not starts or starts[0] != 0 or not rises or (self.kind == "noise" and len(sizes) > 1):
            found = f"milestones = {[list(pair) for pair in self.milestones]} of kind {self.kind!r}"
            need = "pairs [examples, batch] that both rise, from 0 examples; one pair for noise"
            raise InvalidInputError(found, need=need, hint="as in [[0, 32], [5000, 64]]")
        return self


class Plan(Constants):
    """One optimizer step and one run: ``global = micro x accumulation x replicas``."""

    schema_version: Literal[1] = SCHEMA_VERSION
    task: str
    """Its name; empty fits any task."""
    global_batch_size: Count
    micro_batch_size: Count
    accumulation_steps: Count = 1
    num_replicas: Count = 1
    learning_rate: Positive
    warmup_start: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Fraction of the learning rate at which warmup begins."""
    checkpointing: bool = False
    """Whether activations are recomputed in the backward pass."""
    batch_norm: Literal["sync", "ghost", "group"] | None = None
    """What becomes of BatchNorm: statistics over all replicas, over groups of ``ghost_batch_size``
    examples, or GroupNorm in its place. None leaves it: over each micro-batch."""
    ghost_batch_size: Annotated[int, Field(ge=2)] | None = None
    batch_schedule: BatchSchedule | None = None
    """None keeps the global batch all along."""
    target: Target | None = None
    """Ends training instead of the task's own; None leaves that one."""
    objective: Objective | None = None
    """None for a plan that no planner made."""
    device: str | None = None
    """What split, precision and recomputation were planned for: ``cpu``, ``cuda:0``, or an accelerator
    such as ``cuda:a100-40gb``. It bounds nothing: training runs where it is told to."""
    is_derived: bool = False
    """Whether the device was not there, so that its step times and memory were derived."""
    decisions: tuple[Decision, ...] = ()
    plateau: tuple[int, int] | None = None
    """Smallest and largest global batch whose expected score is within ``tolerance`` of the best."""
    tolerance: NonNegative = 0.05
    predicted: Prediction | None = None
    candidates: tuple[Candidate, ...] = ()
    memory_limit_bytes: int | None = None
    """What the micro-batch had to fit into, headroom included; None for a plan no planner made."""
    notes: tuple[str, ...] = ()
    """What a reader should know of the measurement beside the answer."""
    guards: tuple[Guard, ...] = ()
    spec: str = ""
    """What the task was loaded from, as commands name it; empty for a plan that no planner made."""
    options: tuple[str, ...] = ()
    """Of ``rightbatch plan``, that make this plan again from the same measurements."""
    doubts: tuple[Doubt, ...] = ()
    """Largest share first; empty where the choice would not change."""

    @model_validator(mode="after")
    def _factors_multiply(self) -> Plan:
        product = self.micro_batch_size * self.accumulation_steps * self.num_replicas
        if product != self.global_batch_size:
            found = f"global_batch_size = {self.global_batch_size}, but {self.split} = {product}"
            need = "global_batch_size = micro_batch_size x accumulation_steps x num_replicas"
            raise InvalidInputError(found, need=need, hint="change one of the four")
        return self

    @model_validator(mode="after")
    def _ghosts_have_a_size(self) -> Plan:
        if (self.batch_norm == "ghost") != (self.ghost_batch_size is not None):
            found = f"batch_norm = {self.batch_norm!r} with ghost_batch_size = {self.ghost_batch_size}"
            need = 'both "ghost" and a size, or neither'
            raise InvalidInputError(found, need=need, hint="set or remove ghost_batch_size")
        return self

    @model_validator(mode="after")
    def _schedule_ends_at_the_batch(self) -> Plan:
        schedule, batch = self.batch_schedule, self.global_batch_size
        if schedule and (
            schedule.milestones[-1][1] != batch
            if schedule.kind != "noise"
            else schedule.milestones[-1][1] > batch
        ):
            found = f"batch_schedule ends at {schedule.milestones[-1][1]}"
            need = f"global_batch_size, {batch}, which sets memory and learning rate"
            raise InvalidInputError(found, need=need, hint="change its last milestone")
        return self

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything a reader should see beside the answer."""
        return (*self.notes, *(guard.text for guard in self.guards))

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
        passes = max(1, values.get("accumulation_steps", 1))  # fewer are refused below, by name
        values.setdefault("micro_batch_size", values["global_batch_size"] // passes)
        return cls(**values)

    @property
    def split(self) -> str:
        """The step in one line, as every run prints it."""
        return (
            f"micro {self.micro_batch_size} x accumulation {self.accumulation_steps}"
            f" x replicas {self.num_replicas}"
        )
