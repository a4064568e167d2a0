"""How frequent each class is: counted from labels, turned into weights, offsets and initial biases."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.progress import OnProgress, Progress

if TYPE_CHECKING:
    from torch import nn

_PROGRESS_SECONDS = 0.1


class Labels(Sized, Protocol):
    """Anything with a length whose items are arrays or tensors of labels."""

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Prior:
    """Checked frequencies: of each class, or of the positives alone."""

    values: tuple[float, ...]
    """One number is the positives' share in the binary form; several add to 1."""

    @property
    def log_odds(self) -> tuple[float, ...]:
        """What a logit is at this prior: log(p/(1-p)), or log p for each class."""
        if len(self.values) == 1:
            return (math.log(self.values[0]) - math.log1p(-self.values[0]),)
        return tuple(math.log(value) for value in self.values)


def check_prior(prior: float | Sequence[float], num_logits: int) -> Prior:
    """Refuse a prior that no logit can express.

    Args:
        prior: of the positives for a binary logit, or one for each class.
        num_logits: 1 in the binary form, else the number of classes.

    Raises:
        InvalidInputError: another length, a value of 0 or 1, or classes that do not add to 1.
    """
    values = read_prior(prior)
    need = "a number above 0 and below 1"
    if num_logits > 1:
        need = f"{num_logits} of them, each above 0, which add to 1"
    adds = num_logits == 1 or abs(math.fsum(values) - 1) < 1e-6
    if len(values) != num_logits or not all(0 < value < 1 for value in values) or not adds:
        found = f"prior {', '.join(f'{value:g}' for value in values)}"
        raise InvalidInputError(found, need=need, hint="take it from sparse.count_classes(...).prior")
    return Prior(values)


def read_prior(prior: float | Sequence[float]) -> tuple[float, ...]:
    """The numbers of a prior that is one, or has one for each class; NumPy's and torch's will do.

    Raises:
        InvalidInputError: something else.
    """
    try:
        return tuple(np.asarray(prior, float).reshape(-1).tolist())
    except (TypeError, ValueError) as error:
        hint = "take it from sparse.count_classes(...).prior"
        raise InvalidInputError(f"prior {prior!r}", need="a number or several", hint=hint) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCounts:
    """How often each class occurs in a data set."""

    counts: tuple[int, ...]
    """Targets of each class; class 0 is the background."""
    num_ignored: int
    num_items: int
    """Examples, windows or sequences looked at."""
    num_items_with_positives: int

    @property
    def num_targets(self) -> int:
        """Targets that count."""
        return sum(self.counts)

    @property
    def prior(self) -> tuple[float, ...]:
        """Share of each class."""
        return tuple(count / self.num_targets for count in self.counts)

    @property
    def positive_fraction(self) -> float:
        """Share of the counted targets that are not of class 0."""
        return 1 - self.counts[0] / self.num_targets

    def inverse_frequency_weights(self) -> tuple[float, ...]:
        """N / (C n_c): every class weighs the same in all, and the mean weight of a target is 1.

        >>> ClassCounts(
        ...     counts=(90, 10), num_ignored=0, num_items=1, num_items_with_positives=1
        ... ).inverse_frequency_weights()
        (0.5555555555555556, 5.0)
        """
        return tuple(self.num_targets / (len(self.counts) * count) for count in self.counts)

    def effective_number_weights(self, beta: float) -> tuple[float, ...]:
        """Inverse of (1 - beta^n) / (1 - beta) (Cui et al. 2019, arXiv:1901.05555, Eq. 2).

        Scaled to a mean weight of 1 over the targets, so that the learning rate keeps its meaning;
        the paper scales to a sum of C over the classes.

        Args:
            beta: 0 is no weighting; towards 1 it becomes inverse frequency.

        Raises:
            InvalidInputError: beta is outside 0 to 1.
        """
        if not 0 <= beta < 1:
            hint = "use 0.999 or 0.9999"
            raise InvalidInputError(f"beta = {beta}", need="at least 0 and below 1", hint=hint)
        # 1 - beta^n = -expm1(n log beta): exact where beta is close to 1.
        sizes = [-math.expm1(n * math.log(beta)) / (1 - beta) if beta else 1.0 for n in self.counts]
        mean = sum(n / size for n, size in zip(self.counts, sizes, strict=True)) / self.num_targets
        return tuple(1 / (size * mean) for size in sizes)


def count_classes(
    labels: Labels,
    num_classes: int,
    *,
    ignore_index: int = -100,
    on_progress: OnProgress | None = None,
) -> ClassCounts:
    """Count the classes of every item in one pass over the labels.

    Args:
        labels: items of any shape, read one at a time by index; labels of 2 classes are 0 and 1.
        num_classes: how many classes there are, the background included.
        ignore_index: label of positions that do not count.
        on_progress: called about ten times a second.

    Raises:
        InvalidInputError: a label is no class or nan, nothing counts, or a class never occurs.
    """
    counts, ignored, with_positives = np.zeros(num_classes, np.int64), 0, 0
    started = last = time.monotonic()
    for index in range(len(labels)):
        values = np.asarray(labels[index]).reshape(-1)
        counted = values[values != ignore_index]
        if not (known := np.isin(counted, np.arange(num_classes))).all():
            wrong = sorted({f"{value:g}" for value in counted[~known]})[:3]
            found = f"label {', '.join(wrong)} in item {index}"
            need = f"0 to {num_classes - 1}, or {ignore_index} where a position does not count"
            raise InvalidInputError(found, need=need, hint="correct the labels, or num_classes")
        here = np.bincount(counted.astype(np.int64), minlength=num_classes)
        counts += here
        ignored += values.size - counted.size
        with_positives += bool(here[1:].any())
        if on_progress and (now := time.monotonic()) - last > _PROGRESS_SECONDS:
            last, done = now, (index + 1) / len(labels)
            left = (now - started) * (1 - done) / done
            message = f"counting labels, {index + 1} of {len(labels)}"
            on_progress(Progress(stage="labels", fraction=done, seconds_left=left, message=message))
    if not counts.all():
        absent = ", ".join(str(label) for label in np.flatnonzero(counts == 0))
        found = f"0 targets of class {absent} among {counts.sum()} in {len(labels)} items"
        hint = "look at how labels are made; a class that never occurs cannot be learned"
        raise InvalidInputError(found, need="at least one target of every class", hint=hint)
    return ClassCounts(
        counts=tuple(counts.tolist()),
        num_ignored=ignored,
        num_items=len(labels),
        num_items_with_positives=with_positives,
    )


def prior_bias_(head: nn.Module, prior: float | Sequence[float]) -> None:
    """Set a head's bias so that training starts at the prior (Lin et al. 2017, Sec. 4.1).

    Where the head's input adds nothing, probabilities are the prior and the loss is its entropy;
    positives and negatives then pull the logits equally hard. The weights stay as they are.

    Args:
        head: the last layer, with a bias.
        prior: of the positives for one output, or one for each class.

    Raises:
        InvalidInputError: the head has no bias, or the prior does not fit it.
    """
    import torch

    bias = getattr(head, "bias", None)
    if not isinstance(bias, torch.Tensor):
        found = f"a head of type {type(head).__name__} without a bias"
        raise InvalidInputError(found, need="the last layer, with bias=True", hint="pass model.head")
    offsets = check_prior(prior, bias.numel()).log_odds
    with torch.no_grad():
        bias.copy_(bias.new_tensor(offsets))
