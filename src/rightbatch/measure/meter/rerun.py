"""Run a module again on its recorded inputs, for its parameters' gradients per example or group."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from rightbatch.measure.meter.layers import example_slices, squares
from rightbatch.measure.meter.nested import replaced, tensors_in

GROUPS = 8

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(slots=True)
class Call:
    """One call of a module: what went in, and the gradient of what came out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output_grads: list[Tensor | None]
    autocast: tuple[bool, torch.dtype]


class Keep:
    """A tensor hook that stores one output's gradient in its call."""

    __slots__ = ("_call", "_place")

    def __init__(self, call: Call, place: int) -> None:
        self._call, self._place = call, place

    def __call__(self, d: Tensor) -> None:
        """Store it."""
        self._call.output_grads[self._place] = d


Found = dict[str, tuple[Tensor, Tensor]]
"""By parameter name: squared norms, [1, N] or [2, N] with weights, and the sum over examples."""


def run_again(
    module: nn.Module,
    wanted: Mapping[str, nn.Parameter],
    calls: Sequence[Call],
    n: int,
    weights: Mapping[str, Tensor | None],
    *,
    vectorised: bool,
) -> Found | None:
    """Squared norms of the examples' gradients; random numbers and hooks are left alone.

    Args:
        module: in the mode it was called in.
        wanted: its parameters by name.
        calls: recorded in the step; their gradients are added before squaring.
        n: examples in each call.
        weights: of squares, by name.
        vectorised: one product an example, all at once; otherwise one for each of a few groups.

    Returns:
        None where the module's kernels cannot be vectorised.

    Raises:
        ValueError: nothing in a call has one row an example.
    """
    calls = [c for c in calls if any(g is not None for g in c.output_grads)]
    if not calls or n < 2:
        raise ValueError("nothing to run again")
    with torch.random.fork_rng(), silenced(module):
        if not vectorised:
            return _by_group(module, wanted, calls, n, weights)
        try:
            with warnings.catch_warnings():  # some kernels are looped over, which torch finds slow
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                return _by_example(module, wanted, calls, n, weights)
        except (RuntimeError, NotImplementedError):
            return None


def _by_example(
    module: nn.Module,
    wanted: Mapping[str, nn.Parameter],
    calls: Sequence[Call],
    n: int,
    weights: Mapping[str, Tensor | None],
) -> Found:
    values = {name: p.detach() for name, p in wanted.items()}
    norms: dict[str, list[Tensor]] = {name: [] for name in wanted}
    totals: dict[str, Tensor] = {}
    for rows in example_slices(n, sum(p.numel() for p in wanted.values())):
        found: dict[str, Tensor] = {}
        for call in calls:
            spread = _Spread(module, call, n)

            def one(
                mapped: list[Tensor], spread: _Spread = spread, call: Call = call
            ) -> dict[str, Tensor]:
                inputs, cotangents = spread.join([
                    t.unsqueeze(d) for t, d in zip(mapped, spread.dims, strict=True)
                ])

                def run(parameters: dict[str, Tensor]) -> list[Tensor]:
                    return run_call(module, parameters, inputs, call)

                outputs, pull = cast("Any", torch.func.vjp(run, values))
                return cast("dict[str, Tensor]", pull(_cast_like(cotangents, outputs))[0])

            moved = [t.movedim(d, 0)[rows] for t, d in zip(spread.mapped, spread.dims, strict=True)]
            gradients = {k: g.detach() for k, g in torch.func.vmap(one)(moved).items()}
            found = {k: g + found[k] if k in found else g for k, g in gradients.items()}
        for name, g in found.items():
            norms[name].append(squares(g, weights[name]))
            totals[name] = g.sum(0) + totals[name] if name in totals else g.sum(0)
    return {name: (torch.cat(norms[name], dim=1), totals[name]) for name in wanted}


def _by_group(
    module: nn.Module,
    wanted: Mapping[str, nn.Parameter],
    calls: Sequence[Call],
    n: int,
    weights: Mapping[str, Tensor | None],
) -> Found:
    """Squared norms with the right expectation from the spread between groups of examples.

    With C_k the sum over the n_k examples of group k and C the total, the variance V of a single
    example's contribution is estimated without bias by the mean square between groups, sum_k n_k
    |C_k/n_k - C/N|^2 / (K - 1); and E|c|^2 = |C|^2/N^2 + V (1 - 1/N).
    """
    bounds = torch.linspace(0, n, min(GROUPS, n) + 1).round().int().tolist()
    groups = [slice(a, b) for a, b in pairwise(bounds)]
    sums: dict[str, list[Tensor]] = {name: [] for name in wanted}
    leaves = {name: p.detach().requires_grad_() for name, p in wanted.items()}
    for rows in groups:
        outputs: list[Tensor] = []
        cotangents: list[Tensor] = []
        for call in calls:
            spread = _Spread(module, call, n)
            parts = [
                t.movedim(d, 0)[rows].movedim(0, d)
                for t, d in zip(spread.mapped, spread.dims, strict=True)
            ]
            inputs, grads = spread.join(parts)
            with torch.enable_grad():
                found = run_call(module, leaves, inputs, call)
            outputs += found
            cotangents += _cast_like(grads, found)
        gradients = torch.autograd.grad(outputs, list(leaves.values()), cotangents, allow_unused=True)
        for name, g in zip(leaves, gradients, strict=True):
            sums[name].append(g if isinstance(g, Tensor) else torch.zeros_like(leaves[name]))
    result: Found = {}
    for name, parts in sums.items():
        total = torch.stack(parts).sum(0)
        sizes = [rows.stop - rows.start for rows in groups]
        terms = [
            size * squares((c / size - total / n).unsqueeze(0), weights[name])
            for size, c in zip(sizes, parts, strict=True)
        ]
        variance = torch.stack(terms).sum(0) / (len(groups) - 1)  # [1 or 2, 1]
        whole = squares(total.unsqueeze(0), weights[name])
        result[name] = ((whole / n + variance * (n - 1)).div(n).expand(-1, n), total)
    return result


class _Spread:
    """Which tensors of a call hold examples, and along which dimension."""

    def __init__(self, module: nn.Module, call: Call, n: int) -> None:
        self._call = call
        tensors = [*tensors_in(call.args), *tensors_in(call.kwargs)]
        grads = [g for g in call.output_grads if g is not None]
        self.dims: list[int] = []
        self.mapped: list[Tensor] = []
        self._places: list[int] = []
        for k, tensor in enumerate([*tensors, *grads]):
            first = k == 0 or (k == len(tensors) and call.output_grads[0] is not None)
            dim = example_dim(module, tensor, n, first=first)
            if dim is not None:
                self.dims.append(dim)
                self.mapped.append(tensor)
                self._places.append(k)
        self._num_inputs = len(tensors)
        self._all = [*tensors, *grads]
        if not any(place >= len(tensors) for place in self._places):
            raise ValueError("no output has one row an example")

    def join(self, mapped: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """All inputs and all output gradients, with these in the places of the mapped ones."""
        values = list(self._all)
        for place, value in zip(self._places, mapped, strict=True):
            values[place] = value
        return values[: self._num_inputs], values[self._num_inputs :]


def example_dim(module: nn.Module, tensor: Tensor, n: int, *, first: bool) -> int | None:
    """The dimension of a module's input or output along which examples lie; None without one.

    Recurrent modules put states' examples second always, and sequences' unless ``batch_first``.
    """
    recurrent = isinstance(module, nn.RNNBase)
    second = getattr(module, "batch_first", True) is False or (recurrent and not first)
    dim = 1 if second and tensor.dim() >= 3 else 0
    return dim if tensor.dim() > dim and tensor.shape[dim] == n else None


def run_call(
    module: nn.Module, parameters: Mapping[str, Tensor], inputs: list[Tensor], call: Call
) -> list[Tensor]:
    """Call a module as it was called, and return the outputs that had a gradient then.

    Args:
        module: to call.
        parameters: to put in place of its own, by name.
        inputs: in place of the recorded tensors, in order.
        call: the recorded one.
    """
    rest = iter(inputs)
    args, kwargs = replaced(call.args, rest), replaced(call.kwargs, rest)
    enabled, dtype = call.autocast
    device = next(g.device.type for g in call.output_grads if g is not None)
    with torch.autocast(device, enabled=enabled, dtype=dtype):
        output = torch.func.functional_call(module, dict(parameters), args, kwargs)
    outputs = tensors_in(output)
    return [t for t, g in zip(outputs, call.output_grads, strict=True) if g is not None]


def autocast_now(device: str) -> tuple[bool, torch.dtype]:
    """Whether mixed precision is on, and in what."""
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _cast_like(grads: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[Tensor]:
    return [g.to(o.dtype) for g, o in zip(grads, outputs, strict=True)]


@contextmanager
def silenced(module: nn.Module) -> Generator[None]:
    """Run a module again without its hooks: other people's must not see the second time."""
    saved = [(m, name, getattr(m, name)) for m in module.modules() for name in _HOOKS]
    try:
        for m, name, _ in saved:
            setattr(m, name, OrderedDict[int, Any]())
        yield
    finally:
        for m, name, hooks in saved:
            setattr(m, name, hooks)
