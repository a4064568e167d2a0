"""What an update sees of the positives, predicted exactly and held against drawn batches."""

import numpy as np
import pytest

from rightbatch.core.errors import InvalidInputError
from rightbatch.sparse.statistics import law_of_counts, law_of_labels, law_of_windows
from rightbatch.sparse.windows import LabelledSequences, RandomWindows, TiledWindows

NUM_BATCHES = 10_000


def genes() -> LabelledSequences:
    """Ragged sequences with clustered positives: some hold many, some none."""
    g = np.random.default_rng(0)
    labels = []
    for length in (80, 300, 700, 150, 2000):
        one = np.zeros(length, np.int64)
        for centre in g.integers(0, length, length // 200):
            one[np.clip(centre + g.integers(-15, 16, 4), 0, length - 1)] = g.integers(1, 3)
        one[g.random(length) < 0.1] = -100
        labels.append(one)
    inputs = tuple(np.zeros(len(one), np.uint8) for one in labels)
    return LabelledSequences(inputs=inputs, labels=tuple(labels), padding=4)


@pytest.mark.parametrize(
    ("centred", "stratified", "batch_size"),
    [(0.0, True, 2), (0.3, True, 2), (0.3, False, 1)],
)
def test_predictions_hold_against_ten_thousand_batches(
    centred: float, stratified: bool, batch_size: int
) -> None:
    total = NUM_BATCHES * batch_size
    windows = RandomWindows(
        genes(),
        window=120,
        num_windows=total,
        centred=centred,
        jitter=40,
        stratified=stratified,
        seed=5,
    )
    law = law_of_windows(windows)
    predicted = law.batch(batch_size)
    positives, counted = np.zeros(total), 0
    for index in range(total):
        place = windows.place(index)
        labels = windows.sequences.labels[place.sequence]
        seen = labels[max(place.start, 0) : place.start + 120]
        positives[index] = (seen > 0).sum()
        counted += int((seen >= 0).sum())
    batches = positives.reshape(NUM_BATCHES, batch_size).sum(axis=1)
    error = batches.std() / np.sqrt(NUM_BATCHES)
    assert abs(batches.mean() - predicted.expected_positives) < 2 * error
    none = predicted.probability_none
    assert abs((batches == 0).mean() - none) <= 2 * np.sqrt(none * (1 - none) / NUM_BATCHES)
    assert batches.std() == pytest.approx(predicted.positives_sd, rel=0.03)
    assert positives.sum() / counted == pytest.approx(law.positive_fraction, rel=0.03)
    assert sum(law.class_shares) == pytest.approx(1)
    assert law.class_shares[0] == pytest.approx(1 - law.positive_fraction)


def test_clusters_make_empty_updates_far_more_likely_than_independent_positions_would() -> None:
    law = law_of_windows(RandomWindows(genes(), window=120, num_windows=1))
    signal = law.batch(2)
    assert law.design_effect > 2
    assert law.correlation == pytest.approx((law.design_effect - 1) / (law.mixed.positions - 1))
    assert signal.probability_none > 3 * signal.probability_none_if_independent


def test_independent_positions_have_a_design_effect_of_one() -> None:
    g = np.random.default_rng(0)
    law = law_of_labels((g.random((4000, 50)) < 0.02).astype(int))
    assert law.design_effect == pytest.approx(1, abs=0.07)
    signal = law.batch(3)
    assert signal.probability_none == pytest.approx(signal.probability_none_if_independent, rel=0.1)


def test_windows_of_one_position_have_no_correlation_within() -> None:
    law = law_of_windows(RandomWindows(genes(), window=1, num_windows=1))
    assert law.correlation is None


def test_the_law_of_examples_is_that_of_their_counts() -> None:
    tiles = TiledWindows(genes(), window=120)
    law = law_of_labels(tiles[i][1] for i in range(len(tiles)))
    counts = [int((tiles[i][1] > 0).sum()) for i in range(len(tiles))]
    assert law.plain.mean == pytest.approx(np.mean(counts))
    assert law.plain.variance == pytest.approx(np.var(counts))
    assert law.plain.none == pytest.approx(np.mean(np.array(counts) == 0))


def test_a_law_needs_something_to_count_and_a_batch_to_speak_of() -> None:
    with pytest.raises(InvalidInputError, match="0 counted positions in 0 examples"):
        law_of_counts([], [])
    with pytest.raises(InvalidInputError, match="batch size 0; need at least 1"):
        law_of_counts([1], [5]).batch(0)
