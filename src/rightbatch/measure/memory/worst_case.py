"""The costliest batch of variable-length data, found by looking at the sizes of examples.

Padding makes every example as long as the longest, packing adds lengths up, and detection pays per
item: which examples cost most depends on ``collate``. So the first by several keys are joined as the
task's loader would, and the largest batch counts. A batch repeats them: where ``collate`` pads, it
has the shape of the worst batch there is; where it packs, it is an upper bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, count, cycle, islice
from math import gcd
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor
from torch.utils._pytree import tree_iter
from torch.utils.data import Subset

from rightbatch.core.errors import InvalidTaskError, RightBatchError
from rightbatch.core.samples import WorstCase
from rightbatch.tasks.build import collate
from rightbatch.tasks.task import Task

_Key = Literal["longest", "largest", "most_items"]
_KEYS: tuple[_Key, ...] = ("longest", "largest", "most_items")
# Time to look for a second size, and to look on where there is one.
_LOOK_SECONDS, _SCAN_SECONDS = 0.5, 2.0
# The smallest traced batch holds two examples, and it has to hold what larger ones repeat.
_MOST_FIELDS = 2
_JOINED = 4  # examples in the batches that are compared


def find_worst_case(
    task: Task,
    *,
    look_seconds: float = _LOOK_SECONDS,
    scan_seconds: float = _SCAN_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> WorstCase:
    """Find the training examples whose batch is the largest.

    Reads each scanned example once, in an order whose every beginning is spread over the data.

    Args:
        task: gives data and ``collate``.
        look_seconds: look at examples for so long while all have one size.
        scan_seconds: look for so long once two sizes were seen.
        clock: in seconds.

    Raises:
        InvalidTaskError: reading or joining examples fails.
    """
    length = task.num_train_examples
    first: _Size | None = None
    best: dict[str, tuple[tuple[int, ...], int]] = {}
    varies, scanned, start = False, 0, clock()
    for index in _spread(length):
        size = _measure(_read(task, index))
        if not size.most_items:
            return WorstCase(scanned=0, of=length)
        first = first or size
        varies = varies or size != first
        scanned += 1
        for name, rank in _ranks(size, num_fields=len(first.fields)):
            if name not in best or (rank, -index) > (best[name][0], -best[name][1]):
                best[name] = (rank, index)
        if clock() - start > (scan_seconds if varies else look_seconds):
            break
    if not varies:
        return WorstCase(scanned=scanned, of=length)
    singles = {key: best[key][1] for key in _KEYS}
    held = [found for name, found in best.items() if name not in _KEYS]
    held.sort(key=lambda found: -found[0][-1])  # of the largest examples first
    fields = tuple(dict.fromkeys(index for _, index in held))[:_MOST_FIELDS]
    candidates = {key: (index,) for key, index in singles.items()} | {"fields": fields}
    costs = {key: _batch_bytes(task, indices) for key, indices in candidates.items() if indices}
    key = max(costs, key=lambda name: costs[name])  # the first of equals
    return WorstCase(indices=candidates[key], key=cast(Any, key), scanned=scanned, of=length)


def with_examples(task: Task, indices: Sequence[int]) -> Task:
    """The task with these training examples alone, to trace or probe them; itself without any."""
    return replace(task, train_data=Subset(cast(Any, task.train_data), indices)) if indices else task


class _Size(NamedTuple):
    """Of an example or batch, by each key."""

    longest: int
    largest: int
    most_items: int
    fields: tuple[int, ...]
    """Every dimension of every array."""


def _spread(length: int) -> Iterator[int]:
    """Every index, the ends first; any beginning of the rest lies evenly in sorted data."""
    step = next(s for s in count(max(1, round(0.618 * length))) if gcd(s, length) == 1)
    walk = (k * step % length for k in range(length))
    return chain(range(0, length, max(1, length - 1)), (i for i in walk if 0 < i < length - 1))


def _ranks(size: _Size, num_fields: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """By what an example may be the costliest, and its amounts, ties decided by the other keys."""
    for key in _KEYS:
        yield key, (getattr(size, key), *size[:3])
    if len(size.fields) == num_fields:
        for number, amount in enumerate(size.fields):
            yield f"field {number}", (amount, size.largest)


def _read(task: Task, index: int) -> Any:
    """One training example.

    Raises:
        InvalidTaskError: the dataset fails.
        RightBatchError: the dataset raised one.
    """
    try:
        return cast(Any, task.train_data)[index]
    except RightBatchError:
        raise
    except Exception as error:
        found = f"train_data[{index}] raised {type(error).__name__}: {error}"
        hint = "read every example once in Python"
        raise InvalidTaskError(found, need="examples that can be read", hint=hint) from error


def _batch_bytes(task: Task, indices: Sequence[int]) -> int:
    """Bytes of a batch that repeats these examples.

    Raises:
        InvalidTaskError: ``collate`` fails.
        RightBatchError: it raised one.
    """
    try:
        return _measure(collate(task, islice(cycle(indices), _JOINED))).largest
    except RightBatchError:
        raise
    except Exception as error:
        found = (
            f"joining {_JOINED} times train_data[{indices[0]}] raised {type(error).__name__}: {error}"
        )
        hint = "join them with the task's collate in Python"
        raise InvalidTaskError(found, need="examples that join into a batch", hint=hint) from error


def _measure(example: Any) -> _Size:
    """Longest dimension, bytes, items (arrays, and rows of those that have rows) and dimensions."""
    longest, num_bytes, num_items = 0, 0, 0
    fields: list[int] = []
    for shape, nbytes in _arrays(example):
        longest = max(longest, *shape, 0)
        num_bytes += nbytes
        num_items += 1 + (shape[0] if len(shape) >= 2 else 0)
        fields += shape
    return _Size(longest, num_bytes, num_items, tuple(fields))


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
