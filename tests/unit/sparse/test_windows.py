"""Windows cut from ragged sequences: where they lie, what they hold, and what is refused."""

import pickle
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch

from rightbatch.core.errors import InvalidInputError
from rightbatch.sparse.losses import IGNORE_INDEX
from rightbatch.sparse.windows import LabelledSequences, RandomWindows, TiledWindows

LENGTHS = (300, 40, 1000)


def ragged(padding: int | None = 4, seed: int = 0) -> LabelledSequences:
    """Three sequences with a few positives each, of classes 1 and 2."""
    g = np.random.default_rng(seed)
    inputs = tuple(g.integers(0, 4, n).astype(np.uint8) for n in LENGTHS)
    labels = tuple(np.zeros(n, np.uint8) for n in LENGTHS)
    for one in labels:
        one[g.integers(0, len(one), 1 + len(one) // 100)] = g.integers(1, 3)
    return LabelledSequences(inputs=inputs, labels=labels, padding=padding)


def test_a_window_holds_the_sequence_where_it_lies_and_padding_elsewhere() -> None:
    sequences = ragged()
    data = RandomWindows(sequences, window=101, context=7, num_windows=400, centred=0.5, jitter=20)
    for index in range(len(data)):
        place, (inputs, labels) = data.place(index), data[index]
        assert inputs.shape == (115,)
        assert labels.shape == (101,)
        length = LENGTHS[place.sequence]
        for offset in (0, 7, 57, 108, 114):
            at = place.start - 7 + offset
            expected = int(sequences.inputs[place.sequence][at]) if 0 <= at < length else 4
            assert int(inputs[offset]) == expected
        for offset in (0, 50, 100):
            at = place.start + offset
            inside = 0 <= at < length
            expected = int(sequences.labels[place.sequence][at]) if inside else IGNORE_INDEX
            assert int(labels[offset]) == expected
        assert (place.start >= 0 and place.start + 101 <= length) or length < 101
        assert not place.centred or bool((labels > 0).any())


def test_every_start_of_a_plain_window_is_drawn_equally_often() -> None:
    labels = np.zeros(12, np.int64)
    labels[3] = 1
    one = LabelledSequences(inputs=(np.arange(12),), labels=(labels,))
    data = RandomWindows(one, window=5, num_windows=8000)
    counts = np.bincount([data.place(i).start for i in range(8000)], minlength=8)
    assert len(counts) == 8
    assert abs(counts - 1000).max() < 4 * np.sqrt(1000)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.3])
def test_stratified_windows_give_every_stretch_its_share_within_one(share: float) -> None:
    data = RandomWindows(ragged(), window=21, num_windows=200, centred=share)
    centred = [data.place(i).centred for i in range(200)]
    for size in (4, 10):
        for first in range(200 - size):
            assert abs(sum(centred[first : first + size]) - size * share) < 1
    by_chance = RandomWindows(ragged(), window=21, num_windows=200, centred=share, stratified=False)
    drawn = [by_chance.place(i).centred for i in range(200)]
    assert drawn != centred
    assert sum(drawn) == pytest.approx(200 * share, abs=30)


def test_a_window_depends_on_the_seed_and_its_number_alone() -> None:
    data = RandomWindows(ragged(), window=21, num_windows=50, centred=0.5, jitter=10, seed=3)
    backwards = [data.place(i) for i in reversed(range(50))][::-1]
    copy = pickle.loads(pickle.dumps(data))
    assert backwards == [copy.place(i) for i in range(50)]
    longer = RandomWindows(ragged(), window=21, num_windows=99, centred=0.5, jitter=10, seed=3)
    assert [longer.place(i) for i in range(50)] == backwards
    other = RandomWindows(ragged(), window=21, num_windows=50, centred=0.5, jitter=10, seed=4)
    assert [other.place(i) for i in range(50)] != backwards


def test_tiles_show_every_position_once() -> None:
    sequences = ragged()
    data = TiledWindows(sequences, window=64, context=3)
    labels = torch.cat([data[i][1] for i in range(len(data))])
    kept = labels[labels != IGNORE_INDEX].numpy()
    np.testing.assert_array_equal(kept, np.concatenate(sequences.labels))


def test_channels_and_memory_maps_are_read_without_a_copy(tmp_path: pytest.TempPathFactory) -> None:
    path = f"{tmp_path}/signal.npy"
    np.save(path, np.random.default_rng(0).normal(size=(2_000_000, 2)).astype(np.float32))
    signal = np.load(path, mmap_mode="r")
    labels = np.zeros(2_000_000, np.uint8)
    labels[::1000] = 1
    tracemalloc.start()
    data = RandomWindows(
        LabelledSequences(inputs=(signal,), labels=(labels,)), window=501, num_windows=99, centred=0.5
    )
    inputs, _ = data[1]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert inputs.shape == (501, 2)
    assert inputs.dtype == torch.float32
    assert peak_bytes < 10e6  # the signal alone is 16 MB


def test_an_index_beyond_the_end_ends_iteration() -> None:
    data = RandomWindows(ragged(), window=21, num_windows=3)
    assert len(list(data)) == 3  # type: ignore[call-overload]
    with pytest.raises(IndexError, match="window 3 of 3"):
        data[3]


def sequences(inputs: list[object], labels: list[object], padding: int | None = None) -> object:
    return LabelledSequences(
        inputs=tuple(np.array(x) for x in inputs),
        labels=tuple(np.array(x) for x in labels),
        padding=padding,
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sequences([], []), r"0 sequences"),
        (lambda: sequences([[1, 2]], [[0]]), r"length 2 with 1 labels"),
        (lambda: sequences([[1, 2]], [[0, 0]]), r"0 positives, 2 other positions"),
        (lambda: sequences([[1, 2]], [[1, 1]]), r"2 positives, 0 other positions"),
        (lambda: sequences([[1, 2]], [[1, -100]]), r"1 positives"),
        (lambda: sequences([[4, 4], [1, 2]], [[0, 0], [0, 1]], 4), r"sequence 0 holds nothing but 4"),
        (lambda: sequences([[1, 2]], [[0, np.nan]]), r"labels of sequence 0: float64.*without nan"),
        (lambda: sequences([[1, 2]], [[0, -1]]), r"labels of sequence 0: int64, \[-1  0\]"),
        (
            lambda: RandomWindows(ragged(None), window=41, num_windows=1),
            r"of 41 .* a sequence of length 40",
        ),
        (lambda: RandomWindows(ragged(None), window=9, num_windows=1, context=1), r"context 1"),
        (lambda: TiledWindows(ragged(None), window=9), r"windows of 9 .* a sequence of length 300"),
        (lambda: RandomWindows(ragged(), window=0, num_windows=1), r"window 0"),
        (lambda: RandomWindows(ragged(), window=9, num_windows=0), r"num_windows 0"),
        (lambda: RandomWindows(ragged(), window=9, num_windows=1, centred=1.5), r"centred = 1\.5"),
        (lambda: RandomWindows(ragged(), window=9, num_windows=1, jitter=5), r"keeps the positive in"),
        (lambda: TiledWindows(ragged(), window=9, context=-1), r"context -1"),
    ],
)
def test_what_cannot_be_sampled_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"(?s){message}"):
        call()
