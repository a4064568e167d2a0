from collections.abc import Callable
from itertools import cycle, islice, permutations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import tiny
from rightbatch.core.errors import InvalidTaskError
from rightbatch.core.samples import WorstCase
from rightbatch.measure.memory.worst_case import find_worst_case, with_examples
from rightbatch.tasks.build import collate
from rightbatch.tasks.task import Task

Examples = list[Any]


def padded(examples: Examples) -> Tensor:
    return pad_sequence(examples, batch_first=True)


def padded_pairs(examples: Examples) -> tuple[Tensor, Tensor]:
    return padded([x for x, _ in examples]), padded([y for _, y in examples])


def task(examples: Examples, collate: Callable[[Examples], Any]) -> Task:
    return tiny.task(train_data=examples, collate=collate)


def sequences(lengths: list[int]) -> Examples:
    return [torch.zeros(n) for n in lengths]


def batch_bytes(task: Task, indices: tuple[int, ...]) -> int:
    batch = collate(task, indices)
    return sum(x.nbytes for x in (batch if isinstance(batch, tuple) else (batch,)))


def worst_bytes(task: Task, found: WorstCase, size: int) -> int:
    """Of the batch that repeats what was found; the first examples where none differ."""
    return batch_bytes(task, tuple(islice(cycle(found.indices or (0,)), size)))


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), size=st.integers(2, 6))
def test_no_batch_of_padded_sequences_is_larger(lengths: list[int], size: int) -> None:
    the_task = task(sequences(lengths), padded)
    found = find_worst_case(the_task)
    assert worst_bytes(the_task, found, size) == 4 * size * max(lengths)
    assert (found.key, found.scanned) == ("longest" if len(set(lengths)) > 1 else None, len(lengths))


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=6))
def test_no_batch_of_pairs_is_larger_when_their_lengths_are_unrelated(
    lengths: list[tuple[int, int]],
) -> None:
    the_task = task([(torch.zeros(a), torch.zeros(b)) for a, b in lengths], padded_pairs)
    largest = max(batch_bytes(the_task, pair) for pair in permutations(range(len(lengths)), 2))
    assert worst_bytes(the_task, find_worst_case(the_task), 2) >= largest


def test_the_longest_of_two_fields_may_lie_in_two_examples() -> None:
    lengths = [(50, 1), (1, 50), (40, 2)]
    the_task = task([(torch.zeros(a), torch.zeros(b)) for a, b in lengths], padded_pairs)
    found = find_worst_case(the_task)
    assert (found.key, sorted(found.indices)) == ("fields", [0, 1])


def test_packing_pays_for_totals_and_detection_for_items() -> None:
    wide = [(torch.zeros(2, 50), torch.zeros(1, 4)), (torch.zeros(60), torch.zeros(1, 4))]
    crowded = (torch.zeros(2), torch.zeros(9, 4))

    def packed(examples: Examples) -> Tensor:
        return torch.cat([x.reshape(-1) for x, _ in examples])

    def pairs(examples: Examples) -> Tensor:
        return torch.zeros(sum(len(boxes) for _, boxes in examples), 1000)

    for join, key, index in ((packed, "largest", 0), (pairs, "most_items", 2)):
        found = find_worst_case(task([*wide, crowded], join))
        assert (found.key, found.indices) == (key, (index,))


def test_texts_lists_and_dictionaries_have_lengths_too() -> None:
    examples: Examples = [{"ids": [0] * n, "text": "x"} for n in (3, 9, 5)]
    ids = task(examples, lambda e: padded([torch.tensor(x["ids"]) for x in e]))
    assert find_worst_case(ids).indices == (1,)
    texts: Examples = ["a", "abc", "ab"]
    assert find_worst_case(task(texts, "".join)).indices == (1,)


def test_a_scan_that_runs_out_of_time_has_seen_both_ends_and_says_what_it_left_out() -> None:
    seconds = iter(range(100))  # each example takes one
    lengths = list(range(1, 1001))
    options = {"look_seconds": 1.5, "scan_seconds": 9.5}
    found = find_worst_case(
        task(sequences(lengths), padded), **options, clock=lambda: float(next(seconds))
    )
    assert (found.indices, found.scanned, found.of) == ((999,), 10, 1000)
    assert found.caveats == (
        "examples differ in size: every one is taken to be as large as the largest seen",
        "990 of 1,000 examples were not looked at and may be larger",
    )


def test_data_of_one_size_is_looked_at_for_a_shorter_time() -> None:
    seconds = iter(range(100))
    found = find_worst_case(
        task(sequences([5] * 50), padded), look_seconds=3.5, clock=lambda: float(next(seconds))
    )
    assert (found.key, found.indices, found.scanned) == (None, (), 4)
    assert find_worst_case(task(sequences([5, 5]), padded)).caveats == ()


def test_the_chosen_examples_alone_are_left_in_their_order() -> None:
    the_task = task(sequences([1, 2, 3]), padded)
    chosen = with_examples(the_task, (2, 0))
    assert chosen.num_train_examples == 2
    assert [len(chosen.train_data[i]) for i in range(2)] == [3, 1]
    assert with_examples(the_task, ()) is the_task


def test_examples_whose_size_cannot_be_seen_are_a_caveat() -> None:
    found = find_worst_case(task([object(), object()], list))
    assert (found.scanned, found.indices) == (0, ())
    assert "show no size" in found.caveats[0]


def test_an_example_that_cannot_be_read_is_named() -> None:
    class Broken(list[Tensor]):
        def __getitem__(self, index: Any) -> Any:
            if index == 1:
                raise OSError("no such image")
            return super().__getitem__(index)

    broken = tiny.task(train_data=Broken(sequences([1, 2, 3])), collate=padded)
    with pytest.raises(InvalidTaskError, match=r"train_data\[1\] raised OSError: no such image"):
        find_worst_case(broken)


def test_examples_that_do_not_join_are_named() -> None:
    with pytest.raises(InvalidTaskError, match=r"joining 4 times train_data\[1\] raised TypeError"):
        find_worst_case(task(sequences([1, 2]), lambda examples: examples + 1))
