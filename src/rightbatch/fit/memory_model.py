"""Peak memory of a training step for any micro-batch size, fitted to traces of a few small ones.

The number comes from the allocator's own streams where there are some, else from fake traces,
which cannot see what kernels allocate inside themselves. Streams that align event by event give
an exact law (see ``memory_law``); streams that do not give a line through their peaks and an
interval. Sizes between two families of streams (a larger batch took other kernels) follow the
family that was traced at the nearest smaller size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rightbatch.core.errors import InfeasibleError, InvalidInputError, MeasurementError
from rightbatch.core.samples import MemoryTrace, Owner
from rightbatch.core.units import format_bytes
from rightbatch.fit.memory_law import (
    Ints,
    Law,
    Piece,
    fit_law,
    line_through_peaks,
    peak_parts,
    signature,
)

# What a fake trace may miss, as a share of the peak: largest seen over convolution nets (5.0 %) and
# recurrent nets of oneDNN (26 %), rounded up.
_UNSEEN_SHARE = {"convolution": 0.06, "mkldnn_rnn_layer": 0.4}
# Streams at tiny sizes alone, with none at 16 or more to confirm them: largest error seen 10.5 %.
_UNCONFIRMED_SHARE = 0.12
_CONFIRMING_SIZE = 16
# Two families of streams that agree this well at a traced size describe the same step.
_AGREEMENT = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryModel:
    """Bytes of live tensors at the peak of two steps, as a function of the micro-batch size."""

    laws: tuple[Law, ...]
    """By smallest traced size; each holds from there to where the next begins."""
    evidence: Literal["measured", "derived"]
    """``measured``: streams of real steps; ``derived``: fake traces, kernel scratch unseen."""
    exact: bool
    """Every stream aligned and every held-out size was met to the byte."""
    low_share: float
    """The interval begins this share of the peak below it."""
    high_share: float
    """And ends this share above."""
    worst_case: Law | None
    """Bound from fake traces of a step whose memory depends on its data."""
    residual_bytes: int
    """Largest error at a traced size that did not fix the law; 0 where all were met."""
    caveats: tuple[str, ...]

    @property
    def valid_range(self) -> tuple[int, int]:
        """Smallest traced size, and the largest size the law is written for."""
        return min(self.traced_sizes), min(law.last_size for law in self.laws)

    @property
    def traced_sizes(self) -> tuple[int, ...]:
        """Micro-batch sizes whose streams fixed or checked the law."""
        return tuple(sorted({b for law in self.laws for b in (*law.anchors, *law.held_out)}))

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
        if sizes.size:
            self._law(int(sizes.min()))
            self._law(int(sizes.max()))
        peaks = self.laws[0].peaks_bytes(sizes)
        for law in self.laws[1:]:
            peaks = np.where(sizes >= law.first_size, law.peaks_bytes(sizes), peaks)
        return peaks

    def low_bytes(self, micro_batch_size: int) -> int:
        """Lower end of the interval; the peak itself where the law is exact."""
        return int(self.peak_bytes(micro_batch_size) * (1 - self.low_share))

    def high_bytes(self, micro_batch_size: int) -> int:
        """Upper end of the interval; the peak itself where the law is exact."""
        peak = self.peak_bytes(micro_batch_size)
        high = peak + round(peak * self.high_share)
        return max(high, self.worst_case.peak_bytes(micro_batch_size)) if self.worst_case else high

    def breakdown(self, micro_batch_size: int) -> dict[Owner, int]:
        """Bytes by owner at the instant of the peak; they sum to ``peak_bytes``."""
        law, piece = self._law(micro_batch_size), self._piece(micro_batch_size)
        parts = {owner: law.evaluate(c, micro_batch_size) for owner, c in piece.parts.items()}
        parts["temporaries"] += law.peak_bytes(micro_batch_size) - sum(parts.values())  # rounding
        return parts

    def peak_at(self, micro_batch_size: int) -> tuple[str, str]:
        """Phase and operator of the allocation that makes the peak."""
        piece = self._piece(micro_batch_size)
        return piece.phase, piece.operator

    def pieces(self) -> tuple[tuple[int, str, str], ...]:
        """First micro-batch size, phase and operator of each stretch with one peak instant."""
        found: list[tuple[int, str, str]] = []
        for law, until in zip(self.laws, (*(b.first_size for b in self.laws[1:]), None), strict=True):
            begin = law.first_size if found else 1
            found += [
                (max(piece.first_size, begin), piece.phase, piece.operator)
                for piece, following in zip(law.pieces, (*law.pieces[1:], None), strict=True)
                if (until is None or piece.first_size < until)
                and (following is None or following.first_size > begin)
            ]
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
            parts = self.breakdown(1)
            largest = max(parts, key=lambda owner: parts[owner])
            found = f"one example needs {least:,} bytes ({format_bytes(least)}) of {usable:,} usable"
            need = f"{least - usable:,} bytes more"
            hint = (
                f"raise the limit or shrink the largest part, {largest}: {format_bytes(parts[largest])}"
            )
            raise InfeasibleError(found, need=need, hint=hint)
        fits, fails = 1, self.valid_range[1] + 1
        while fails - fits > 1:
            middle = (fits + fails) // 2
            fits, fails = (middle, fails) if self.high_bytes(middle) <= usable else (fits, middle)
        return fits

    def _law(self, size: int) -> Law:
        last = self.valid_range[1]
        if not 1 <= size <= last:
            found = f"micro-batch size {size}"
            raise InvalidInputError(found, need=f"a size from 1 to {last:,}", hint="ask within it")
        return next((law for law in reversed(self.laws) if law.first_size <= size), self.laws[0])

    def _piece(self, size: int) -> Piece:
        return self._law(size).piece_at(size)


def fit_memory_model(traces: Sequence[MemoryTrace]) -> MemoryModel:
    """Fit the peak of one task's step to traces at two or more micro-batch sizes.

    Args:
        traces: of one recipe, from fake tensors, from real steps, or both.

    Raises:
        MeasurementError: no source has traces at two sizes.
    """
    kernels = [t for t in traces if t.source == "kernels"]
    fakes = [t for t in traces if t.source == "fake"]
    real = len({t.micro_batch_size for t in kernels}) >= 2
    chosen = kernels if real else fakes
    if len({t.micro_batch_size for t in chosen}) < 2:
        found = f"{len(traces)} memory trace(s), at one micro-batch size or none"
        raise MeasurementError(found, need="traces at two sizes", hint="trace sizes 2 and 3")
    laws, spread, residual = _fit_source(chosen)
    caveats = list(dict.fromkeys(text for trace in chosen for text in trace.caveats))
    low_share = high_share = spread
    if spread:
        caveats.append(f"the streams do not follow one law: interval of {spread:.2%} to each side")
    if not real:
        share, names = _unseen(fakes)
        high_share += share
        if names:
            caveats.append(
                f"scratch inside {' and '.join(names)} kernels is not seen: up to {share:.0%}"
            )
    elif not spread and max(laws[-1].anchors) < _CONFIRMING_SIZE:
        high_share += _UNCONFIRMED_SHARE
        caveats.append(
            f"no real step of {_CONFIRMING_SIZE} examples or more was run: larger ones may take"
            f" kernels with up to {_UNCONFIRMED_SHARE:.0%} more scratch"
        )
    if min(t.micro_batch_size for t in chosen) > 1:
        caveats.append("a micro-batch of 1 is extrapolated: it may take other kernels")
    worst_case: Law | None = None
    if real and spread and fakes and any(t.caveats for t in fakes):
        worst_case = (
            _fit_source(fakes)[0][-1] if len({t.micro_batch_size for t in fakes}) >= 2 else None
        )
    return MemoryModel(
        laws=laws,
        evidence="measured" if real else "derived",
        exact=not spread and not residual,
        low_share=low_share,
        high_share=high_share,
        worst_case=worst_case,
        residual_bytes=residual,
        caveats=tuple(caveats),
    )


def _fit_source(traces: Sequence[MemoryTrace]) -> tuple[tuple[Law, ...], float, int]:
    """Laws of one source's traces, the share by which they miss, and the largest miss in bytes."""
    by_size = {t.micro_batch_size: t for t in traces}
    families: defaultdict[tuple[object, ...], list[MemoryTrace]] = defaultdict(list)
    for trace in by_size.values():
        families[signature(trace)].append(trace)
    laws = sorted(
        (fit_law(family) for family in families.values() if len(family) >= 2),
        key=lambda law: law.first_size,
    )
    peaks = {size: peak_parts(trace)[0] for size, trace in by_size.items()}

    def miss(size: int, candidates: Sequence[Law]) -> int:
        law = next((c for c in reversed(candidates) if c.first_size <= size), candidates[0])
        return abs(law.peak_bytes(size) - peaks[size])

    if laws:
        residual = max(miss(size, laws) for size in by_size)
        share = max(miss(size, laws) / peaks[size] for size in by_size)
        if share <= _AGREEMENT:
            return tuple(laws), 0.0, residual
    line, share = line_through_peaks(list(by_size.values()))
    return (line,), share, max(miss(size, [line]) for size in by_size)


def _unseen(traces: Sequence[MemoryTrace]) -> tuple[float, list[str]]:
    """Share of the peak that kernels may add out of sight, and which kernels."""
    operators = {name for trace in traces for name in trace.operators}
    found = [key for key in _UNSEEN_SHARE if any(key in name for name in operators)]
    return max((_UNSEEN_SHARE[key] for key in found), default=0.0), found
