"""One update's gradient, the same for every split of its batch: sum, count, divide once.

A mean of per-micro-batch means is another objective as soon as micro-batches hold different
numbers of targets (padding, masks, a shorter last piece). So the summed losses of all micro-batches
share one divisor: the number of targets of the whole update.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum, hypot, isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.recipe import Constants
from rightbatch.tasks.check import batch_examples
from rightbatch.tasks.step import forward_backward

if TYPE_CHECKING:
    from rightbatch.tasks.task import LossFunction

_FULL_PRECISION = Constants(epochs=1)  # only its precision is read


@dataclass(frozen=True, slots=True)
class WindowGradient:
    """What one update's window left in ``.grad``, told to the host."""

    total: float
    """Loss summed over every counted target."""
    count: float
    """Counted targets."""
    norm: float
    """Euclidean norm over all gradients."""

    @property
    def mean(self) -> float:
        """Mean loss per counted target."""
        return self.total / self.count

    @property
    def is_finite(self) -> bool:
        """Whether weights may be changed by it."""
        return isfinite(self.total) and isfinite(self.norm)


def accumulate(model: nn.Module, loss: LossFunction, micro_batches: Iterable[Any]) -> None:
    """Leave in ``.grad`` the gradient of the mean loss per target over all micro-batches together.

    Args:
        model: its previous ``.grad`` is discarded; a parameter that no loss reaches keeps None.
        loss: ``(model, batch) -> rb.Loss(total, count)``, or a scalar mean, which is weighted by
            the examples of its micro-batch.
        micro_batches: the batch in pieces of any size, on the model's device; a piece without a
            single target is fine.

    Raises:
        InvalidInputError: there is no micro-batch, or no target in any of them.
        InvalidTaskError: the loss is neither a Loss nor a scalar, or a batch holds no tensor.
    """
    pieces = [(batch_examples(batch), batch) for batch in micro_batches]
    if not pieces:
        hint = "pass the pieces of one batch, such as x.split(8)"
        raise InvalidInputError("0 micro-batches", need="at least 1", hint=hint)
    accumulate_window(
        loss,
        model,
        pieces,
        parameters=list(model.parameters()),
        num_examples=sum(size for size, _ in pieces),
        constants=_FULL_PRECISION,
        device="cpu",
    )


def accumulate_window(
    task_loss: LossFunction,
    model: nn.Module,
    micro_batches: Iterable[tuple[int, Any]],
    *,
    parameters: Sequence[nn.Parameter],
    num_examples: int,
    constants: Constants,
    device: str,
) -> WindowGradient:
    """Do as ``accumulate`` does, one micro-batch in memory at a time, and tell what came out.

    Counts are known only after the forwards. Until then the divisor is the number of examples,
    which keeps gradients in range and is final wherever an example is a target; elsewhere one
    multiplication corrects all gradients at the end. The host waits for the device once.

    Args:
        task_loss: ``(model, batch) -> Loss | scalar mean``.
        model: its previous ``.grad`` is discarded.
        micro_batches: pairs of a number of examples and a batch on the device.
        parameters: all of the model's, listed once because walking its modules takes time.
        num_examples: examples in all of them.
        constants: gives the precision.
        device: of model and batches.

    Returns:
        Loss, count and norm as they came out, finite or not.

    Raises:
        InvalidInputError: the whole window holds no target.
    """
    for parameter in parameters:
        parameter.grad = None
    losses = [
        forward_backward(
            task_loss,
            model,
            batch,
            num_examples=size,
            divisor=num_examples,
            constants=constants,
            device=device,
        )
        for size, batch in micro_batches
    ]
    count = float(sum(loss.count for loss in losses))
    if count == 0:
        found = f"0 counted targets in an update of {num_examples} examples"
        hint = "leave out examples that are all masked, or use a larger global batch"
        raise InvalidInputError(found, need="at least 1", hint=hint)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if count != num_examples:
        scale_gradients(gradients, num_examples / count)
    norms = torch._foreach_norm(gradients)  # pyright: ignore[reportPrivateUsage]
    # Losses and norms go to the host together, in the one read of an update.
    values = torch.stack([*(loss.total for loss in losses), *norms]).tolist()
    return WindowGradient(fsum(values[: len(losses)]), count, hypot(*values[len(losses) :]))


def scale_gradients(gradients: list[Tensor], factor: float) -> None:
    """Multiply all gradients in place, in one call."""
    torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateUsage]
