"""Metrics that rare positives do not drown: precision over recall, the top k, calibration.

Accuracy is none of them: with one positive in a thousand, answering "no" everywhere scores 99.9 %.
Average precision of a random ranking is the share of positives, so compare values only where that
share is the same: on whole sequences, never on windows that were picked for their positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rightbatch.core.errors import InvalidInputError

Floats = NDArray[np.floating[Any]]
Values = NDArray[Any] | Tensor | Sequence[float]
"""Numbers or truth values; tensors on any device, with or without a gradient."""


def average_precision(scores: Values, positives: Values) -> float:
    """Sum over thresholds of (R_n - R_{n-1}) P_n; equal scores share one threshold.

    Args:
        scores: [N], larger for positives; any monotone scale.
        positives: [N].

    >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    0.8333333333333333

    Raises:
        InvalidInputError: no numbers, other lengths, a nan, labels beyond 0 and 1, no positive, or
            nothing else.
    """
    scores, positives = _check(scores, positives)
    order = np.argsort(scores)[::-1]
    ranked, hits = scores[order], np.cumsum(positives[order])
    ends = ranked[1:] != ranked[:-1]  # a difference would be nan between equal infinities
    last = np.append(np.flatnonzero(ends), len(ranked) - 1)  # of each run of equal scores
    found = hits[last]
    precision = found / (last + 1)
    return float(np.diff(found, prepend=0) @ precision / found[-1])


def top_k_precision(scores: Values, positives: Values) -> float:
    """Share of true positives among the k highest scores, k being how many there are.

    Precision and recall are equal there. The metric of Jaganathan et al. (2019) for splice sites.
    Scores equal to the k-th count in proportion.

    >>> top_k_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    0.5

    Raises:
        InvalidInputError: as for ``average_precision``.
    """
    scores, positives = _check(scores, positives)
    k = int(positives.sum())
    threshold = np.partition(scores, -k)[-k]
    above, level = scores > threshold, scores == threshold
    wanted = (k - int(above.sum())) / int(level.sum())
    return float((positives[above].sum() + wanted * positives[level].sum()) / k)


class Calibration(NamedTuple):
    """Predicted against observed frequency of positives, in bins of equally many predictions."""

    predicted: Floats
    """Mean probability of each bin, rising."""
    observed: Floats
    """Share of positives in each bin."""
    counts: NDArray[np.int64]
    """Predictions in each bin."""

    @property
    def error(self) -> float:
        """Expected calibration error: mean |predicted - observed| (Naeini et al. 2015)."""
        return float(self.counts @ np.abs(self.predicted - self.observed) / self.counts.sum())

    @property
    def ratio(self) -> float:
        """Mean probability over the share of positives; 1 where the prior is right."""
        return float((self.counts @ self.predicted) / (self.counts @ self.observed))


def calibration(probabilities: Values, positives: Values, num_bins: int = 20) -> Calibration:
    """Compare probabilities with frequencies, finest where the positives are.

    Equal widths would put nearly every prediction for rare positives into the first bin, and equal
    counts nearly every positive into the last. So half the bins hold equally many predictions,
    and the last of them is cut again into bins with equally many positives.

    Args:
        probabilities: [N], of being positive.
        positives: [N].
        num_bins: at least 2.

    Raises:
        InvalidInputError: as for ``average_precision``, a probability outside 0 to 1, or 1 bin.
    """
    probabilities, positives = _check(probabilities, positives)
    if num_bins < 2 or probabilities.min() < 0 or probabilities.max() > 1:
        found = f"{num_bins} bins, values {probabilities.min():g} to {probabilities.max():g}"
        need = "2 bins or more, and probabilities"
        raise InvalidInputError(found, need=need, hint="apply sigmoid or softmax to logits first")
    order = np.argsort(probabilities, kind="stable")
    p, y = probabilities[order].astype(np.float64), positives[order].astype(np.float64)
    half = min(num_bins // 2, len(p))  # more would leave the last one empty
    edges = [round(len(p) * k / half) for k in range(half + 1)]
    top = np.cumsum(y[edges[-2] :])
    wanted = top[-1] * np.arange(1, num_bins - half + 1) / (num_bins - half + 1)
    inner = edges[-2] + np.searchsorted(top, wanted)
    cuts = np.unique([*edges, *inner.tolist()])
    counts = np.diff(cuts)
    sums = [np.add.reduceat(values, cuts[:-1]) for values in (p, y)]
    return Calibration(predicted=sums[0] / counts, observed=sums[1] / counts, counts=counts)


def _check(scores: Values, positives: Values) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Both as arrays.

    Raises:
        InvalidInputError: as the metrics say.
    """
    scores, positives = _array(scores, "scores"), _array(positives, "positives")
    if scores.shape != positives.shape or scores.ndim != 1:
        found = f"scores {list(scores.shape)} and positives {list(positives.shape)}"
        raise InvalidInputError(found, need="two arrays of one length", hint="flatten both")
    if positives.dtype != np.bool_ and not np.isin(positives, (0, 1)).all():
        found = f"positives with the values {np.unique(positives)[:4]}"
        raise InvalidInputError(found, need="False and True", hint="one class at a time: labels == 1")
    if np.isnan(scores).any():
        hint = "look for log(0) or a diverged run"
        raise InvalidInputError(f"{np.isnan(scores).sum()} scores that are nan", "numbers", hint)
    count = int(positives.sum())
    if count in {0, len(positives)}:
        found = f"{count} positives among {len(positives)}"
        raise InvalidInputError(found, need="some of both", hint="evaluate on more data")
    return scores, positives.astype(np.bool_)


def _array(values: Values, name: str) -> NDArray[Any]:
    """The numbers of an array, a tensor or a list.

    Raises:
        InvalidInputError: they are none.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.double().numpy() if values.is_floating_point() else values.numpy()
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        found = f"{name} of type {type(values).__name__} that are no numbers"
        hint = "pass an array or a tensor of them"
        raise InvalidInputError(found, need="one number for each", hint=hint)
    return array
