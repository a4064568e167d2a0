"""How many positives an update sees, and how often it sees none: exact, for windows as they are drawn.

Notation, for one window: T counted positions, N positives among them, k = E[N], p = k / T.
Positives come in clusters, so windows and not positions are the independent draws:
    design effect  Var(N) / (T p (1-p))          Kish (1965), Sec. 5.4
    correlation    (design effect - 1) / (T - 1)  between two positions of one window
    P(none)        P(N = 0)^B, not (1-p)^(B T)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import floor, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.errors import InvalidInputError
from rightbatch.sparse.windows import starts

if TYPE_CHECKING:
    from rightbatch.sparse.windows import RandomWindows


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowLaw:
    """The distribution of the number of positives in a window."""

    probabilities: NDArray[np.float64]
    """P(N = 0), P(N = 1), ...; adds to 1."""
    positions: float
    """T, counted positions of a window on average."""
    class_positives: tuple[float, ...]
    """Positives of classes 1, 2, ... in a window on average."""

    @property
    def mean(self) -> float:
        """Positives in a window on average, k."""
        return float(self.probabilities @ np.arange(len(self.probabilities)))

    @property
    def variance(self) -> float:
        """Of the number of positives in a window."""
        return float(self.probabilities @ (np.arange(len(self.probabilities)) - self.mean) ** 2)

    @property
    def none(self) -> float:
        """Share of windows without a positive."""
        return float(self.probabilities[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSignal:
    """What one update of ``batch_size`` windows sees of the positives."""

    batch_size: int
    expected_positives: float
    positives_sd: float
    """Standard deviation of their number from update to update."""
    probability_none: float
    """That an update sees no positive at all."""
    probability_none_if_independent: float
    """The same if positions were drawn one by one, as (1-p)^(B T) has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingLaw:
    """Windows drawn plainly, and a share of them centred on a positive."""

    plain: WindowLaw
    centred: WindowLaw
    share: float
    """Of centred windows; 0 where none is."""
    stratified: bool
    """Whether every batch holds its share of centred windows within one."""

    @property
    def mixed(self) -> WindowLaw:
        """The law of a window taken from all that are drawn."""
        length = max(len(self.plain.probabilities), len(self.centred.probabilities))
        parts = [(1 - self.share, self.plain), (self.share, self.centred)]
        padded = [w * np.pad(x.probabilities, (0, length - len(x.probabilities))) for w, x in parts]
        classes = zip(self.plain.class_positives, self.centred.class_positives, strict=True)
        return WindowLaw(
            probabilities=np.sum(padded, axis=0),
            positions=sum(w * x.positions for w, x in parts),
            class_positives=tuple((1 - self.share) * a + self.share * b for a, b in classes),
        )

    @property
    def positive_fraction(self) -> float:
        """Share of positives among the counted positions that are drawn."""
        return self.mixed.mean / self.mixed.positions

    @property
    def class_shares(self) -> tuple[float, ...]:
        """Share of every class among the counted positions drawn, the background's first."""
        mixed = self.mixed
        return (
            1 - self.positive_fraction,
            *(rate / mixed.positions for rate in mixed.class_positives),
        )

    @property
    def design_effect(self) -> float:
        """Variance of the number of positives over what independent positions would give."""
        mixed, p = self.mixed, self.positive_fraction
        return mixed.variance / (mixed.positions * p * (1 - p))

    @property
    def correlation(self) -> float | None:
        """Between the labels of two positions of one window; None where windows hold one or fewer."""
        if self.mixed.positions <= 1:
            return None
        return (self.design_effect - 1) / (self.mixed.positions - 1)

    def batch(self, batch_size: int) -> BatchSignal:
        """What an update of ``batch_size`` independent windows sees.

        Raises:
            InvalidInputError: a batch below 1.
        """
        if batch_size < 1:
            hint = "change it"
            raise InvalidInputError(f"batch size {batch_size}", need="at least 1", hint=hint)
        mixed = self.mixed
        variance, none = batch_size * mixed.variance, mixed.none**batch_size
        if self.stratified:
            variance, none = self._stratified(batch_size)
        return BatchSignal(
            batch_size=batch_size,
            expected_positives=batch_size * mixed.mean,
            positives_sd=sqrt(variance),
            probability_none=none,
            probability_none_if_independent=(1 - self.positive_fraction)
            ** (batch_size * mixed.positions),
        )

    def _stratified(self, batch_size: int) -> tuple[float, float]:
        """Variance of the positives and P(none) where the number of centred windows is fixed.

        It is one of two neighbours, the upper one in the share of batches that the average needs.
        """
        fewest = floor(batch_size * self.share)
        upper = batch_size * self.share - fewest
        gap = self.centred.mean - self.plain.mean
        centred = fewest + upper
        variance = centred * self.centred.variance + (batch_size - centred) * self.plain.variance

        def none(k: int) -> float:
            return self.centred.none**k * self.plain.none ** (batch_size - k)

        chance = (1 - upper) * none(fewest) + (upper * none(fewest + 1) if upper else 0.0)
        return variance + upper * (1 - upper) * gap**2, chance


def law_of_windows(windows: RandomWindows) -> SamplingLaw:
    """The exact law of the windows that ``RandomWindows`` draws: every start and shift, weighted.

    A second or so for some millions of positions; nothing is sampled.
    """
    sequences = windows.sequences.labels
    num_classes = 1 + max(int(labels.max()) for labels in sequences)
    plain, centred = _Tally(num_classes), _Tally(num_classes)
    total = windows.sequences.num_positions
    num_positives = sum(int((labels > 0).sum()) for labels in sequences)
    shifts = np.arange(-windows.jitter, windows.jitter + 1) - windows.window // 2
    for labels in sequences:
        low, high = starts(len(labels), windows.window)
        counts = _count(labels, np.arange(low, high + 1), windows.window, num_classes)
        plain.add(counts, np.full(high - low + 1, len(labels) / total / (high - low + 1)))
        where = np.flatnonzero(labels > 0)
        if windows.centred and len(where):
            around = np.clip(where[:, None] + shifts, low, high).reshape(-1) - low
            times = np.bincount(around, minlength=high - low + 1)
            centred.add(counts, times / num_positives / len(shifts))
    law = plain.law()
    return SamplingLaw(
        plain=law,
        centred=centred.law() if windows.centred else law,
        share=windows.centred,
        stratified=windows.stratified,
    )


def law_of_labels(labels: Iterable[Any]) -> SamplingLaw:
    """The law of examples drawn at random from the ones given, each an array of labels.

    Raises:
        InvalidInputError: no example, or no position in them that counts.
    """
    counts: list[int] = []
    positions: list[int] = []
    for one in labels:
        values = np.asarray(one)
        counts.append(int((values > 0).sum()))
        positions.append(int((values >= 0).sum()))
    return law_of_counts(counts, positions)


def law_of_counts(positives: list[int], positions: list[int]) -> SamplingLaw:
    """The law of examples of which these numbers of positives and counted positions were seen.

    Raises:
        InvalidInputError: no example, or no position in them that counts.
    """
    if not sum(positions):
        found = f"0 counted positions in {len(positions)} examples"
        raise InvalidInputError(found, need="at least 1", hint="give examples with labels")
    law = WindowLaw(
        probabilities=np.bincount(positives) / len(positives),
        positions=float(np.mean(positions)),
        class_positives=(float(np.mean(positives)),),
    )
    return SamplingLaw(plain=law, centred=law, share=0.0, stratified=False)


def _count(
    labels: NDArray[Any], first: NDArray[np.int64], window: int, num_classes: int
) -> NDArray[np.int64]:
    """Counted positions, positives, and each of their classes in every window: [1 + classes, n]."""
    rows = [labels >= 0, labels > 0, *(labels == c for c in range(1, num_classes))]
    sums = np.zeros((len(rows), len(labels) + 1), np.int64)
    np.cumsum(rows, axis=1, out=sums[:, 1:])
    return sums[:, np.minimum(first + window, len(labels))] - sums[:, np.maximum(first, 0)]


class _Tally:
    """Adds weighted windows up to a law."""

    def __init__(self, num_classes: int) -> None:
        self._histogram = np.zeros(1)
        self._means = np.zeros(1 + num_classes)

    def add(self, counts: NDArray[np.int64], weights: NDArray[np.float64]) -> None:
        """Add windows with these counts, each by its probability."""
        seen = np.bincount(counts[1], weights)
        length = max(len(seen), len(self._histogram))
        self._histogram = np.pad(self._histogram, (0, length - len(self._histogram)))
        self._histogram[: len(seen)] += seen
        self._means += counts @ weights

    def law(self) -> WindowLaw:
        """The law of all windows added, whose probabilities add to 1."""
        positions, _, *classes = self._means.tolist()
        probabilities = self._histogram / self._histogram.sum()  # 1 but for rounding
        return WindowLaw(
            probabilities=probabilities, positions=positions, class_positives=tuple(classes)
        )
