"""Tensors inside the tuples, lists and mappings that modules are called with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """Tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors_in(v)]
    if isinstance(value, (tuple, list)):
        return [t for v in value for t in tensors_in(v)]
    return []


def replaced(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same nesting with the tensors replaced, in order."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {k: replaced(v, tensors) for k, v in cast("dict[str, Any]", value).items()}
    if isinstance(value, (tuple, list)):
        items = [replaced(v, tensors) for v in cast("Sequence[Any]", value)]
        return items if isinstance(value, list) else tuple(items)
    return value


def detached(value: Any) -> Any:
    """The same nesting with tensors outside the graph."""
    return replaced(value, iter([t.detach() for t in tensors_in(value)]))
