"""The exact step in a loop that somebody else wrote: windows of micro-batches from their loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.data import DataLoader

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.tasks.build import batch_examples
from rightbatch.train.accumulate import WindowGradient, accumulate_pieces
from rightbatch.train.distributed import Ranks
from rightbatch.train.sampler import MicroBatches, Windows

if TYPE_CHECKING:
    from rightbatch.tasks.task import LossFunction


@dataclass(frozen=True, slots=True)
class OwnWindow:
    """The micro-batches of one update, as the loader gave them; iterate it for them."""

    pieces: tuple[tuple[int, Any], ...]
    """Pairs of a number of examples and a micro-batch; one of 0 examples only takes part."""
    ends_epoch: bool
    """Whether the epoch ends with this update."""

    def accumulate(self, model: nn.Module, loss: LossFunction) -> WindowGradient:
        """Forward and backward of every micro-batch; leaves the exact gradient in ``.grad``.

        Under ``DistributedDataParallel`` gradients are averaged once, with the last micro-batch.

        Args:
            model: on the device of the micro-batches, or whose ``loss`` moves them.
            loss: ``(model, batch) -> rb.Loss(total, count)``, a scalar mean, or a dictionary of terms.

        Returns:
            Mean loss (``.mean``) and gradient norm (``.norm``).

        Raises:
            InvalidInputError: the window holds no target.
            InvalidTaskError: the loss returns something else.
        """
        return accumulate_pieces(model, loss, self.pieces)

    def __iter__(self) -> Iterator[Any]:
        return (batch for _, batch in self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)


def windows(loader: Iterable[Any], plan: Plan) -> Iterator[OwnWindow]:
    """Group the micro-batches of a loader into updates; the last, shorter one is exact too.

    Args:
        loader: gives micro-batches in order. With ``batch_sampler(plan, n)`` it gives a whole run and
            windows follow the sampler; any other is one epoch, and every ``accumulation_steps`` of
            its batches make an update.
        plan: gives the accumulation steps.

    Raises:
        InvalidInputError: a ``DataLoader`` whose batches are no micro-batches of the plan, so that
            updates would be of another global batch.
    """
    size = loader.batch_size if isinstance(loader, DataLoader) else None
    if size is not None and size != plan.micro_batch_size:
        found = f"a loader with batch_size = {size}, and a plan of {plan.split}"
        hint = f"DataLoader(..., batch_size={plan.micro_batch_size}), or change the plan's split"
        raise InvalidInputError(found, need="the plan's micro-batches", hint=hint)
    return _windows(loader, plan)


def _windows(loader: Iterable[Any], plan: Plan) -> Iterator[OwnWindow]:
    batches = iter(loader)
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(sampler, MicroBatches):
        for window in sampler.windows:
            yield OwnWindow(
                tuple(zip(window.micro_batch_sizes, batches, strict=False)), window.ends_epoch
            )
        return
    ahead = list(islice(batches, plan.accumulation_steps))
    while ahead:
        window, ahead = ahead, list(islice(batches, plan.accumulation_steps))
        yield OwnWindow(tuple((batch_examples(batch), batch) for batch in window), not ahead)


def batch_sampler(plan: Plan, num_examples: int, seed: int = 0) -> MicroBatches:
    """For ``DataLoader(data, batch_sampler=...)``: the micro-batches of a whole run, of this process.

    The order depends on seed and epoch alone, not on the split nor on the number of processes.

    >>> plan = Plan(task="", global_batch_size=4, micro_batch_size=2, accumulation_steps=2, epochs=1,
    ...     learning_rate=0.1, sampler="sequential")
    >>> list(batch_sampler(plan, num_examples=7))
    [[0, 1], [2, 3], [4, 5], [6]]
    """
    return MicroBatches(Windows.of(plan, num_examples, seed, ranks=Ranks.current()))
