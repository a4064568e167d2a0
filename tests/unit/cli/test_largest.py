"""What ends the largest micro-batch, in words and as a code."""

import pytest

from rightbatch.cli.largest import Room


def room(most_examples: int, last_size: int = 2**20) -> Room:
    return Room(limit_bytes=2**30, headroom=0.1, most_examples=most_examples, last_size=last_size)


@pytest.mark.parametrize(
    ("by_memory", "most_examples", "last_size", "expected"),
    [
        (70, 100, 1000, (70, "memory")),
        (100, 100, 1000, (100, "data")),
        (500, 100, 1000, (100, "data")),
        (1000, 5000, 1000, (1000, "law")),
    ],
)
def test_memory_data_or_the_law_ends_the_largest_size(
    by_memory: int, most_examples: int, last_size: int, expected: tuple[int, str]
) -> None:
    assert room(most_examples, last_size).cap(by_memory) == expected


def test_the_sentence_says_which_of_them() -> None:
    space = room(100, 1000)
    fits = "The largest micro-batch that fits 1 GiB with 10% of it left free is 70"
    assert space.sentence(70, 70, "memory") == fits
    data = space.sentence(100, 500, "data")
    assert data.startswith("The largest micro-batch is 100, where the training data ends; memory alone")
    assert data.endswith("would hold 500")
    assert space.sentence(100, 1000, "data").endswith("would hold 1,000 or more")
    assert "no larger one is predicted" in room(5000, 1000).sentence(1000, 1000, "law")
