"""One measured update: what is installed for it, and which source its norms come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.samples import GradientSample, GradientSource
from rightbatch.measure.meter.groups import measure_groups
from rightbatch.measure.meter.layers import max_single
from rightbatch.measure.meter.leaves import LeafNorms, MicroBatchNorms, squared_norms
from rightbatch.measure.meter.model_facts import (
    MIN_COVERED,
    ModelFacts,
    coupling_of,
    why_not_per_example,
)
from rightbatch.measure.meter.nested import tensors_in
from rightbatch.measure.meter.per_example import PerExampleNorms
from rightbatch.measure.meter.replay import Replay
from rightbatch.measure.meter.sources import (
    NOT_FINITE,
    Skipped,
    failing,
    sample_of_examples,
    sample_of_groups,
    sample_of_micro_batches,
    sample_of_replicas,
    share_of,
)
from rightbatch.measure.meter.whole import Fingerprint, whole_gradient
from rightbatch.measure.meter.window import Reduction, examples_of_micro_batches


class MeasuredUpdate:
    """Owns all hooks on the model: a light one always, the others for one update at a time.

    Args:
        model: as called in the loop.
        facts: about it.
        reduction: of the user's loss.
        preconditioner: gives the weights of squares, per trainable parameter, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        facts: ModelFacts,
        reduction: Reduction,
        preconditioner: Callable[[], list[Tensor] | None],
    ) -> None:
        self._model, self._facts = model, facts
        self._reduction: Reduction = reduction
        self._preconditioner = preconditioner
        self.source: GradientSource | None = None
        """Decided by the first measured update; None before."""
        self.armed = False
        self.shared_extra_share: float | None = None
        """What measuring adds to an update, agreed between replicas."""
        self._root: list[RemovableHandle] = []
        self._trained: list[nn.Parameter] = []
        """As they were when the hooks were installed."""
        self._leaves: LeafNorms | None = None
        self._layers: PerExampleNorms | None = None
        self._uncovered: set[nn.Parameter] | None = None
        """Parameters that failed the check; None before it."""
        self._covered_share = 1.0
        self._fingerprint = Fingerprint()
        self._replay = Replay()
        self._in_parts = False
        self._clear()

    def _clear(self) -> None:
        self._sizes: list[int] = []
        self._micro: list[MicroBatchNorms] = []

    @property
    def examples(self) -> int:
        """Examples of the update so far, from the inputs of the model; 0 where they do not tell."""
        return sum(self._sizes)

    def attach(self) -> None:
        """Count examples from now on."""
        self._clear()
        if getattr(self._model, "_compiled_call_impl", None) is None:
            self._root = [self._model.register_forward_pre_hook(self._forward, with_kwargs=True)]

    def detach(self) -> None:
        """Remove every hook."""
        self.disarm()
        for handle in self._root:
            handle.remove()
        self._root.clear()

    def arm(self) -> None:
        """Install what the next update needs; what was found of other parameters holds no more."""
        if self._has_changed():
            self._trained = self._parameters()
            self._layers, self._uncovered, self._covered_share = None, None, 1.0
        parameters = self._trained
        self._leaves = LeafNorms(parameters, self._on_repeat)
        self._leaves.arm()
        self._leaves.keep = set(parameters) if self._in_parts else set()
        if self._facts.replicas == 1:  # whatever the source: several micro-batches may come any time
            self._fingerprint.arm(parameters)
        if self.source in {None, "per-example"} and self._why_not_per_example() is None:
            self._layers = self._layers or PerExampleNorms(self._model)
            self._layers.arm(self._uncovered or frozenset())
            if self._uncovered is None:
                self._layers.check, self._layers.exact = {}, True
                self._replay.arm(self._model)
                self._leaves.keep = set(parameters)
            self._leaves.keep |= self._layers.summands
        self.armed = True

    def disarm(self) -> None:
        """Remove what the update needed."""
        if self._leaves is not None:
            self._leaves.disarm()
        if self._layers is not None:
            self._layers.disarm()
            self._layers.reset()
        self._fingerprint.disarm()
        self._replay.disarm()
        self._leaves = None
        self.armed = False
        self._clear()

    def finish(
        self,
        examples: int | None,
        scale: float,
        groups: Iterable[Tensor] | None,
        extra_share: float | None,
    ) -> GradientSample | Skipped:
        """Turn what the hooks saw into a sample.

        Args:
            examples: of this process, as the user says; None: as seen.
            scale: of the loss.
            groups: losses of parts of the batch.
            extra_share: what measuring adds to an update on this process.

        Raises:
            InvalidInputError: no gradient was seen, or the update cannot be measured like this.
        """
        assert self._leaves is not None
        self.shared_extra_share = extra_share
        self._close()
        if not self._micro:
            found = "update() with no gradient since the last one"
            hint = "give the meter the model whose parameters are trained"
            raise InvalidInputError(found, need="one backward or more before it", hint=hint)
        if self._has_changed():
            return Skipped("parameters that were frozen or unfrozen since the last update")
        self._choose(groups)
        self._in_parts |= self._leaves.repeated
        if self._leaves.in_parts and self.source != "groups":
            return Skipped("a gradient that came in parts; they are added from now on")
        del self._sizes[len(self._micro) :]  # of a forward that no backward followed
        sizes = examples_of_micro_batches(self._sizes, len(self._micro), examples)
        if self.source == "per-example":
            found = self._from_examples(int(sizes[0]), scale)
            if found is not None:
                return found
            self._choose(groups)
        if self.source == "groups":
            return self._from_groups(sum(sizes), groups)
        return self._from_micro_batches(sizes, scale)

    def _choose(self, groups: Iterable[Tensor] | None) -> None:
        """Decide where the norms come from.

        Raises:
            InvalidInputError: groups are the only way, and were not given.
        """
        if self._facts.replicas > 1:
            self.source = "replicas"
        elif len(self._micro) > 1 or self.source == "micro-batches":
            self.source = "micro-batches"
        else:
            reason = self._why_not_per_example()
            self.source = "per-example" if reason is None else "groups"
            if reason is not None and groups is None:
                need = "parts of the batch with gradients of their own"
                hint = "accumulate 2 or more micro-batches, or pass update(groups=...)"
                raise InvalidInputError(reason, need=need, hint=hint)

    def _why_not_per_example(self) -> str | None:
        return why_not_per_example(self._model, self._facts, self._covered_share)

    def _from_examples(self, n: int, scale: float) -> GradientSample | Skipped | None:
        """None where too few parameters are covered.

        Raises:
            InvalidInputError: layers do not see the examples that there are said to be.
        """
        layers, micro = self._layers, self._micro[0]
        assert layers is not None
        seen = layers.num_examples
        if seen is not None and seen != n:
            found = f"examples={n} where the layers saw {seen}"
            hint = "leave `examples` out, accumulate, or pass update(groups=...)"
            raise InvalidInputError(found, need="one row of the input for each example", hint=hint)
        if n < 2:
            return Skipped("a batch of one example")
        if self._uncovered is None and not all(map(math.isfinite, squared_norms([micro])[0])):
            return NOT_FINITE  # nothing could be checked
        squares = layers.finish(set(micro.norms) - (self._uncovered or set()), micro.kept)
        if self._uncovered is None:
            self._uncovered = self._not_covered(micro, squares, n)
            covered = {p for p in micro.norms if p in squares and p not in self._uncovered}
            self._covered_share = share_of(covered, micro.norms)
            layers.exact = False
            if self._covered_share < MIN_COVERED:
                return None
        return sample_of_examples(micro, squares, self._uncovered, n, scale, self._reduction)

    def _not_covered(
        self, micro: MicroBatchNorms, squares: Mapping[nn.Parameter, Tensor], n: int
    ) -> set[nn.Parameter]:
        """Parameters that fail either check of the first measured update."""
        assert self._layers is not None
        precision = self._layers.precision
        failed = failing(micro.kept, self._layers.check or {}, precision)
        provable = {p: s for p, s in squares.items() if p not in failed | self._layers.averaged}
        return failed | self._replay.disproved(self._model, provable, n, precision)

    def _from_micro_batches(self, sizes: list[float], scale: float) -> GradientSample | Skipped:
        whole = whole_gradient(self._model, self._weights())
        how: Any = {"scale": scale, "reduction": self._reduction, "coupling": coupling_of(self._model)}
        if isinstance(self._model, DistributedDataParallel) and self.source == "replicas":
            extra = self.shared_extra_share
            found, self.shared_extra_share = sample_of_replicas(
                self._model, self._micro, sizes, whole, extra_share=extra, **how
            )
            return found
        changed = self._fingerprint.factor()
        return sample_of_micro_batches(self._micro, sizes, whole, changed=changed, **how)

    def _from_groups(
        self, examples: float, groups: Iterable[Tensor] | None
    ) -> GradientSample | Skipped:
        if groups is None:
            return Skipped("no groups given to update()")

        def seen() -> list[int]:
            found, self._sizes = self._sizes, []
            return found

        if self._leaves is not None:
            self._leaves.disarm()
        self.armed = False  # the groups' forwards are not micro-batches of the update
        with ExitStack() as stack:
            if isinstance(self._model, DistributedDataParallel):
                stack.enter_context(self._model.no_sync())
            sizes, micro, whole = measure_groups(
                self._model, groups, seen, examples, self._weights(), self._reduction
            )
        return sample_of_groups(micro, sizes, whole, coupling_of(self._model))

    def _forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Count the examples that the model is given, and see where a micro-batch ends."""
        if not torch.is_grad_enabled():
            return
        self._close()
        size = next((len(t) for t in tensors_in((args, kwargs)) if t.dim() > 0), 0)
        if self.armed and len(self._sizes) > len(self._micro):
            self._sizes.pop()  # a model called twice before one backward sees the same examples
        self._sizes.append(size)
        if self.armed and not self._micro:
            self._prepare(size)

    def _prepare(self, size: int) -> None:
        """What has to be known before the first backward: the batch, and the optimizer's weights."""
        weights = self._weights()
        if self._leaves is not None:
            self._leaves.weights = weights
        if self._layers is not None:
            self._layers.num_examples = size or None
            self._layers.weights = weights

    def _weights(self) -> dict[nn.Parameter, Tensor] | None:
        found = self._preconditioner()
        if found is None:
            return None
        pairs = zip(self._parameters(), found, strict=True)
        return {p: w.to(max_single(p.dtype.to_real())) for p, w in pairs}

    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self._model.parameters() if p.requires_grad]

    def _has_changed(self) -> bool:
        return set(self._trained) != set(self._parameters())

    def _on_repeat(self) -> bool:
        """A second gradient of a parameter starts a micro-batch only where no forward was seen."""
        if self._sizes:
            return False
        self._close()
        return True

    def _close(self) -> None:
        if self._leaves is not None and self._leaves.fired:
            self._micro.append(self._leaves.close())
