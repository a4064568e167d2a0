from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import tiny
from rightbatch.core.errors import InvalidInputError
from rightbatch.measure.memory.worst_case import with_examples, worst_case_indices
from rightbatch.tasks.task import Task

Examples = list[Any]


def padded(examples: Examples) -> Tensor:
    return pad_sequence(examples, batch_first=True)


def task(examples: Examples, collate: Callable[[Examples], Any]) -> Task:
    return tiny.task(train_data=examples, collate=collate)


def sequences(lengths: list[int]) -> Examples:
    return [torch.zeros(n) for n in lengths]


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), size=st.integers(1, 6))
def test_no_batch_of_padded_sequences_is_larger(lengths: list[int], size: int) -> None:
    found = worst_case_indices(task(sequences(lengths), padded), size)
    assert len(found.indices) == size
    assert (found.batch_bytes, found.key) == (4 * size * max(lengths), "longest")
    assert [lengths[i] for i in found.indices[: len(lengths)]] == sorted(lengths, reverse=True)[:size]
    assert found.varies == (len(set(lengths)) > 1)


def test_packing_pays_for_totals_and_detection_for_items() -> None:
    wide = [(torch.zeros(2, 50), torch.zeros(1, 4)), (torch.zeros(60), torch.zeros(1, 4))]
    crowded = (torch.zeros(2), torch.zeros(9, 4))

    def packed(examples: Examples) -> Tensor:
        return torch.cat([x.reshape(-1) for x, _ in examples])

    def pairs(examples: Examples) -> Tensor:
        return torch.zeros(sum(len(boxes) for _, boxes in examples), 1000)

    assert worst_case_indices(task([*wide, crowded], packed), 1).key == "largest"
    assert worst_case_indices(task([*wide, crowded], packed), 1).indices == (0,)
    assert worst_case_indices(task([*wide, crowded], pairs), 1).key == "most_items"
    assert worst_case_indices(task([*wide, crowded], pairs), 1).indices == (2,)


def test_texts_lists_and_dictionaries_have_lengths_too() -> None:
    examples: Examples = [{"ids": [0] * n, "text": "x"} for n in (3, 9, 5)]
    found = worst_case_indices(task(examples, lambda e: padded([torch.tensor(x["ids"]) for x in e])), 2)
    assert found.indices == (1, 2)
    texts: Examples = ["a", "abc", "ab"]
    assert worst_case_indices(task(texts, "".join), 1).indices == (1,)


def test_a_capped_scan_spreads_over_sorted_data_and_says_what_it_left_out() -> None:
    found = worst_case_indices(task(sequences(list(range(1, 1001))), padded), 2, max_scanned=10)
    assert found.indices == (900, 800)
    assert (found.scanned, found.of) == (10, 1000)
    assert found.caveat == "990 of 1,000 examples were not looked at and may be larger"
    assert not worst_case_indices(task(sequences([1, 2]), padded), 2).caveat


def test_examples_repeat_where_the_batch_is_longer_than_the_data() -> None:
    assert worst_case_indices(task(sequences([1, 2]), padded), 5).indices == (1, 0, 1, 0, 1)


def test_the_chosen_examples_alone_are_left_in_their_order() -> None:
    chosen = with_examples(task(sequences([1, 2, 3]), padded), (2, 0))
    assert chosen.num_train_examples == 2
    assert [len(chosen.train_data[i]) for i in range(2)] == [3, 1]


def test_what_has_no_size_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"type object.*need tensors.*\n  hint: "):
        worst_case_indices(task([object(), object()], padded), 1)


@pytest.mark.parametrize(("size", "most"), [(0, 10), (1, 0)])
def test_counts_below_one_are_refused(size: int, most: int) -> None:
    with pytest.raises(InvalidInputError, match=f"micro_batch_size {size}, max_scanned {most}"):
        worst_case_indices(tiny.task(), size, max_scanned=most)


def test_data_without_examples_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="0 examples"):
        worst_case_indices(replace(tiny.task(), train_data=[]), 1)
