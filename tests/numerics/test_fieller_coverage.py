"""How often the 90 % interval of the noise scale holds the truth, for samples like ours."""

import numpy as np
import pytest

from rightbatch.fit.intervals import Ratio, fieller_ratio

CASES, GROUPS, MICRO, DIM = 2000, 8, 4, 40


def ratios(n: int, noise_scale: float, seed: int) -> list[Ratio]:
    """Ratios from n samples: signal and noise of each share the same 8 group gradients.

    Gradients are Gaussian with a covariance whose eigenvalues fall as 1/k, and |G|^2 = 1.
    """
    rng = np.random.default_rng(seed)
    eigenvalues = 1 / np.arange(1, DIM + 1)
    eigenvalues *= noise_scale / eigenvalues.sum()
    mean = np.ones(DIM) / np.sqrt(DIM)
    found: list[Ratio] = []
    big = GROUPS * MICRO
    for _ in range(CASES):
        groups = rng.standard_normal((n, GROUPS, DIM)) * np.sqrt(eigenvalues / MICRO) + mean
        small_norm = (groups**2).sum(axis=2).mean(axis=1)
        big_norm = (groups.mean(axis=1) ** 2).sum(axis=1)
        signal = (big * big_norm - MICRO * small_norm) / (big - MICRO)
        noise = (small_norm - big_norm) / (1 / MICRO - 1 / big)
        found.append(fieller_ratio(noise.tolist(), signal.tolist()))
    return found


@pytest.mark.parametrize("n", [6, 12, 24])
def test_the_interval_holds_the_truth_in_about_ninety_per_cent(n: int) -> None:
    truth = 20.0
    found = ratios(n, truth, seed=n)
    covered = np.mean([r.low <= truth and (r.high is None or truth <= r.high) for r in found])
    assert 0.87 <= covered <= 0.93
    assert np.mean([r.high is not None for r in found]) > 0.9


@pytest.mark.parametrize("n", [6, 24])
def test_an_interval_without_an_upper_end_still_begins_below_the_truth(n: int) -> None:
    truth = 2000.0  # 60 times the large batch: |G|^2 is lost
    found = ratios(n, truth, seed=n)
    unbounded = [r for r in found if r.high is None]
    assert len(unbounded) > 0.5 * CASES
    assert np.mean([r.low <= truth for r in unbounded]) >= 0.9
    # And the bound is worth having: seldom below a tenth of the large batch.
    assert np.median([r.low for r in unbounded]) > GROUPS * MICRO / 10
