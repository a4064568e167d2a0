"""The costliest batch of variable-length data, found by scanning the sizes of examples.

Padding makes every example as long as the longest, packing adds lengths up, and detection pays per
item: which of them costs most depends on ``collate``. So examples are ranked by several keys, the
first of each ranking are joined as the task's loader would, and the largest batch counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor
from torch.utils._pytree import tree_iter
from torch.utils.data import Subset

from rightbatch.core.errors import InvalidInputError
from rightbatch.tasks.build import collate
from rightbatch.tasks.task import Task

Key = Literal["longest", "largest", "most_items"]

_KEYS: tuple[Key, ...] = ("longest", "largest", "most_items")
_MOST_SCANNED = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstCase:
    """The batch that costs most, and how much of the data was looked at."""

    indices: tuple[int, ...]
    """Into the training data, costliest first."""
    key: Key
    """What ranks them: the longest dimension, the bytes, or the number of items of an example."""
    scanned: int
    of: int
    varies: bool
    """Whether any two scanned examples differ in size; where none do, any batch is the worst."""
    batch_bytes: int
    """Bytes of the joined batch."""

    @property
    def caveat(self) -> str:
        """What was not covered, in words; empty where all data was."""
        if self.scanned == self.of:
            return ""
        rest = self.of - self.scanned
        return f"{rest:,} of {self.of:,} examples were not looked at and may be larger"


def worst_case_indices(
    task: Task, micro_batch_size: int, *, max_scanned: int = _MOST_SCANNED
) -> WorstCase:
    """Find the ``micro_batch_size`` training examples whose batch is the largest.

    Reads each scanned example once. Longer data is scanned at even distances, so that sorted data
    is covered from end to end. The same data gives the same answer.

    Args:
        task: gives data and ``collate``.
        micro_batch_size: examples in the batch; they repeat where the data has fewer.
        max_scanned: read at most this many.

    Raises:
        InvalidInputError: a count is below 1, or examples have no size that can be seen.
    """
    length = task.num_train_examples
    if min(micro_batch_size, max_scanned, length) < 1:
        found = f"micro_batch_size {micro_batch_size}, max_scanned {max_scanned}, {length} examples"
        raise InvalidInputError(found, need="each at least 1", hint="give positive counts and data")
    count = min(length, max_scanned)
    scanned = [i * length // count for i in range(count)]
    data = cast(Any, task.train_data)
    sizes = {index: _measure(data[index]) for index in scanned}
    if not any(size.longest for size in sizes.values()):
        found = f"examples of type {type(data[scanned[0]]).__name__}, in which no size was found"
        need = "tensors, arrays, texts or lists, in tuples or dictionaries"
        raise InvalidInputError(found, need=need, hint="let the dataset return a dictionary of tensors")
    best: tuple[int, Key, tuple[int, ...]] | None = None
    for key in _KEYS:
        ranked = _ranking(sizes, key)
        indices = tuple(islice(cycle(ranked), micro_batch_size))
        batch_bytes = _measure(collate(task, indices)).num_bytes
        if best is None or batch_bytes > best[0]:
            best = (batch_bytes, key, indices)
    assert best is not None
    return WorstCase(
        indices=best[2],
        key=best[1],
        scanned=count,
        of=length,
        varies=len(set(sizes.values())) > 1,
        batch_bytes=best[0],
    )


def with_examples(task: Task, indices: Sequence[int]) -> Task:
    """The task with these training examples alone, in this order, to trace or probe them."""
    return replace(task, train_data=Subset(cast(Any, task.train_data), indices))


class _Size(NamedTuple):
    """Of an example or batch, by each key."""

    longest: int
    num_bytes: int
    num_items: int


def _ranking(sizes: Mapping[int, _Size], key: Key) -> list[int]:
    """Examples from the largest by the key down, ties by the other keys, then by index."""
    at = _KEYS.index(key)
    return sorted(sizes, key=lambda i: (-sizes[i][at], *(-amount for amount in sizes[i]), i))


def _measure(example: Any) -> _Size:
    """Longest dimension, bytes, and items: arrays, and rows of those that have rows."""
    longest, num_bytes, num_items = 0, 0, 0
    for shape, nbytes in _arrays(example):
        longest = max(longest, *shape, 0)
        num_bytes += nbytes
        num_items += 1 + (shape[0] if len(shape) >= 2 else 0)
    return _Size(longest, num_bytes, num_items)


def _arrays(example: Any) -> list[tuple[tuple[int, ...], int]]:
    """Shape and bytes of every array, text and list of numbers in an example or batch."""
    if isinstance(example, (str, bytes)):
        return [((len(example),), len(example))]
    if isinstance(example, Mapping):
        return [found for value in cast(Any, example).values() for found in _arrays(value)]
    if isinstance(example, (list, tuple)):
        values = cast(Sequence[Any], example)
        if values and all(isinstance(v, (int, float)) for v in values):
            return [((len(values),), 8 * len(values))]
        return [found for value in values for found in _arrays(value)]
    if hasattr(example, "shape") and hasattr(example, "nbytes"):
        return [(tuple(example.shape), int(example.nbytes))]
    leaves = [leaf for leaf in tree_iter(example) if isinstance(leaf, Tensor)]
    return [(tuple(leaf.shape), leaf.nbytes) for leaf in leaves]
