"""Peak memory of a training step for any micro-batch size, fitted to traces of a few small ones.

The number comes from the allocator's own streams where there are some, else from fake traces,
which cannot see what kernels allocate inside themselves. Streams that align event by event give
an exact law (see ``memory_law``), one for each family where larger batches took other kernels.
Streams that do not align give a line through their peaks and an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rightbatch.core.errors import InfeasibleError, InvalidInputError, MeasurementError
from rightbatch.core.samples import MemoryTrace, Owner
from rightbatch.fit.memory_families import degree_of, fit_families, with_lone
from rightbatch.fit.memory_law import Ints, Law
from rightbatch.fit.shortfall import shortfall

# What a fake trace may miss, as a share of its peak: the largest seen on small nets, rounded up.
# Convolutions 42 %, recurrent layers of oneDNN 103 %; nets whose weights dominate miss far less.
_UNSEEN_SHARE = {"convolution": 0.45, "mkldnn_rnn_layer": 1.25}
# Operators that keep a part of their input: fake tensors take all of it.
_SELECTING = ("aten.nonzero", "aten.masked_select")
# Streams at tiny sizes alone, with none at 16 or more to confirm them: largest error seen 10.5 %.
_UNCONFIRMED_SHARE = 0.12
_CONFIRMING_SIZE = 16
# A miss below this share of the peak is not worth a caveat; the interval holds it all the same.
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryModel:
    """Bytes of live tensors at the peak of two steps, as a function of the micro-batch size.

    Sizes between two traced ones follow their common law; where the two follow different laws, the
    larger of both is the answer and both are the interval. Size 1 is what was traced there; else the
    law may err by as much as a second example takes.
    """

    laws: tuple[Law, ...]
    family: dict[int, int]
    """Traced size to the index of its law, in order of size."""
    evidence: Literal["measured", "derived"]
    """``measured``: streams of real steps; ``derived``: fake traces, kernel scratch unseen."""
    residual_bytes: int
    """Largest error at a traced size; 0 where every traced size was met to the byte."""
    low_share: float
    """The interval begins this share of the peak below it."""
    high_share: float
    """And ends this share above."""
    worst_case: Law | None
    """What the step would hold if every data-dependent choice were the largest."""
    caveats: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether one law met every traced size above 1, 1 was traced and nothing was assumed."""
        doubted = self.residual_bytes or self.high_share or self.worst_case or self._is_alone(1)
        return not doubted and len({law for size, law in self.family.items() if size > 1}) == 1

    @property
    def valid_range(self) -> tuple[int, int]:
        """Smallest traced size, and the largest size that the laws are written for."""
        return min(self.family), min(law.last_size for law in self.laws)

    def peak_bytes(self, micro_batch_size: int) -> int:
        """Highest sum of live tensor bytes over two steps of the recipe.

        Raises:
            InvalidInputError: the size is below 1 or beyond the law's range.
        """
        return self._law(micro_batch_size).peak_bytes(micro_batch_size)

    def predict_peak_bytes(self, micro_batch_sizes: Ints) -> Ints:
        """``peak_bytes`` for an array of sizes.

        Raises:
            InvalidInputError: a size is below 1 or beyond the law's range.
        """
        sizes = np.asarray(micro_batch_sizes, dtype=np.int64)
        for outermost in (sizes.min(), sizes.max()) if sizes.size else ():
            self._check(int(outermost))
        traced, chosen = np.array(list(self.family)), np.array(list(self.family.values()))
        last = len(traced) - 1
        below = chosen[np.clip(np.searchsorted(traced, sizes, side="right") - 1, 0, last)]
        above = chosen[np.clip(np.searchsorted(traced, sizes, side="left"), 0, last)]
        peaks = np.stack([law.peaks_bytes(sizes) for law in self.laws])
        at = np.arange(sizes.size).reshape(sizes.shape)
        flat = peaks.reshape(len(self.laws), -1)
        return np.maximum(flat[below, at], flat[above, at])

    def low_bytes(self, micro_batch_size: int) -> int:
        """Lower end of the interval; the peak itself where the law is exact."""
        low = min(law.peak_bytes(micro_batch_size) for law in self._laws(micro_batch_size))
        smallest = min(self.family)  # no choice that data makes can take less than this
        least = self.peak_bytes(smallest) if micro_batch_size >= smallest else 0
        low = max(low - self._spread(micro_batch_size), min(low, least))
        return low - math.ceil(self.low_share * low)

    def high_bytes(self, micro_batch_size: int) -> int:
        """Upper end of the interval; the peak itself where the law is exact."""
        peak = self.peak_bytes(micro_batch_size)
        return peak + math.ceil(self.high_share * peak) + self._spread(micro_batch_size)

    def breakdown(self, micro_batch_size: int) -> dict[Owner, int]:
        """Bytes by owner at the instant of the peak; they sum to ``peak_bytes``.

        Scratch inside kernels, where real steps were traced, is part of ``temporaries``.
        """
        law = self._law(micro_batch_size)
        piece = law.piece_at(micro_batch_size)
        parts: dict[Owner, int] = {o: law.evaluate(c, micro_batch_size) for o, c in piece.parts.items()}
        parts["temporaries"] += law.peak_bytes(micro_batch_size) - sum(parts.values())  # rounding
        return parts

    def peak_at(self, micro_batch_size: int) -> tuple[str, str]:
        """Phase and operator of the allocation that makes the peak."""
        piece = self._law(micro_batch_size).piece_at(micro_batch_size)
        return piece.phase, piece.operator

    def pieces(self) -> tuple[tuple[int, str, str], ...]:
        """First micro-batch size, phase and operator of each stretch with one peak instant."""
        starts = {1, *(piece.first_size for law in self.laws for piece in law.pieces)}
        starts |= set(range(1, max(self.family) + 2))
        found: list[tuple[int, str, str]] = []
        for size in sorted(starts):
            if not found or found[-1][1:] != self.peak_at(size):
                found.append((size, *self.peak_at(size)))
        return tuple(found)

    def max_micro_batch(self, limit_bytes: int, headroom: float = 0.0) -> int:
        """Largest micro-batch size whose interval lies within a limit.

        Args:
            limit_bytes: memory there is.
            headroom: share of it to leave free.

        Raises:
            InfeasibleError: one example does not fit; says how many bytes are missing.
            InvalidInputError: ``headroom`` is not a share.
        """
        if not 0 <= headroom < 1:
            raise InvalidInputError(f"headroom = {headroom}", need="a share in [0, 1)", hint="use 0.1")
        usable = int(limit_bytes * (1 - headroom))
        if (least := self.high_bytes(1)) > usable:
            raise InfeasibleError(*shortfall(least, usable, self.breakdown(1)))
        fits, fails = 1, self.valid_range[1] + 1
        while fails - fits > 1:
            middle = (fits + fails) // 2
            fits, fails = (middle, fails) if self.high_bytes(middle) <= usable else (fits, middle)
        return fits

    def _check(self, size: int) -> None:
        last = self.valid_range[1]
        if not 1 <= size <= last:
            need = f"a size from 1 to {last:,}"
            raise InvalidInputError(
                f"micro-batch size {size}", need=need, hint="ask for one in the range"
            )

    def _laws(self, size: int) -> tuple[Law, Law]:
        """The laws of the nearest traced sizes that are not above and not below a size."""
        self._check(size)
        traced = list(self.family)
        below = max((b for b in traced if b <= size), default=traced[0])
        above = min((b for b in traced if b >= size), default=traced[-1])
        return self.laws[self.family[below]], self.laws[self.family[above]]

    def _law(self, size: int) -> Law:
        """The one that gives the larger peak."""
        return max(self._laws(size), key=lambda law: law.peak_bytes(size))

    def _spread(self, size: int) -> int:
        """How far a lone example's other kernels, or the worst case of data, may lie from the peak."""
        others = [self.worst_case.peak_bytes(size)] if self.worst_case else []
        others += [self.peak_bytes(2)] if self._is_alone(size) else []
        return max(0, max(others, default=0) - self.peak_bytes(size))

    def _is_alone(self, size: int) -> bool:
        """Whether a size is that of a lone example, which was not traced and takes ways of its own."""
        return size == 1 and size not in self.family


def fit_memory_model(traces: Sequence[MemoryTrace]) -> MemoryModel:
    """Fit the peak of one task's step to traces at two or more micro-batch sizes above 1.

    Args:
        traces: of one recipe, from fake tensors, from real steps, or both. One at size 1 answers
            for that size alone.

    Raises:
        MeasurementError: no source has traces at two sizes.
    """
    by_source = {
        source: {t.micro_batch_size: t for t in ordered if t.source == source}
        for ordered in [sorted(traces, key=lambda t: t.micro_batch_size)]
        for source in ("fake", "kernels")
    }
    fakes, kernels = ([t for b, t in found.items() if b > 1] for found in by_source.values())
    real = len(kernels) >= 2
    chosen = kernels if real else fakes
    lone = by_source["kernels" if real else "fake"].get(1)
    if len(chosen) < 2:
        found = f"{len(fakes)} fake and {len(kernels)} real memory trace(s)"
        raise MeasurementError(found, need="two sizes of one kind", hint="trace sizes 2 and 3")
    shapes = (
        fit_families(fakes, degree=2) if len(fakes) >= 2 else None
    )  # whole polynomials, no rounding
    fitted = fit_families(kernels, degree=degree_of(shapes)) if real or shapes is None else shapes
    scans = [trace.worst_case.caveats for trace in (*fakes, *kernels) if trace.worst_case]
    told = [*scans, *(trace.caveats for trace in (*fakes, *kernels))]
    caveats = list(dict.fromkeys(text for texts in told for text in texts))
    if fitted.miss > _ROUNDING or fitted.slope_share:
        caveats.append(f"traced sizes do not follow one law: {fitted.share:.1%} added on both sides")
    low_doubt, high_doubt, doubt = _doubt(chosen, real=real)
    caveats += [doubt] if doubt else []
    if _input_bytes(chosen[0]) >= _input_bytes(chosen[-1]):
        sizes = f"{chosen[0].micro_batch_size} and {chosen[-1].micro_batch_size} examples"
        caveats.append(f"batches of {sizes} take the same bytes: does collate ignore examples?")
    if lone:
        fitted = with_lone(fitted, lone)
    else:
        caveats.append("a micro-batch of 1 was not traced: it may take other kernels")
    assumed = shapes if real and any(trace.caveats for trace in fakes) else None
    return MemoryModel(
        laws=fitted.laws,
        family=fitted.family,
        evidence="measured" if real else "derived",
        residual_bytes=fitted.residual_bytes,
        low_share=min(1.0, fitted.share + low_doubt),
        high_share=fitted.share + high_doubt,
        worst_case=assumed.laws[-1] if assumed else None,
        caveats=tuple(caveats),
    )


def _doubt(traces: Sequence[MemoryTrace], *, real: bool) -> tuple[float, float, str]:
    """Shares of the peak, below and above, that the traces cannot vouch for, and why."""
    if real:
        if traces[-1].micro_batch_size >= _CONFIRMING_SIZE:
            return 0.0, 0.0, ""
        reason = (
            f"no real step of {_CONFIRMING_SIZE} examples was run: larger ones may take other kernels"
        )
        text = f"{reason} with up to {_UNCONFIRMED_SHARE:.0%} more scratch"
        return _UNCONFIRMED_SHARE, _UNCONFIRMED_SHARE, text
    operators = {name for trace in traces for name in trace.operators}
    found = [key for key in _UNSEEN_SHARE if any(key in name for name in operators)]
    # Kernels turn Python numbers into tensors: a few bytes that fakes never see.
    share = max((_UNSEEN_SHARE[key] for key in found), default=_ROUNDING)
    kernels = " and ".join(found)
    text = f"scratch inside {kernels} kernels is not seen: up to {share:.0%}" if found else ""
    return float(any(name in operators for name in _SELECTING)), share, text


def _input_bytes(trace: MemoryTrace) -> int:
    """Bytes of the batch."""
    owner = trace.owners.index("inputs")
    return sum(d for d, o in zip(trace.delta_bytes, trace.owner, strict=True) if o == owner and d > 0)
