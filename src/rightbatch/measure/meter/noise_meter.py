"""The gradient noise scale of a training loop that somebody else wrote."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rightbatch.core.errors import InvalidInputError, MeasurementError
from rightbatch.core.samples import GradientSample
from rightbatch.fit.noise_scale import MIN_SAMPLES, NoiseScale, estimate_noise_scale
from rightbatch.measure.gradients import adam_preconditioner
from rightbatch.measure.meter.measured_update import MeasuredUpdate, Skipped
from rightbatch.measure.meter.model_facts import ModelFacts, look_at
from rightbatch.measure.meter.period import Period
from rightbatch.measure.meter.window import Reduction

WINDOW = 100  # measured updates that one estimate is over: the scale moves while a network trains


class NoiseMeter:
    """Measures the noise scale in any training loop, at a cost nobody notices.

    Every so many updates the ordinary backward pass is listened to; in between nothing is installed
    but a counter of examples. Where several backward passes make one update, or several replicas do,
    their gradients are compared with the whole one. Otherwise hooks on the layers give every
    example's squared gradient norm. Outputs, gradients and random numbers stay as they would be.

    Args:
        model: as called in the loop, with its parameters already on their device.
        optimizer: gives the preconditioner of Adam and its kin; None measures plain norms only.
        period: measure one update in so many; ``"auto"`` keeps the time that measuring adds to 1 %.
        reduction: how the loss joins the examples of a backward pass, ``"mean"`` or ``"sum"``.
        population: examples of the data that batches are drawn from without putting back, such as an
            epoch's; matters where a batch is a large part of them. None: as good as endless.
        clock: seconds, for tests.

    Raises:
        InvalidInputError: an option out of range, or a model that cannot be metered.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        period: int | Literal["auto"] = "auto",
        reduction: Reduction = "mean",
        *,
        population: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        _check_options(period, reduction, population)
        self._population = population
        self._model = model
        self._facts: ModelFacts = look_at(model)
        self._optimizer = optimizer
        self._reduction: Reduction = reduction
        self._period = Period(None if period == "auto" else period)
        self._clock = clock
        self._update = MeasuredUpdate(model, self._facts, reduction, self._preconditioner)
        self._samples: deque[GradientSample] = deque(maxlen=WINDOW)
        self.skipped: Counter[str] = Counter()
        """Measured updates that gave no sample, by reason."""
        self.num_updates = 0
        self.examples_seen = 0
        self._attached = False
        self._last: float | None = None
        self._next_due = 0

    def __enter__(self) -> Self:
        """Start listening; the first update is measured.

        Raises:
            InvalidInputError: the meter is attached already.
        """
        if self._attached:
            hint = "leave the `with` block before entering it again"
            raise InvalidInputError("a meter that is attached", need="a detached one", hint=hint)
        self._attached = True
        self._last = None
        self._update.attach()
        if self._next_due <= self.num_updates:
            self._update.arm()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove every hook; the estimate stays available."""
        self._update.detach()
        self._attached = False

    @property
    def samples(self) -> tuple[GradientSample, ...]:
        """The newest measured updates, at most 100, in order of training."""
        return tuple(self._samples)

    @property
    def period(self) -> int:
        """Every how many updates one is measured at present."""
        return self._period.updates

    def update(
        self,
        *,
        examples: int | None = None,
        scaler: torch.amp.GradScaler | None = None,
        groups: Iterable[Tensor] | None = None,
    ) -> None:
        """Tell the meter that an update's gradient is complete.

        Call it once an update, after its last ``backward`` and before clipping and
        ``optimizer.step()``; with a GradScaler, before ``scaler.step``.

        Args:
            examples: in this update on this process; None: the first dimension of the model's input.
            scaler: of mixed precision, whose loss scale is divided out.
            groups: mean losses of parts of the batch, best of its two halves, as a generator: it is
                run only on measured updates, on which it costs a second forward and backward. For
                models whose examples have no gradients of their own, such as with BatchNorm.

        Raises:
            InvalidInputError: the meter is not attached, no gradient was seen, the gradient was
                clipped before this call, or this model can only be measured in another way.
        """
        if not self._attached:
            hint = "with rb.NoiseMeter(model) as meter: ..."
            raise InvalidInputError("update() of a detached meter", need="a `with` block", hint=hint)
        if examples is not None and examples < 1:
            found = f"update(examples={examples})"
            raise InvalidInputError(found, need="at least 1 example", hint="leave it out to infer it")
        measured = self._update.armed
        self.examples_seen += (examples or self._update.examples) * self._facts.replicas
        if measured:
            self._measure(examples, scaler, groups)
        self._note_time(measured)
        self.num_updates += 1
        self._update.disarm()
        if self.num_updates >= self._next_due:
            self._update.arm()

    def estimate(self, *, preconditioned: bool | None = None) -> NoiseScale:
        """The noise scale over the newest measured updates, with its 90 % interval.

        Args:
            preconditioned: use norms weighted by the optimizer's preconditioner; None: where there
                are enough of them.

        Raises:
            MeasurementError: fewer than 3 measured updates gave a sample.
        """
        weighted = [s for s in self._samples if s.preconditioned_big_sq_norm is not None]
        use = len(weighted) >= MIN_SAMPLES if preconditioned is None else preconditioned
        samples = weighted if use else list(self._samples)
        if len(samples) < MIN_SAMPLES:
            reasons = "".join(f", {n} skipped: {reason}" for reason, n in self.skipped.items())
            found = f"{len(samples)} measured update(s) out of {self.num_updates}{reasons}"
            hint = "train on, or measure more often: period=1"
            raise MeasurementError(found, need=f"at least {MIN_SAMPLES}", hint=hint)
        return estimate_noise_scale(samples, preconditioned=use)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on: plain numbers and strings."""
        return {
            "samples": [sample.model_dump(mode="json") for sample in self._samples],
            "skipped": dict(self.skipped),
            "num_updates": self.num_updates,
            "examples_seen": self.examples_seen,
            "next_due": self._next_due,
            "period": self._period.updates,
            "source": self._update.source,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; a fixed period stays as it was given.

        Raises:
            InvalidInputError: not a state of a meter, or the meter is attached.
        """
        if self._attached:
            hint = "load before the `with` block"
            raise InvalidInputError(
                "load_state_dict() while measuring", need="a detached meter", hint=hint
            )
        fresh = self.state_dict()
        if set(state) != set(fresh):
            found = f"a state with {', '.join(sorted(map(str, state)))}"
            hint = "pass what NoiseMeter.state_dict() returned"
            raise InvalidInputError(found, need=", ".join(sorted(fresh)), hint=hint)
        self._samples = deque(map(GradientSample.model_validate, state["samples"]), maxlen=WINDOW)
        self.skipped = Counter(state["skipped"])
        self.num_updates, self.examples_seen = state["num_updates"], state["examples_seen"]
        self._next_due = state["next_due"]
        self._update.source = state["source"]
        if not self._period.is_fixed:
            self._period.updates = state["period"]

    def _measure(
        self, examples: int | None, scaler: torch.amp.GradScaler | None, groups: Iterable[Tensor] | None
    ) -> None:
        scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0
        found = self._update.finish(examples, scale, groups, self._period.extra_share)
        if isinstance(found, Skipped):
            self.skipped[found.reason] += 1
            return
        if self._population is not None and found.big_batch_size > self._population:
            need = f"batches of at most population={self._population} examples"
            hint = "population is the number of examples in the training data"
            raise InvalidInputError(f"an update of {found.big_batch_size}", need=need, hint=hint)
        self._samples.append(
            found.replace(examples_seen=self.examples_seen, population=self._population)
        )

    def _note_time(self, measured: bool) -> None:
        """Time between two calls is an update's, loader and optimizer included."""
        now = self._clock()
        if self._last is not None:
            self._period.add(now - self._last, measured=measured)
        self._last = now
        if measured:
            shared = self._update.shared_extra_share
            self._period.follow(shared)
            self._next_due = self.num_updates + self._period.updates

    def _preconditioner(self) -> list[Tensor] | None:
        if self._optimizer is None:
            return None
        weights = adam_preconditioner(self._model, self._optimizer)
        finite = weights is not None and all(math.isfinite(float(w.sum())) for w in weights)
        return weights if finite else None


def _check_options(period: object, reduction: object, population: int | None) -> None:
    valid = period == "auto" or (
        isinstance(period, int) and not isinstance(period, bool) and period >= 1
    )
    if not valid:
        hint = "period=1 measures every update"
        raise InvalidInputError(f"period={period!r}", need='"auto" or an integer >= 1', hint=hint)
    if reduction not in {"mean", "sum"}:
        hint = 'use "mean" if the loss averages over examples, "sum" if it adds'
        raise InvalidInputError(f"reduction={reduction!r}", need='"mean" or "sum"', hint=hint)
    if population is not None and population < 2:
        hint = "population=len(dataset), or leave it out"
        raise InvalidInputError(f"population={population!r}", need="at least 2 examples", hint=hint)
