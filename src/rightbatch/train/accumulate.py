"""One update's gradient, the same for every split of its batch: sum, count, divide once.

A mean of per-micro-batch means is another objective as soon as micro-batches hold different
numbers of targets (padding, masks, a shorter last piece). So the summed losses of all micro-batches,
on all processes, share one divisor: the number of targets of the whole update. A loss of several
terms has such a divisor for each.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import fsum, hypot, inf, isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from rightbatch.core.errors import InvalidInputError, InvalidTaskError
from rightbatch.tasks.build import batch_examples, loss_terms
from rightbatch.tasks.task import Loss
from rightbatch.train.distributed import ALONE, Ranks, Sync, sync_of

if TYPE_CHECKING:
    from rightbatch.tasks.task import LossFunction

Terms = dict[str, Loss]
Forward = Callable[[int, Any], Terms]
"""From a number of examples and a micro-batch to the terms of its loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One process's copy of the model, and how it works with the others."""

    model: nn.Module
    parameters: Sequence[nn.Parameter]
    """All of the model's, listed once because walking its modules takes time."""
    forward: Forward
    sync: Sync = lambda is_last: nullcontext()
    """Surrounds each micro-batch."""
    ranks: Ranks = ALONE
    """The processes that average their gradients."""
    is_sharded: bool = False
    """Whether each process holds a part of every gradient."""


@dataclass(frozen=True, slots=True)
class WindowGradient:
    """What one update's window left in ``.grad``, told to the host."""

    total: float
    """Loss summed over every counted target; of several terms, their sum times the examples."""
    count: float
    """Counted targets; with several terms, examples."""
    norm: float
    """Euclidean norm over all gradients."""
    terms: dict[str, float] = field(default_factory=dict[str, float])
    """Mean of each term over its own targets, where there are several."""
    signals: tuple[float, ...] = ()
    """What processes had to tell each other, summed over them."""

    @property
    def mean(self) -> float:
        """Mean loss per counted target; of several terms, the sum of their means."""
        return self.total / self.count

    @property
    def is_finite(self) -> bool:
        """Whether weights may be changed by it."""
        return isfinite(self.total) and isfinite(self.norm)


def accumulate(model: nn.Module, loss: LossFunction, micro_batches: Iterable[Any]) -> WindowGradient:
    """Leave in ``.grad`` the gradient of the mean loss per target over all micro-batches together.

    Under ``DistributedDataParallel`` that is over the micro-batches of all processes, which may hold
    different numbers of examples but must be as many on each.

    Args:
        model: its previous ``.grad`` is discarded; a parameter that no loss reaches keeps None.
        loss: ``(model, batch) -> rb.Loss(total, count)``, or a scalar mean, which is weighted by
            the examples of its micro-batch, or a dictionary of such terms, whose means are added.
        micro_batches: the batch in pieces of any size, on the model's device; a piece without a
            single target is fine.

    Returns:
        Mean loss and gradient norm, finite or not.

    Raises:
        InvalidInputError: there is no micro-batch, or no target in any of them.
        InvalidTaskError: the loss is neither a Loss nor a scalar, or a batch holds no tensor
            with a dimension to count examples by.
    """
    return accumulate_pieces(model, loss, [(batch_examples(batch), batch) for batch in micro_batches])


def accumulate_pieces(
    model: nn.Module, loss: LossFunction, pieces: Sequence[tuple[int, Any]]
) -> WindowGradient:
    """Do as ``accumulate`` does with micro-batches whose numbers of examples are known.

    Raises:
        InvalidInputError: there is none, or no target in any of them.
    """
    if not pieces:
        hint = "pass the pieces of one batch, such as x.split(8)"
        raise InvalidInputError("0 micro-batches", need="at least 1", hint=hint)
    replica = Replica(
        model=model,
        parameters=list(model.parameters()),
        forward=lambda size, batch: loss_terms(loss, model, batch, size),
        sync=sync_of(model),
        ranks=Ranks.of(model),
    )
    size = torch.tensor(sum(size for size, _ in pieces), device=_device(model))
    return accumulate_window(
        replica, pieces, num_examples=int(replica.ranks.sum(size)), num_pieces=len(pieces)
    )


def accumulate_window(
    replica: Replica,
    micro_batches: Iterable[tuple[int, Any]],
    *,
    num_examples: int,
    num_pieces: int,
    loss_scale: float = 1.0,
    signals: Callable[[], Sequence[float]] = tuple,
) -> WindowGradient:
    """Do as ``accumulate`` does, one micro-batch in memory at a time, and tell what came out.

    Counts are known only after the forwards. Until then the divisor is the number of examples,
    which keeps gradients in range and is final wherever an example is a target; elsewhere one
    multiplication corrects all gradients at the end. Terms with counts of their own need them
    before the first backward: the later micro-batches are then counted in a forward of their own,
    with the random numbers that the second one will draw. The host waits for the device at the end.

    Args:
        replica: the previous ``.grad`` of its parameters is discarded.
        micro_batches: pairs of a number of examples and a batch on the device. One of 0 examples
            adds nothing, whatever is in it.
        num_examples: examples in all of them, on all processes.
        num_pieces: micro-batches of this process.
        loss_scale: keeps small gradients above 0 in half precision; divided out at the end.
        signals: asked after the last backward for numbers to be summed over the processes too.

    Returns:
        Loss, count and norm as they came out, finite or not.

    Raises:
        InvalidInputError: the whole window holds no target.
    """
    for parameter in replica.parameters:
        parameter.grad = None
    ranks, source = replica.ranks, iter(micro_batches)
    with replica.sync(num_pieces == 1):
        terms = _run(replica, *next(source))
        counts = dict.fromkeys(terms, float(num_examples))
        if len(terms) > 1:
            later = list(source)
            source = iter(later)
            counts = _count(replica, terms, later)
            _refuse_empty(counts, num_examples)
        # DDP takes the mean over the processes. A term without targets has gradient 0.
        divisors = {name: (n or inf) / ranks.count / loss_scale for name, n in counts.items()}
        losses = [_backward(terms, divisors)]
    for index, (size, batch) in enumerate(source, start=2):
        with replica.sync(index == num_pieces):
            losses.append(_backward(_run(replica, size, batch, divisors), divisors))

    gradients: list[Any] = [p.grad for p in replica.parameters if p.grad is not None]
    if replica.is_sharded:
        gradients = [gradient.to_local() for gradient in gradients]
    norms = torch._foreach_norm([_values(g) for g in gradients])  # pyright: ignore[reportPrivateUsage]
    if replica.is_sharded:
        norms = ranks.sum(torch.stack(norms).double().square()).sqrt().unbind()
    totals, found, told, lengths = _tell(losses, norms, signals(), ranks)
    factor = 1 / loss_scale
    if len(totals) == 1:
        _refuse_empty(found, num_examples)
        (total,), (count,) = totals, found.values()
        factor *= num_examples / count
        terms = {}
    else:
        if found != counts:
            _refuse_other_counts(counts, found)
        terms = {name: t / (n or inf) for t, (name, n) in zip(totals, found.items(), strict=True)}
        total, count = fsum(terms.values()) * num_examples, num_examples
    if factor != 1:
        scale_gradients(gradients, factor)
    return WindowGradient(total, count, hypot(*lengths) * factor, terms, told)


class _Told(NamedTuple):
    """What the host learns of an update."""

    totals: list[float]
    """Of each term."""
    counts: dict[str, float]
    signals: tuple[float, ...]
    norms: list[float]


def _tell(
    losses: list[Terms], norms: Sequence[Tensor], signals: Sequence[float], ranks: Ranks
) -> _Told:
    """Bring losses, counts and norms to the host, added up over micro-batches and processes."""
    names = list(losses[0])
    if ranks.count > 1:
        asked = torch.tensor(signals, dtype=torch.float64, device=norms[0].device)
        shared = ranks.sum(torch.cat([_sums(losses), asked]))
        values = torch.cat([shared, torch.stack(list(norms)).double()]).tolist()
        n, told = len(names), 2 * len(names) + len(signals)
        counts = dict(zip(names, values[n : 2 * n], strict=True))
        return _Told(values[:n], counts, tuple(values[2 * n : told]), values[told:])
    counts = {name: float(sum(terms[name].count for terms in losses)) for name in names}
    k = len(losses)
    values = torch.stack([*(terms[name].total for name in names for terms in losses), *norms]).tolist()
    totals = [fsum(values[i * k : (i + 1) * k]) for i in range(len(names))]
    return _Told(totals, counts, tuple(signals), values[len(names) * k :])


def _run(replica: Replica, size: int, batch: Any, names: Iterable[str] = ()) -> Terms:
    """The terms of a micro-batch; one of no examples only takes part.

    Raises:
        InvalidTaskError: they are not the named ones, those of the first micro-batch.
    """
    terms = replica.forward(size, batch)
    if (wanted := list(names)) and list(terms) != wanted:
        found = f"loss returned the terms {', '.join(terms)} after {', '.join(wanted)}"
        hint = "return every term for every batch, as rb.Loss(total * 0, 0) where it has no target"
        raise InvalidTaskError(found, need="the same terms in a whole update", hint=hint)
    return terms if size else {name: Loss(term.total * 0, 0) for name, term in terms.items()}


def _backward(terms: Terms, divisors: Mapping[str, float]) -> Terms:
    """Add the gradients of all terms over their divisors, and keep the sums without their graphs."""
    totals = [term.total for term in terms.values()]
    weights = [torch.full_like(term.total, 1 / divisors[name]) for name, term in terms.items()]
    torch.autograd.backward(totals, weights)
    return {name: Loss(term.total.detach(), term.count) for name, term in terms.items()}


def _count(replica: Replica, first: Terms, later: list[tuple[int, Any]]) -> dict[str, float]:
    """Targets of each term in the whole window; random numbers and buffers are given back."""
    devices = {p.device.index for p in replica.parameters if p.device.type == "cuda"}
    with torch.no_grad(), torch.random.fork_rng(devices=devices), _spare_buffers(replica.model):
        losses = [first, *(_run(replica, size, batch, first) for size, batch in later)]
        sums = replica.ranks.sum(_sums(losses)).tolist()
    return dict(zip(first, sums[len(first) :], strict=True))


@contextmanager
def _spare_buffers(model: nn.Module) -> Generator[None]:
    """Let forwards write into copies of the buffers; a graph that awaits backward holds the others."""
    held = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        for module, name, buffer in held:
            setattr(module, name, buffer.clone())
        yield
    finally:
        for module, name, buffer in held:
            setattr(module, name, buffer)


def _sums(losses: list[Terms]) -> Tensor:
    """Totals of every term, then their counts, over the micro-batches: float64 [2 T]."""
    names = list(losses[0])
    totals = torch.stack([terms[name].total.detach() for name in names for terms in losses])
    counts = [sum(terms[name].count for terms in losses) for name in names]
    device = totals.device
    if any(isinstance(count, Tensor) for count in counts):
        counted = torch.stack([torch.as_tensor(n, dtype=torch.float64, device=device) for n in counts])
    else:
        counted = torch.tensor(counts, dtype=torch.float64, device=device)
    return torch.cat([totals.double().view(len(names), -1).sum(dim=1), counted])


def _refuse_empty(counts: Mapping[str, float], num_examples: int) -> None:
    """An update without a single target has no gradient.

    Raises:
        InvalidInputError: this is one.
    """
    if not any(counts.values()):
        found = f"0 counted targets in an update of {num_examples} examples"
        hint = "leave out examples that are all masked, or use a larger global batch"
        raise InvalidInputError(found, need="at least 1", hint=hint)


def _refuse_other_counts(counted: Mapping[str, float], found: Mapping[str, float]) -> None:
    name = next(name for name in counted if counted[name] != found.get(name))
    raise InvalidTaskError(
        f"term {name!r} of the loss counted {counted[name]:g} targets, then {found.get(name):g}",
        need="a count that is the same when the loss is called again",
        hint="draw its random choices with torch, or in the data set",
    )


def scale_gradients(gradients: list[Tensor], factor: float) -> None:
    """Multiply all gradients in place, in one call."""
    torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateUsage]


def _values(gradient: Tensor) -> Tensor:
    """What its norm is taken over; rows that a sparse gradient holds twice are added first."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
