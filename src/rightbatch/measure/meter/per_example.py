"""Squared per-example gradient norms, taken by hooks in the ordinary backward pass.

A forward hook on each layer keeps the layer's input; a hook on its output tensor gets the output's
gradient when autograd has it, and both are folded into [N] numbers at once. Nothing in the graph
changes, so outputs, gradients and random numbers stay what they were, bit for bit.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rightbatch.measure.meter import layers, sketch
from rightbatch.measure.meter.layers import max_single
from rightbatch.measure.meter.leaves import Weights
from rightbatch.measure.meter.others import OtherModules, find_summand

NORMALISATION_STRIDE = 4  # their share of tr(Sigma) is small: every fourth example is enough
FULL_ELEMENTS = 2**22  # up to so many, gradients of a parameter used twice are added in full


class PerExampleNorms:
    """Owns the hooks of one measured step, and what they found.

    Args:
        model: its trainable parameters are looked at.
        exact: never sketch, whatever it costs.
        seed: of the sketches' signs.
    """

    def __init__(self, model: nn.Module, *, exact: bool = False, seed: int = 0) -> None:
        self.exact = exact
        """Whether sketches are never used."""
        self._generators: dict[torch.device, torch.Generator] = {}
        self._seed, self._random = seed, random.Random(seed)
        self._known = [
            m for m in model.modules() if layers.is_known(m) and layers.trained_parameters(m)
        ]
        self._others = OtherModules(model, self._known)
        self._handles: list[RemovableHandle] = []
        self.num_examples: int | None = None
        """Examples in the batch; set before the forward, or taken from the first layer's input."""
        self.reset()

    def reset(self) -> None:
        """Forget what was found."""
        self.num_examples = None
        self._squares: dict[nn.Parameter, Tensor] = {}
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._uses: dict[nn.Parameter, int] = {}
        self._signs: dict[Tensor, Tensor] = {}
        self._unbatched: list[tuple[nn.Module, Tensor, Tensor]] = []
        self._embedded: list[Tensor] = []
        self._broken: set[nn.Parameter] = set()
        self._idle: set[nn.Parameter] = set()
        self.precision = torch.float64
        """The coarsest that a gradient came in."""
        self.check: dict[nn.Parameter, Tensor] | None = None
        """Where set, the sum over examples of every parameter's gradients is added here."""
        self.weights: Weights | None = None
        """Where set, norms with every coordinate's square weighted are taken too, exactly."""

    def arm(self, skip: Set[nn.Parameter] = frozenset()) -> None:
        """Install the hooks for the next forward and backward.

        Args:
            skip: parameters that are not wanted.
        """
        self.reset()
        self._handles = [m.register_forward_hook(self._forward) for m in self._known]
        self._handles += self._others.arm(skip)

    def disarm(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def finish(
        self, wanted: Set[nn.Parameter], gradients: Mapping[nn.Parameter, Tensor]
    ) -> dict[nn.Parameter, Tensor]:
        """Squared norms of the examples' contributions to each covered parameter's gradient.

        [1, N], or [2, N] with the weighted ones second.

        Args:
            wanted: parameters that got a gradient.
            gradients: the whole gradient of those parameters that the hooks on layers may miss; a
                parameter added to an embedding is found by it.
        """
        self.disarm()
        n = self.num_examples or 0
        for module, x, d in self._unbatched:
            self._take_unbatched(module, x, d, n)
        for parameter, total in self._sums.items():
            weights = None if self.weights is None else self.weights[parameter]
            self._add(parameter, layers.squares(total, weights))
        for p in self._idle - self._squares.keys():
            shape = (1 if self.weights is None else 2, n)
            self._squares[p] = p.new_zeros(shape, dtype=max_single(p.dtype))
        rest = {p for p in wanted if p not in self._squares and p not in self._broken}
        self._others.finish(self, n, rest, gradients)
        found = {p: s for p, s in self._squares.items() if p not in self._broken}
        self._unbatched, self._embedded, self._sums = [], [], {}
        return found

    def take_other(self, parameter: nn.Parameter, found: Tensor, total: Tensor) -> None:
        """Enter what another way found: squared norms, and the sum over examples for the check."""
        self._add(parameter, found)
        if self.check is not None:
            self._count(parameter, total)

    def give_up(self, parameter: nn.Parameter) -> None:
        """Leave a parameter uncovered."""
        self._broken.add(parameter)

    @property
    def summands(self) -> set[nn.Parameter]:
        """Parameters whose whole gradient ``finish`` wants: they were found to be added to others."""
        return self._others.summands

    @property
    def averaged(self) -> set[nn.Parameter]:
        """Parameters whose norms are right on average, not example by example."""
        return self._others.averaged

    def embedded(self) -> list[Tensor]:
        """Output gradients of embedding layers in this step, [N, T, D] each."""
        return self._embedded

    def _forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        # Counted without grad too: checkpointing runs a layer without before it runs it with.
        for _, parameter in layers.trained_parameters(module):
            self._uses[parameter] = self._uses.get(parameter, 0) + 1
        if not (torch.is_grad_enabled() and isinstance(output, Tensor) and output.requires_grad):
            return
        if not args or not isinstance(args[0], Tensor):
            self._broken |= {p for _, p in layers.trained_parameters(module)}
            return
        output.register_hook(_Tap(self, module, args[0].detach()))

    @torch.no_grad()
    def backward(self, module: nn.Module, x: Tensor, d: Tensor) -> None:
        """Fold one call of a layer into the numbers of its parameters.

        A call on nothing, as of an expert that got no example, adds nothing. Nor does it confirm
        anything: it leaves no sum for the check.
        """
        if d.numel() == 0:
            self._idle |= {p for _, p in layers.trained_parameters(module)}
            return
        if self.num_examples is None:
            self.num_examples = len(d)
        n = self.num_examples
        if torch.finfo(d.dtype).eps > torch.finfo(self.precision).eps:
            self.precision = d.dtype
        x, d = _at_least_single(x), _at_least_single(d)
        if isinstance(module, nn.Embedding) and d.dim() == 3:
            self._embedded.append(d)
        # Rows of a table may be words of N examples or N positions of all: finish() finds out.
        rows_of_table = isinstance(module, nn.Embedding) and d.dim() == 2
        if n == 0 or len(d) % n or len(x) != len(d) or rows_of_table:
            self._unbatched.append((module, x, d))
            return
        if torch.is_autocast_enabled(d.device.type):
            with torch.autocast(d.device.type, enabled=False):
                self._take(module, x, d, n)
        else:
            self._take(module, x, d, n)

    def _take(self, module: nn.Module, x: Tensor, d: Tensor, n: int) -> None:
        rows = len(d) // n  # an example may have been folded into several rows
        if rows > 1 and not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.GroupNorm)):
            x, d = (t.reshape(n, rows, *t.shape[1:]) for t in (x, d))
            rows = 1
        parameters = dict(layers.trained_parameters(module))
        if self.check is not None:
            for name, total in layers.summed_gradients(module, x, d).items():
                self._count(parameters[name], total)
        if rows > 1 or any(self._uses.get(p, 1) > 1 for p in parameters.values()):
            for name, g in self._linear(module, x, d, rows).items():
                p = parameters[name]
                self._sums[p] = self._sums[p] + g if p in self._sums else g
            return
        found = self._plain(module, x, d, n)
        weighted: layers.Gradients = {}
        if self.weights is not None:
            weighted = layers.weighted_sq_norms(module, x, d, self.weights)
        for name, plain in found.items():
            both = torch.stack([plain, weighted[name]]) if weighted else plain.unsqueeze(0)
            self._add(parameters[name], both)

    def _plain(self, module: nn.Module, x: Tensor, d: Tensor, n: int) -> layers.Gradients:
        """Squared norms [N] of parameters that are used once."""
        if not self.exact and sketch.is_dear(module, x, d):
            projected = sketch.sketches(module, x, d, self._signs_of)
            return {name: z.square().sum(1) for name, z in projected.items()}
        stride = NORMALISATION_STRIDE
        if self.exact or not layers.is_normalisation(module) or n < 2 * stride:
            return layers.squared_norms(module, x, d)
        # Every stride-th example from a random one on: each is in with probability 1 / stride.
        rows = slice(self._random.randrange(stride), None, stride)
        found = layers.squared_norms(module, x[rows], d[rows])
        return {name: (stride * s.sum() / n).expand(n) for name, s in found.items()}

    def _linear(self, module: nn.Module, x: Tensor, d: Tensor, rows: int) -> layers.Gradients:
        """Gradients or sketches [N, ...] that may be added over the uses of a parameter."""
        size = max(p.numel() for _, p in layers.trained_parameters(module))
        small = len(d) * size <= FULL_ELEMENTS or layers.is_normalisation(module)
        if self.exact or small or self.weights is not None:
            found = layers.gradients(module, x, d)
        else:
            found = sketch.sketches(module, x, d, self._signs_of)
        return {name: g.view(len(g) // rows, rows, -1).sum(1) for name, g in found.items()}

    def _take_unbatched(self, module: nn.Module, x: Tensor, d: Tensor, n: int) -> None:
        """A table looked up once for all examples, and added to what was looked up for each.

        Then each example's share of its gradient is the other table's, which was seen.
        """
        twin = find_summand(self._embedded, d, n) if isinstance(module, nn.Embedding) else None
        if twin is not None:
            self._take(module, x.reshape(1, -1).expand(n, -1), twin, n)
        elif len(d) == len(x) and n and len(d) % n == 0:
            self._take(module, x, d, n)
        else:
            self._broken |= {p for _, p in layers.trained_parameters(module)}

    def _add(self, parameter: nn.Parameter, squares: Tensor) -> None:
        before = self._squares.get(parameter)
        self._squares[parameter] = squares if before is None else before + squares

    def _count(self, parameter: nn.Parameter, total: Tensor) -> None:
        assert self.check is not None
        before = self.check.get(parameter)
        total = total.reshape(parameter.shape)
        self.check[parameter] = total if before is None else before + total

    def _signs_of(self, parameter: Tensor, entries: int) -> Tensor:
        if parameter not in self._signs:
            assert self.num_examples is not None
            device, dtype = parameter.device, max_single(parameter.dtype)
            shape, generator = (self.num_examples, entries), self._generator(device)
            bits = torch.randint(0, 2, shape, dtype=torch.int8, device=device, generator=generator)
            self._signs[parameter] = bits.mul_(2).sub_(1).to(dtype)
        return self._signs[parameter]

    def _generator(self, device: torch.device) -> torch.Generator:
        """Our own source of randomness: the training's is not touched."""
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]


class _Tap:
    """A tensor hook that lets go of the layer's input as soon as it has run."""

    __slots__ = ("_module", "_norms", "_x")

    def __init__(self, norms: PerExampleNorms, module: nn.Module, x: Tensor) -> None:
        self._norms, self._module = norms, module
        self._x: Tensor | None = x

    def __call__(self, d: Tensor) -> None:
        x, self._x = self._x, None
        if x is not None:
            self._norms.backward(self._module, x, d)


def _at_least_single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in {torch.float16, torch.bfloat16} else tensor
