"""What the user trains with today: the recipe, its target and its loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_serializer, model_validator

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.record import Record


def _refuse_text(value: object) -> object:
    """Keep pydantic from reading ``"8"`` as 8 and ``true`` as 1.

    Raises:
        ValueError: the value is no number.
    """
    if isinstance(value, (bool, str)):
        raise ValueError("a number, without quotes")
    return value


_Number = BeforeValidator(_refuse_text)
Positive = Annotated[float, _Number, Field(gt=0)]
NonNegative = Annotated[float, _Number, Field(ge=0)]
Fraction = Annotated[float, _Number, Field(ge=0, lt=1)]
Count = Annotated[int, _Number, Field(ge=1)]
Precision = Literal["fp32", "bf16", "fp16"]
_SCHEDULE_NEEDS = {"step": ("decay_at", "decay_factor"), "plateau": ("decay_factor", "patience")}


def mode_name(precision: Precision, checkpointing: bool) -> str:
    """A way to run a step as sentences name it.

    >>> mode_name("bf16", True)
    'bf16 with checkpointing'
    """
    return f"{precision}{' with checkpointing' * checkpointing}"


class Constants(Record):
    """Everything a training run holds fixed beside its batch size and learning rate.

    A recipe and a plan share these, so that a plan can carry each one over or change it.
    """

    optimizer: str | Callable[..., Any] = "adamw"
    """The name of a ``torch.optim`` class, or a factory ``(parameters, lr) -> Optimizer``."""
    momentum: Fraction | None = None
    """None leaves the optimizer's own default, here and in the next three fields."""
    betas: tuple[Fraction, Fraction] | None = None
    eps: Positive | None = None
    weight_decay: NonNegative | None = None
    epochs: Positive | None = None
    """Passes over the training data; give this or ``steps``."""
    steps: Count | None = None
    """Optimizer steps."""
    schedule: Literal["constant", "cosine", "linear", "step", "plateau"] = "constant"
    """What the learning rate does after warmup, over the rest of the run."""
    decay_at: tuple[Count, ...] | None = None
    """Of ``step``: examples after each of which the rate is multiplied by ``decay_factor``."""
    decay_factor: Annotated[float, _Number, Field(gt=0, lt=1)] | None = None
    """Of ``step`` and ``plateau``."""
    patience: Count | None = None
    """Of ``plateau``: evaluations without a new best after which the rate is multiplied."""
    warmup_examples: Annotated[int, Field(ge=0)] = 0
    """Examples over which the rate climbs linearly to its full value."""
    clip_norm: Positive | None = None
    """Largest global gradient norm per update; None does not clip."""
    ema_decay: Fraction | None = None
    """Decay per update of the averaged weights used for evaluation; None keeps none."""
    precision: Precision = "fp32"
    """``bf16`` and ``fp16`` are autocast: parameters, gradients and optimizer state stay fp32."""
    sampler: Literal["shuffle", "sequential", "replacement"] = "shuffle"

    @model_validator(mode="after")
    def _one_length(self) -> Constants:
        if (self.epochs is None) == (self.steps is None):
            found = f"epochs = {self.epochs} and steps = {self.steps}"
            raise InvalidInputError(found, need="exactly one of the two", hint="keep epochs or steps")
        return self

    @model_validator(mode="after")
    def _what_the_schedule_needs(self) -> Constants:
        needs = _SCHEDULE_NEEDS.get(self.schedule, ())
        for name in ("decay_at", "decay_factor", "patience"):
            if (getattr(self, name) is not None) != (name in needs):
                found = f"schedule = {self.schedule!r} with {name} = {getattr(self, name)}"
                need = " and ".join(needs) or "none of decay_at, decay_factor and patience"
                raise InvalidInputError(found, need=need, hint=f"set or remove {name}")
        if self.decay_at is not None and list(self.decay_at) != sorted(set(self.decay_at)):
            found = f"decay_at = {list(self.decay_at)}"
            raise InvalidInputError(found, need="examples that rise", hint="sort them")
        return self

    @field_serializer("optimizer")
    def _optimizer_name(self, value: str | Callable[..., Any]) -> str:
        """A factory is saved by name; training with it needs the task that defines it."""
        return value if isinstance(value, str) else f"{value.__module__}:{value.__qualname__}"

    @property
    def optimizer_name(self) -> str:
        """The optimizer as text, whether given by name or by factory."""
        return self._optimizer_name(self.optimizer)

    def total_examples(self, batch_size: int, num_train_examples: int) -> int:
        """Examples processed by a whole run; each epoch's last update is as short as it must be."""
        if self.steps is not None:
            return examples_in(self.steps, batch_size, num_train_examples)
        assert self.epochs is not None
        return max(1, round(self.epochs * num_train_examples))


def examples_in(updates: int, global_batch_size: int, num_train_examples: int) -> int:
    """Examples of the first updates of a run, each epoch's last one being shorter.

    >>> examples_in(4, global_batch_size=32, num_train_examples=80)  # 32 + 32 + 16 + 32
    112
    """
    updates_per_epoch = -(-num_train_examples // global_batch_size)
    epochs, rest = divmod(updates, updates_per_epoch)
    return epochs * num_train_examples + rest * global_batch_size


def updates_of(examples: int, global_batch_size: int, num_train_examples: int) -> int:
    """Updates that process so many examples, each epoch's last one being shorter.

    >>> updates_of(112, global_batch_size=32, num_train_examples=80)
    4
    """
    epochs, rest = divmod(examples, num_train_examples)
    per_epoch = -(-num_train_examples // global_batch_size)
    return epochs * per_epoch + -(-rest // global_batch_size)


class Recipe(Constants):
    """How the task is trained today; the plan is compared with this.

    >>> Recipe(optimizer="sgd", lr=0.1, batch_size=32, epochs=5).total_examples(32, 1000)
    5000
    """

    lr: Positive
    """Peak learning rate."""
    batch_size: Count
    """Examples per optimizer step, over all devices and accumulation steps."""


_ABSENT: Any = ...


class Target(Record):
    """The metric value that ends training: ``Target("accuracy", 0.97)``."""

    metric: str
    value: float
    higher_is_better: bool = True

    def __init__(
        self,
        metric: str = _ABSENT,
        value: float = _ABSENT,
        higher_is_better: bool = True,
        **unknown: Any,
    ) -> None:
        """Accept the metric and its value by position; without either, the record says so."""
        given = {"metric": metric, "value": value, "higher_is_better": higher_is_better} | unknown
        super().__init__(**{name: one for name, one in given.items() if one is not _ABSENT})

    def is_reached(self, value: float) -> bool:
        """Whether a metric value meets the target."""
        return value >= self.value if self.higher_is_better else value <= self.value

    @property
    def option(self) -> str:
        """As ``--target`` takes it: ``accuracy>=0.97``."""
        return f"{self.metric}{'>=' if self.higher_is_better else '<='}{self.value!r}"

    def __str__(self) -> str:
        """As in ``accuracy >= 0.97``."""
        return f"{self.metric} {'>=' if self.higher_is_better else '<='} {self.value:g}"


class LoaderOptions(Record):
    """How batches are read; the same loader is measured and trained with."""

    num_workers: Annotated[int, Field(ge=0)] = 0
    """Worker processes; 0 loads in the training process, between two steps."""
    pin_memory: bool = False
    persistent_workers: bool = False
    prefetch_factor: Count | None = None
    """Batches that each worker keeps ready; None is torch's default of 2."""

    @model_validator(mode="after")
    def _workers_for_worker_options(self) -> LoaderOptions:
        if self.num_workers == 0 and (self.persistent_workers or self.prefetch_factor is not None):
            found = "persistent_workers or prefetch_factor with num_workers = 0"
            raise InvalidInputError(found, need="num_workers >= 1 for either", hint="set num_workers")
        return self
