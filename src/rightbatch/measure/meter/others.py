"""Per-example squared norms for parameters that no known layer owns.

Three ways, the first that works: a parameter added to an embedding has the embedding's per-example
gradient; a module is run again on its recorded input with one vector-Jacobian product an example;
where its kernels cannot be vectorised over examples (recurrent ones), one for each of a few groups,
whose spread gives the same expectation. A module that draws random numbers cannot be run again: its
parameters stay uncovered, which the check against autograd's own gradient finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rightbatch.measure.meter.layers import squares
from rightbatch.measure.meter.nested import detached, tensors_in
from rightbatch.measure.meter.rerun import Call, Keep, autocast_now, run_again

if TYPE_CHECKING:
    from rightbatch.measure.meter.per_example import PerExampleNorms


class OtherModules:
    """Records calls of the modules that own parameters and are no known layers."""

    def __init__(self, model: nn.Module, known: Sequence[nn.Module]) -> None:
        covered = {id(m) for m in known}
        self._owners = [
            m
            for m in model.modules()
            if id(m) not in covered and any(p.requires_grad for p in m.parameters(recurse=False))
        ]
        self._calls: dict[nn.Module, list[Call]] = {}
        self._in_groups: set[nn.Module] = set()
        """Modules whose kernels refused to be vectorised over examples."""
        self.averaged: set[nn.Parameter] = set()
        """Parameters whose norms are right on average, not example by example."""
        self.summands: set[nn.Parameter] = set()
        """Parameters found to be added to an embedding."""

    def arm(self, skip: AbstractSet[nn.Parameter]) -> list[RemovableHandle]:
        """Install forward hooks; the caller removes them.

        Args:
            skip: parameters that are not wanted.
        """
        self._calls = {}
        wanted = [m for m in self._owners if not _trained(m.parameters()) <= skip]
        return [m.register_forward_hook(self._forward, with_kwargs=True) for m in wanted]

    def _forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        outputs = tensors_in(output)
        device = next((t.device.type for t in outputs if t.requires_grad), None)
        if device is None or not torch.is_grad_enabled():
            return
        call = Call(detached(args), detached(kwargs), [None] * len(outputs), autocast_now(device))
        self._calls.setdefault(module, []).append(call)
        for k, tensor in enumerate(outputs):
            if tensor.requires_grad:
                tensor.register_hook(Keep(call, k))

    def finish(
        self,
        norms: PerExampleNorms,
        num_examples: int,
        wanted: set[nn.Parameter],
        gradients: Mapping[nn.Parameter, Tensor],
    ) -> None:
        """Enter the squared norms of the wanted parameters.

        Args:
            norms: to enter them in.
            num_examples: of the batch.
            wanted: parameters that got a gradient and that no known layer covers.
            gradients: whole ones, of those parameters that may be added to an embedding.
        """
        calls, self._calls = self._calls, {}
        wanted = {p for p in wanted if not self._add_by_summand(norms, p, num_examples, gradients)}
        for module in reversed(self._owners):  # inner modules first: they are cheaper to run again
            if module not in calls:
                continue
            mine = {name: p for name, p in module.named_parameters() if p in wanted}
            if mine:
                self._add_by_running(norms, module, mine, calls[module], num_examples)
                wanted -= set(mine.values())
        for p in wanted:
            norms.give_up(p)

    def _add_by_summand(
        self, norms: PerExampleNorms, p: nn.Parameter, n: int, gradients: Mapping[nn.Parameter, Tensor]
    ) -> bool:
        whole = gradients.get(p)
        if whole is None or p.dim() < 2 or whole.is_sparse:
            return False
        table = whole.reshape(-1, whole.shape[-1])
        used = int(table.abs().sum(1).nonzero().max()) + 1 if bool(table.any()) else len(table)
        twin = find_summand(norms.embedded(), table[:used], n)
        if twin is None:
            return False
        weights = None if norms.weights is None else norms.weights[p].reshape(table.shape)[:used]
        norms.take_other(p, squares(twin, weights), whole)
        self.summands.add(p)
        return True

    def _add_by_running(
        self,
        norms: PerExampleNorms,
        module: nn.Module,
        wanted: Mapping[str, nn.Parameter],
        calls: Sequence[Call],
        n: int,
    ) -> None:
        weights = {k: None if norms.weights is None else norms.weights[p] for k, p in wanted.items()}
        try:
            found = run_again(
                module, wanted, calls, n, weights, vectorised=module not in self._in_groups
            )
            if found is None:
                self._in_groups.add(module)
                found = run_again(module, wanted, calls, n, weights, vectorised=False)
            if module in self._in_groups:
                self.averaged |= set(wanted.values())
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            found = None  # a module that cannot be run again as it was
        for name, p in wanted.items():
            if found is None:
                norms.give_up(p)
            else:
                norms.take_other(p, *found[name])


def _trained(parameters: Iterable[nn.Parameter]) -> set[nn.Parameter]:
    return {p for p in parameters if p.requires_grad}


def find_summand(candidates: list[Tensor], d: Tensor, n: int) -> Tensor | None:
    """The per-example gradients [N, *] whose sum over examples is ``d``, if one of these is.

    Broadcasting sums over examples, so equality in every element is no coincidence.
    """
    flat = d.reshape(-1, d.shape[-1])
    for candidate in candidates:
        if len(candidate) != n or candidate.shape[1:] != flat.shape:
            continue
        total = candidate.sum(0)
        if torch.linalg.vector_norm(total - flat) <= 1e-4 * torch.linalg.vector_norm(flat):
            return candidate
    return None
