"""Which batches keep up, against losses of known rise."""

import math

import numpy as np
import pytest

from rightbatch.validate.one_sided import keeps_up

TOLERANCE = math.log(1.05)


def losses(rises: list[float], spread: float, seeds: int, rng: np.random.Generator) -> np.ndarray:
    """A level per seed that branches share, a rise per batch, and noise of each branch."""
    level = rng.standard_normal((seeds, 1))
    return np.exp(level + np.log1p(rises) + spread * rng.standard_normal((seeds, len(rises))))


def test_clear_rises_are_told_from_none() -> None:
    found = keeps_up(
        losses([0, 0, 0.01, 0.2, 0.5], 1e-3, 3, np.random.default_rng(0)),
        tolerance=TOLERANCE,
        level=0.05,
    )
    assert (found.passed, found.worse) == (2, 3)
    assert found.rises[3].value == pytest.approx(math.log(1.2), abs=0.01)


def test_noise_leaves_batches_open_in_between() -> None:
    table = losses([0, 0, 0.04, 0.05, 0.06, 3.0], 0.02, 3, np.random.default_rng(1))
    found = keeps_up(table, tolerance=TOLERANCE, level=0.05)
    assert found.worse is not None
    assert found.passed + 1 < found.worse


def test_a_branch_that_diverged_counts_as_a_rise() -> None:
    table = losses([0, 0, 0, 0], 1e-3, 3, np.random.default_rng(2))
    table[1, 3] = math.inf
    found = keeps_up(table, tolerance=TOLERANCE, level=0.05)
    assert (found.passed, found.worse) == (2, 3)


def test_a_batch_that_fails_between_two_that_keep_up_ends_neither_chain_wrongly() -> None:
    table = losses([0, 0.5, 0], 1e-3, 3, np.random.default_rng(3))
    found = keeps_up(table, tolerance=TOLERANCE, level=0.05)
    assert (found.passed, found.worse) == (0, None)


@pytest.mark.parametrize("seeds", [3, 5])
def test_either_end_is_wrong_as_rarely_as_it_says(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    repeats, passed_wrongly, failed_wrongly = 1000, 0, 0
    for _ in range(repeats):  # every rise lies on the tolerance: the hardest case for both ends
        found = keeps_up(losses([0, *[0.05] * 5], 0.03, seeds, rng), tolerance=TOLERANCE, level=0.05)
        passed_wrongly += found.passed > 0
        failed_wrongly += found.worse is not None
    assert passed_wrongly / repeats <= 0.065  # 5 % and two standard errors
    assert failed_wrongly / repeats <= 0.065
