"""Activation checkpointing of any model, without a change to its code.

A checkpointed block keeps its inputs and runs its forward again in backward (Chen et al. 2016,
arXiv:1604.06174, Section 4.2). The gradient is the plain one bit for bit: random states are given
back by torch, and buffers that a forward writes, such as the statistics of BatchNorm, are written
once, because the second forward works on copies of them.

Blocks are the repeated parts of a model. In order, the first rule that finds any decides:

1. modules with children of their own, that are children of a ``ModuleList``, ``ModuleDict`` or
   ``Sequential``, and whose class occurs at least twice in such places;
2. modules with children of their own whose class occurs at least twice anywhere.

Of nested ones the outermost counts. A ``Sequential`` is a block only where all its children are
layers, and then two are of one class if their layers are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase  # pyright: ignore[reportPrivateUsage]
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import checkpoint

from rightbatch.core.errors import InvalidTaskError

_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated blocks of a model by name, in order; empty where there is none.

    >>> pair = lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> list(find_blocks(nn.Sequential(pair(), pair(), nn.Linear(2, 1))))
    ['0', '1']
    """
    for only_in_containers in (True, False):
        kinds = {
            name: kind
            for parent, name, module in _with_parents(model)
            if (kind := _kind(module)) is not None
            and (isinstance(parent, _CONTAINERS) or not only_in_containers)
        }
        repeated = {kind for kind, count in Counter(kinds.values()).items() if count > 1}
        chosen = [name for name, kind in kinds.items() if kind in repeated]
        outermost = [n for n in chosen if not any(n.startswith(f"{other}.") for other in chosen)]
        if outermost:
            return {name: model.get_submodule(name) for name in outermost}
    return {}


def apply_checkpointing(model: nn.Module) -> list[str]:
    """Make the repeated blocks of a model forget their activations until backward needs them.

    Parameters, buffers, hooks and names stay as they are. A block that is checkpointed already stays
    so. Blocks must compute the same when they run again: what they read and write beside parameters,
    buffers and random numbers is not restored.

    Args:
        model: changed in place.

    Returns:
        Names of the blocks.

    Raises:
        InvalidTaskError: the model has no repeated block.
    """
    blocks = find_blocks(model)
    if not blocks:
        found = f"no block of {type(model).__name__} is repeated"
        need = "two modules of one class with layers inside"
        raise InvalidTaskError(
            found, need, hint="put the layers that repeat into a module of their own"
        )
    for block in blocks.values():
        if not isinstance(block.forward, _Checkpointed):
            block.forward = _Checkpointed(block, block.forward, "forward" in vars(block))
    return list(blocks)


def remove_checkpointing(model: nn.Module) -> None:
    """Undo ``apply_checkpointing``."""
    for module in model.modules():
        if isinstance(wrapped := vars(module).get("forward"), _Checkpointed):
            if wrapped.was_set:
                module.forward = wrapped.plain
            else:
                del module.forward


@dataclass(frozen=True, slots=True)
class _Checkpointed:
    """The forward of a block, whose activations are computed twice instead of kept."""

    block: nn.Module
    plain: Callable[..., Any]
    was_set: bool
    """Whether the block's instance, and not its class, had this forward."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = partial(self.plain, **kwargs) if kwargs else self.plain
        if not torch.is_grad_enabled():
            return run(*args)
        if torch.compiler.is_compiling():  # a compiled graph writes buffers once by itself
            return checkpoint(run, *args, use_reentrant=False)
        once = _Once(self.block, [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)])
        return checkpoint(run, *args, use_reentrant=False, context_fn=once.contexts)


class _Once:
    """Lets a block run twice and write its buffers once; as a context it surrounds the second run."""

    def __init__(self, block: nn.Module, inputs: list[Tensor]) -> None:
        self._block, self._inputs = block, inputs
        self._versions = list(map(_version, inputs))
        self._before: list[_Buffer] = []
        self._current: list[_Buffer] = []

    def contexts(self) -> tuple[Any, Any]:
        """What surrounds the first run, and the second."""
        return self._first(), self

    @contextmanager
    def _first(self) -> Generator[None]:
        """Keep what the buffers held that forward is about to write."""
        held = [
            (owner, name, buffer, _version(buffer), buffer.clone())
            for owner, name, buffer in _buffers(self._block)
            if not isinstance(owner, _NormBase)
        ]
        try:
            yield
        finally:
            self._before = [
                (owner, name, kept)
                for owner, name, buffer, version, kept in held
                if getattr(owner, name) is not buffer or _version(buffer) != version
            ]

    def __enter__(self) -> None:
        """Put copies in the place of buffers that forward writes, with what they held before.

        Raises:
            InvalidTaskError: an input of the block has been written in place.
        """
        if list(map(_version, self._inputs)) != self._versions:
            found = f"an input of the checkpointed {type(self._block).__name__} was changed in place"
            need = "the input as it was, to run the block again"
            raise InvalidTaskError(found, need, hint="set inplace=False inside the block and after it")
        # Statistics that a normalisation collects do not enter what it computes while it collects.
        written = [
            (owner, name, buffer)
            for owner, name, buffer in _buffers(self._block)
            if isinstance(owner, _NormBase) and owner.training
        ]
        written += self._before
        copies: list[_Buffer] = [(owner, name, held.clone()) for owner, name, held in written]
        self._current = [(owner, name, getattr(owner, name)) for owner, name, _ in copies]
        _put(copies)

    def __exit__(self, *exception: object) -> None:
        _put(self._current)
        self._current = []


_Buffer = tuple[nn.Module, str, Tensor]


def _put(buffers: list[_Buffer]) -> None:
    for owner, name, buffer in buffers:
        setattr(owner, name, buffer)


def _with_parents(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every module below the model, with the one that holds it and its full name."""
    for prefix, parent in model.named_modules():
        for name, child in parent.named_children():
            yield parent, f"{prefix}.{name}" if prefix else name, child


def _kind(module: nn.Module) -> Any:
    """What makes two blocks alike; None for a layer and for a container of blocks."""
    children = list(module.children())
    if not children or isinstance(module, nn.ModuleList) or type(module) is nn.ModuleDict:
        return None
    if type(module) is not nn.Sequential:
        return type(module)
    leaves = not any(list(child.children()) for child in children)
    return tuple(map(type, children)) if leaves else None


def _buffers(block: nn.Module) -> Iterator[_Buffer]:
    for owner in block.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            yield owner, name, buffer


def _version(tensor: Tensor) -> int:
    """How often a tensor has been written."""
    return 0 if tensor.is_inference() else tensor._version
