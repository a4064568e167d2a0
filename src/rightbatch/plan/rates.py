"""Learning-rate rules as formulas: what each makes of a rate that was tuned at another batch size.

Notation: ``ratio`` is the new batch over the old; ``noise`` is B_noise in old batches, for which the
planner takes the critical batch size. Every rule is local and assumes a tuned base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rightbatch.core.errors import InvalidInputError


def gain(ratio: float, noise: float) -> float:
    """Progress of an update at the new batch over one at the old: ``ratio`` far below the noise scale.

    AdaScale's gain (Johnson et al. 2020, arXiv:2007.05105) is the ratio of the best rates
    eps_max / (1 + B_noise / B) of McCandlish et al. (2018), Eq. 2.6.

    >>> [round(gain(ratio, noise=10.0), 3) for ratio in (0.5, 1.0, 2.0, 1e9)]
    [0.524, 1.0, 1.833, 11.0]
    """
    return (1 + noise) / (1 + noise / ratio)


@dataclass(frozen=True, slots=True)
class Surge:
    """Best rate of a sign-like optimizer, which falls again above a batch size of its own.

    Li et al. (2024), arXiv:2405.14578, Eq. 2: max_rate / (sqrt(peak/B) + sqrt(B/peak)) * 2.
    """

    max_rate: float
    peak_batch_size: float

    def rate(self, batch: float) -> float:
        """Best rate at a batch size.

        >>> [round(Surge(1e-3, 100.0).rate(b), 6) for b in (25, 100, 400)]
        [0.0008, 0.001, 0.0008]
        """
        root = (self.peak_batch_size / batch) ** 0.5
        return self.max_rate / (0.5 * (root + 1 / root))


def fit_surge(pairs: Sequence[tuple[float, float]]) -> Surge:
    """Fit the surge form to pairs of batch size and best rate found at it, by relative error.

    1 / rate = p / sqrt(B) + q sqrt(B) is linear in p and q, and both must be positive.

    Args:
        pairs: batch sizes and rates, at least two different batch sizes.

    Raises:
        InvalidInputError: too few pairs, one that is not positive, or pairs without such a form.

    >>> fit_surge([(16, 4e-4), (64, 8e-4)]).peak_batch_size > 64
    True
    """
    sizes, rates = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs], float)
    text = ", ".join(f"{size:g}:{rate:g}" for size, rate in pairs)
    both = np.concatenate([sizes, rates])
    if len(set(sizes.tolist())) < 2 or not ((both > 0) & np.isfinite(both)).all():
        need = "two different batch sizes or more, each with a finite rate above 0"
        raise InvalidInputError(f"pairs {text}", need=need, hint="as in 32:1e-3,128:2e-3,512:2e-3")
    design = np.stack([rates / np.sqrt(sizes), rates * np.sqrt(sizes)], axis=1)
    p, q = np.linalg.lstsq(design, np.ones(len(sizes)), rcond=None)[0].tolist()
    if p <= 0 or q <= 0:
        shape = "faster than the square root of" if q <= 0 else "against the square root of"
        found = f"pairs {text}, whose rate moves {shape} the batch all along"
        hint = "add a pair at a larger and one at a smaller batch, or leave the pairs out"
        raise InvalidInputError(found, need="pairs on both sides of a peak's bend", hint=hint)
    return Surge(max_rate=0.5 / (p * q) ** 0.5, peak_batch_size=p / q)
