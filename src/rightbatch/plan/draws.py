"""Draws of everything that the models leave uncertain, each source by itself.

A draw is one world in which every model is known: its critical batch size, step times, loading and
bandwidth. ``fixing`` one source at its centre in all draws shows what knowing it would be worth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rightbatch.core.plan import Doubtful
from rightbatch.fit.intervals import NORMAL_QUANTILE, median_standard_error
from rightbatch.fit.loader_model import LoaderModel
from rightbatch.fit.mode_speed import ModeSpeed
from rightbatch.fit.roofline import Roofline, draw_efficiency
from rightbatch.fit.speed_model import interpolation_weights
from rightbatch.fit.steps_model import StepsModel
from rightbatch.plan.candidates import Candidates, Floats, Mode

NUM_DRAWS = 1000
SEED = 0  # fixed: the same measurements always give the same plan
# Between devices where nothing was said: from PCI Express to a fast interconnect.
ASSUMED_BANDWIDTH = 10e9
ASSUMED_BANDWIDTH_FACTOR = 4.0  # the 90 % interval reaches this far to both sides
ASSUMED_HOST_FACTOR = 2.0  # of a machine that is not here, in loading: the interval reaches so far
GRADIENT_BYTES = 4  # per trainable parameter: gradients are fp32 in every mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What connects the devices: a ring all-reduce moves 2 (R - 1) / R of the gradients once a step.

    Patarasuk and Yuan (2009), J. Parallel Distrib. Comput. 69(2). Nothing is hidden behind the
    backward pass, so the time is an upper bound.
    """

    num_bytes: int
    """Gradients of one replica."""
    bytes_per_second: float
    given: bool
    """False where the bandwidth is an assumption."""

    def seconds(self, num_replicas: Floats) -> Floats:
        """One all-reduce at the central bandwidth.

        >>> link = Link(num_bytes=1000, bytes_per_second=1000.0, given=True)
        >>> link.seconds(np.array([1.0, 2.0, 4.0])).tolist()
        [0.0, 1.0, 1.5]
        """
        return 2 * (num_replicas - 1) / num_replicas * self.num_bytes / self.bytes_per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """The same number of draws of each source; every factor is 1 at its centre."""

    critical_centre: float
    noise: Floats
    """Factor on the critical batch size that the noise scale leaves open, [draws]."""
    calibration: Floats
    """Factor that the step from noise scale to critical batch size leaves open, [draws]."""
    step_factors: tuple[Floats, ...]
    """For each mode, on the seconds at each timed size, [timed sizes, draws]."""
    optimizer: Floats
    loader: Floats
    bandwidth: Floats

    @property
    def critical(self) -> Floats:
        """Critical batch sizes, in examples, [draws]."""
        return self.critical_centre * self.noise * self.calibration

    @property
    def central(self) -> Draws:
        """One draw in which every model is right."""
        one = np.ones(1)
        factors = tuple(np.ones((len(factor), 1)) for factor in self.step_factors)
        return dataclasses.replace(
            self,
            noise=one,
            calibration=one,
            step_factors=factors,
            optimizer=one,
            loader=one,
            bandwidth=one,
        )

    def fixing(self, source: Doubtful) -> Draws:
        """The same draws with one source known."""
        fields = {
            "noise scale": ("noise",),
            "calibration": ("calibration",),
            "step times": ("step_factors", "optimizer"),
            "loader": ("loader",),
            "bandwidth": ("bandwidth",),
        }[source]
        ones = {name: np.ones_like(getattr(self, name)) for name in fields if name != "step_factors"}
        known = dataclasses.replace(self, **ones)
        if "step_factors" not in fields:
            return known
        factors = tuple(np.ones_like(factor) for factor in self.step_factors)
        return dataclasses.replace(known, step_factors=factors)


def make_draws(
    modes: Sequence[Mode],
    loader: LoaderModel,
    steps: StepsModel,
    optimizer_samples: Sequence[float],
    link: Link,
    num_draws: int = NUM_DRAWS,
) -> Draws:
    """Draw every source from the interval of its model; errors are factors, as times are positive.

    Where the noise scale is undecided the critical batch size is log-uniform over its whole range,
    because nothing inside it is more likely than the rest.
    """
    rng = np.random.default_rng(SEED)
    normal = rng.standard_normal((5, num_draws))
    uniform = rng.uniform(-0.5, 0.5, num_draws)
    width = float(np.log(steps.high / steps.low))
    calibration_sd = min(steps.calibration_log_sd, width / (2 * NORMAL_QUANTILE))
    if steps.decided:
        total_sd = width / (2 * NORMAL_QUANTILE)
        noise = np.exp(np.sqrt(max(total_sd**2 - calibration_sd**2, 0.0)) * normal[0])
        centre, calibration = steps.critical_batch_size, np.exp(calibration_sd * normal[1])
    else:
        centre = float(np.sqrt(steps.low * steps.high))
        noise, calibration = np.exp(width * uniform), np.ones(num_draws)
    factors, optimizer = _time_factors(modes, optimizer_samples, rng, normal[2])
    # A median absolute error is 0.674 standard deviations of a normal one.
    loader_sd = 1.4826 * loader.residual
    if isinstance(modes[0].times, Roofline):
        loader_sd = float(np.hypot(loader_sd, np.log(ASSUMED_HOST_FACTOR) / NORMAL_QUANTILE))
    bandwidth_sd = 0.0 if link.given else float(np.log(ASSUMED_BANDWIDTH_FACTOR)) / NORMAL_QUANTILE
    return Draws(
        critical_centre=centre,
        noise=noise,
        calibration=calibration,
        step_factors=factors,
        optimizer=optimizer,
        loader=np.exp(loader_sd * normal[3]),
        bandwidth=np.exp(bandwidth_sd * normal[4]),
    )


def _time_factors(
    modes: Sequence[Mode],
    optimizer_samples: Sequence[float],
    rng: np.random.Generator,
    normal: Floats,
) -> tuple[tuple[Floats, ...], Floats]:
    """Factors on each mode's seconds, [timed sizes, draws], and on the optimizer's, [draws].

    A mode that was timed beside the first shares its error. All modes of an accelerator that is not
    here share its efficiency.
    """
    if isinstance(modes[0].times, Roofline):
        shares = draw_efficiency(rng, len(normal))
        rooflines = [mode.times for mode in modes if isinstance(mode.times, Roofline)]
        return tuple(r.factors(shares) for r in rooflines), rooflines[0].optimizer_factors(shares)
    factors: list[Floats] = []
    for mode in modes:
        if isinstance(mode.times, ModeSpeed):
            errors, shared = np.array(mode.times.ratio_errors), factors[0][list(mode.times.beside)]
        else:
            errors = np.array(mode.speed.standard_errors) / np.array(mode.speed.seconds)
            shared = np.ones((len(errors), 1))
        own = np.exp(errors[:, None] * rng.standard_normal((len(errors), len(normal))))
        if mode.speed.fastest:
            middle = np.array(mode.speed.seconds)
            least, most = (np.array(t) / middle for t in (mode.speed.fastest, mode.speed.slowest))
            own = np.clip(own, least[:, None], most[:, None])
        factors.append(shared * own)
    samples = np.array(optimizer_samples)
    if (middle := float(np.median(samples))) <= 0:
        return tuple(factors), np.ones(len(normal))
    spread = median_standard_error(samples) / middle
    optimizer = np.clip(np.exp(spread * normal), samples.min() / middle, samples.max() / middle)
    return tuple(factors), optimizer


def step_seconds(sizes: Sequence[int], mode: Mode, factors: Floats) -> Floats:
    """Seconds of forward and backward in every draw, [sizes, draws].

    Args:
        sizes: of micro-batches, within what was timed.
        mode: gives the central seconds.
        factors: on them, [timed sizes, draws].
    """
    weights = interpolation_weights(sizes, mode.speed.micro_batch_sizes)
    return (weights * np.array(mode.speed.seconds)) @ factors


def update_seconds(
    candidates: Candidates, modes: Sequence[Mode], loader: LoaderModel, link: Link, draws: Draws
) -> Floats:
    """Seconds of one update, [candidates, draws].

    k forward and backward passes, one optimizer step, one all-reduce, and the loading. Loading adds
    where it shares the process with the step; worker processes load beside it, and then the slower
    of the two sets the pace. Every replica has a loader like the measured one.
    """
    seconds = np.empty((len(candidates), len(draws.noise)))
    for index, mode in enumerate(modes):
        mine = candidates.mode == index
        if not mine.any():
            continue
        sizes, place = np.unique(candidates.micro_batch_size[mine], return_inverse=True)
        step = step_seconds(sizes.tolist(), mode, draws.step_factors[index])
        block = step[place] * candidates.accumulation_steps[mine][:, None]
        block += mode.speed.optimizer_seconds * draws.optimizer
        seconds[mine] = block
    if candidates.num_replicas.max(initial=1) > 1:
        seconds += np.outer(link.seconds(candidates.num_replicas.astype(float)), 1 / draws.bandwidth)
    micro = candidates.micro_batch_size
    loading = candidates.accumulation_steps * (loader.batch_seconds + loader.example_seconds * micro)
    if loader.overlaps:
        return np.maximum(seconds, np.outer(loading, draws.loader), out=seconds)
    seconds += np.outer(loading, draws.loader)
    return seconds
