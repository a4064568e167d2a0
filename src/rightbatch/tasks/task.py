"""The task: factories and data from which every measurement builds its own fresh copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rightbatch.core.errors import InvalidTaskError
from rightbatch.core.recipe import LoaderOptions, Recipe, Target

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import Dataset

    LossFunction = Callable[[nn.Module, Any], "Loss | Tensor | Mapping[str, Loss | Tensor]"]
    Evaluate = Callable[[nn.Module, Iterable[Any]], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Loss:
    """A summed loss and how many targets it sums, so that any split of a batch gives one gradient."""

    total: Tensor
    """Sum over the counted targets, shape []."""
    count: int | Tensor
    """Number of counted targets: tokens, positions or examples; may be 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A training task; nothing here is run until something is measured or trained."""

    name: str
    model: Callable[[], nn.Module]
    """Called afresh for every measurement and every run."""
    train_data: Dataset[Any]
    """Map-style: ``len`` and integer indexing."""
    valid_data: Dataset[Any] | None
    """None leaves the run without evaluation, and so without a target."""
    loss: LossFunction
    """``(model, batch) -> rb.Loss(total, count)``, or a scalar mean over the batch's examples, or a
    dictionary of such terms, whose means are added."""
    recipe: Recipe
    evaluate: Evaluate | None = None
    """``(model, batches) -> {metric: value}``, without gradients; None reports the mean loss."""
    positive_loss: LossFunction | None = None
    """The part of ``loss`` that positive targets contribute, with their count, for rare targets; the
    noise measurement then looks at this part too. It returns what ``loss`` returns: a ``Loss``."""
    target: Target | None = None
    collate: Callable[[list[Any]], Any] | None = None
    """Examples to batch; None is torch's default."""
    loader: LoaderOptions = field(default_factory=LoaderOptions)
    spec: str = ""
    """How ``load_task`` found it, as commands repeat it."""
    source_sha256: str = ""
    """Hash of the file that defines the task, filled in by ``load_task``."""

    @property
    def num_train_examples(self) -> int:
        """Length of the training data."""
        return data_length(self.train_data, "train_data")

    @property
    def num_valid_examples(self) -> int:
        """Length of the validation data, 0 where there is none."""
        return 0 if self.valid_data is None else data_length(self.valid_data, "valid_data")


def data_length(data: object, name: str) -> int:
    """Return the length of a map-style dataset.

    Raises:
        InvalidTaskError: the dataset has no length.
    """
    if not isinstance(data, Sized):
        hint = "wrap it in a torch.utils.data.Dataset with __len__ and __getitem__"
        raise InvalidTaskError(
            f"{name} of type {type(data).__name__} has no length", "a map-style dataset", hint
        )
    return len(data)
