"""From noise scales to critical batch sizes: the factor that sweeps of small networks found.

The derivation (McCandlish et al. 2018, arXiv:1812.06162, Sec. 2.3) makes the critical batch size the
noise scale averaged along the run, up to a factor that depends on the optimizer and the task. Each
sweep trained at many batch sizes and rates to a target, and its critical batch size is that of
``S = S_min (1 + B_crit / B)`` through the best rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rightbatch.core.facts import OptimizerFamily


class Sweep(NamedTuple):
    """What one sweep found, in examples."""

    name: str
    """Of the task; of built-in ones, as ``rightbatch tasks`` lists it."""
    family: OptimizerFamily
    critical_batch_size: float
    noise_scale: float
    preconditioned_noise_scale: float | None = None


# The first nine took the noise scale inside the runs, the others in a pilot of today's recipe
# before them (benchmarks/noise/calibration.py, benchmarks/validate/sweep_result.py).
SWEEPS = (
    Sweep("digits, loss 0.20", "sgd", 48, 41.7),
    Sweep("digits, loss 0.05", "sgd", 136, 132.5),
    Sweep("Fashion-MNIST, loss 0.45", "sgd", 144, 125.6),
    Sweep("Fashion-MNIST, CNN, loss 0.60", "sgd", 74, 52.5),
    Sweep("digits, loss 0.20", "adam", 112, 71.4, 114.6),
    Sweep("digits, loss 0.05", "adam", 271, 181.0, 289.0),
    Sweep("Fashion-MNIST, loss 0.45", "adam", 740, 175.2, 262.1),
    Sweep("Fashion-MNIST, CNN, loss 0.60", "adam", 193, 90.0, 103.9),
    Sweep("dilated sequence net", "adam", 15, 3.9, 5.7),
    Sweep("digits-sgd", "sgd", 132, 36.5),
    Sweep("digits-cnn", "sgd", 227, 181.0),
    Sweep("fashion-mnist", "sgd", 280, 125.4),
    Sweep("digits", "adam", 142, 109.2, 120.9),
    Sweep("fashion-vit", "adam", 600, 167.2, 182.6),
    Sweep("fashion-mnist-adam", "adam", 172, 200.4, 232.9),
    Sweep("shakespeare", "adam", 49, 50.7, 57.0),
)
UNKNOWN_FAMILY = (1.5, 0.7)
"""Assumed for other optimizers: wide enough to hold both families."""


class Calibration(NamedTuple):
    """Critical batch size over noise scale."""

    factor: float
    """Geometric mean over the sweeps."""
    log_sd: float
    """Standard deviation of the logarithm for a task that no sweep has seen: ``s sqrt(1 + 1/n)``."""


def calibrate(
    family: OptimizerFamily, *, preconditioned: bool, sweeps: Sequence[Sweep] = SWEEPS
) -> Calibration:
    """The factor for an optimizer's family and kind of noise scale, and how far tasks differ in it.

    >>> calibrate("sgd", preconditioned=False)
    Calibration(factor=1.53, log_sd=0.49)
    """
    pairs = [
        (s.critical_batch_size, s.preconditioned_noise_scale if preconditioned else s.noise_scale)
        for s in sweeps
        if s.family == family
    ]
    if len(pairs) < 2:
        return Calibration(*UNKNOWN_FAMILY)
    logs = np.log([critical / scale for critical, scale in pairs if scale is not None])
    spread = float(logs.std(ddof=1)) * np.sqrt(1 + 1 / len(logs))
    return Calibration(round(float(np.exp(logs.mean())), 2), round(float(spread), 2))
