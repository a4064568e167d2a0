"""Squared norms of each micro-batch's own gradient, by hooks on the leaves.

A hook on a parameter sees what one backward adds to it: before it is added to ``.grad``, and before
data-parallel training averages it over replicas. Only its norm is kept, as a tensor on its device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rightbatch.measure.gradients import in_reals
from rightbatch.measure.meter.layers import max_single

Weights = Mapping[nn.Parameter, Tensor]


class LeafNorms:
    """Owns the hooks on the parameters during one measured step.

    Args:
        parameters: trainable ones.
        on_repeat: called where a parameter gets a second gradient in the running micro-batch; returns
            whether that started a new one.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], on_repeat: Callable[[], bool]) -> None:
        self._parameters = list(parameters)
        self._on_repeat = on_repeat
        self._handles: list[RemovableHandle] = []
        self.keep: set[nn.Parameter] = set()
        """Parameters whose gradients are held, not only their norms; parts of them are added."""
        self.weights: Weights | None = None
        """Where set, norms with every coordinate's square weighted are kept too."""
        self._reset()

    def _reset(self) -> None:
        self._norms: dict[nn.Parameter, Tensor] = {}
        self._weighted: dict[nn.Parameter, Tensor] = {}
        self._kept: dict[nn.Parameter, Tensor] = {}

    def arm(self) -> None:
        """Install the hooks."""
        self._reset()
        self.repeated = self.in_parts = False
        """Whether a gradient came in several parts; and in parts not held, whose norms do not add."""
        self._handles = [p.register_hook(_LeafHook(self, p)) for p in self._parameters]

    def disarm(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def fired(self) -> bool:
        """Whether a gradient was seen in the running micro-batch."""
        return bool(self._norms)

    def see(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Note one gradient."""
        gradient = gradient.detach()
        again = parameter in self._norms and not self._on_repeat()
        self.repeated |= again
        if parameter in self.keep:
            gradient = gradient + self._kept[parameter] if again else gradient.clone()
            self._kept[parameter] = gradient
        else:
            self.in_parts |= again
        self._norms[parameter] = norm(gradient)
        if self.weights is not None:
            self._weighted[parameter] = weighted_square(gradient, self.weights[parameter])

    def close(self) -> MicroBatchNorms:
        """End the running micro-batch and return what it left."""
        weighted = None if self.weights is None else self._weighted
        found = MicroBatchNorms(norms=self._norms, weighted=weighted, kept=self._kept)
        self._reset()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatchNorms:
    """One micro-batch's gradient by parameter, still on the devices."""

    norms: Mapping[nn.Parameter, Tensor]
    weighted: Mapping[nn.Parameter, Tensor] | None
    kept: Mapping[nn.Parameter, Tensor]


class _LeafHook:
    __slots__ = ("_norms", "_parameter")

    def __init__(self, norms: LeafNorms, parameter: nn.Parameter) -> None:
        self._norms, self._parameter = norms, parameter

    def __call__(self, gradient: Tensor) -> None:
        self._norms.see(self._parameter, gradient)


def squared_norms(
    parts: Sequence[MicroBatchNorms], parameters: Set[nn.Parameter] | None = None
) -> list[list[float]]:
    """Each part's squared norm over these parameters, or all; with weights the weighted one second.

    All numbers leave the device in one go and are added in double precision.
    """

    def chosen(values: Mapping[nn.Parameter, Tensor]) -> list[Tensor]:
        return [v for p, v in values.items() if parameters is None or p in parameters]

    norms = [chosen(part.norms) for part in parts]
    weighted = [chosen(part.weighted) for part in parts if part.weighted is not None]
    numbers = iter(off_device([value for values in (*norms, *weighted) for value in values]))
    plain = [sum(x * x for x in islice(numbers, len(values))) for values in norms]
    if not weighted:
        return [[square] for square in plain]
    second = [sum(islice(numbers, len(values))) for values in weighted]
    return [list(pair) for pair in zip(plain, second, strict=True)]


def off_device(values: Sequence[Tensor]) -> list[float]:
    """The numbers of tensors of shape [], with a single wait for the device."""
    return torch.stack([v.to(values[0].device) for v in values]).tolist() if values else []


def norm(gradient: Tensor) -> Tensor:
    """Euclidean norm, shape []; equal rows of a sparse gradient are added first."""
    values = in_reals(gradient.coalesce().values() if gradient.is_sparse else gradient)
    return torch.linalg.vector_norm(values, dtype=max_single(values.dtype))


def weighted_square(gradient: Tensor, weights: Tensor) -> Tensor:
    """Sum of weighted squares, shape []."""
    dense = in_reals(gradient.to_dense() if gradient.is_sparse else gradient)
    return (dense.to(max_single(dense.dtype)).square() * weights).sum()
