"""Laws of traces of one kind: one per family of streams that align, or a line through the peaks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rightbatch.core.samples import MemoryTrace
from rightbatch.fit.memory_law import (
    LARGEST_SIZE,
    Law,
    Piece,
    fit_law,
    line_through_peaks,
    peak_parts,
    signature,
)

# A line errs least between its ends, where it is checked: beyond them allow this many times a miss.
_CAUTION = 5
# What a law with such rounding is trusted to: a page more or less at either end tilts it.
_ROUNDED_SHARE = 0.005
# A law that misses a traced size by more is split, or gives way to a line through the peaks. Below,
# it is rounding inside libraries, and splitting would bend the slope more than it helps.
_TOLERATED = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """Laws of one kind of trace, and how well they meet the traced sizes."""

    laws: tuple[Law, ...]
    family: dict[int, int]
    """Traced size to the index of its law, in order of size."""
    residual_bytes: int
    miss: float
    """Largest share of a traced peak by which it is missed."""
    slope_share: float
    """By which the slope may be off."""

    @property
    def share(self) -> float:
        """Half-width of the interval, as a share of the peak."""
        rounding = _ROUNDED_SHARE if self.miss else 0.0
        return max(_CAUTION * self.miss, self.slope_share, rounding)


def degree_of(shapes: Fitted | None) -> int | None:
    """Highest power of the batch that sizes inside the step grow with; None where fakes do not say."""
    if shapes is None or shapes.residual_bytes:
        return None
    return max(law.degree for law in shapes.laws)


def fit_families(traces: Sequence[MemoryTrace], *, degree: int | None) -> Fitted:
    """Fit each family of aligned streams; the line through the peaks where that describes them better.

    Args:
        traces: of one source, in order of size.
        degree: as ``fit_law`` takes it.
    """
    families: defaultdict[tuple[object, ...], list[MemoryTrace]] = defaultdict(list)
    for trace in traces:
        families[signature(trace)].append(trace)
    laws = [law for family in families.values() if len(family) >= 2 for law in _split(family, degree)]
    fitted = _judge(traces, laws, 0.0) if laws else None
    if fitted is not None and fitted.miss <= _TOLERATED:
        return fitted
    law, slope_share = line_through_peaks(traces)
    line = _judge(traces, [law], slope_share)
    return line if fitted is None or line.miss < fitted.miss else fitted


def with_lone(fitted: Fitted, trace: MemoryTrace) -> Fitted:
    """Let size 1 be what was traced: by the law of the next larger size, or by one of its own.

    It fixes no coefficient, since a lone example takes ways of its own.

    Args:
        fitted: to larger sizes.
        trace: at size 1.
    """
    laws, index = fitted.laws, fitted.family[min(fitted.family)]
    if laws[index].peak_bytes(1) != peak_parts(trace).peak_bytes:
        laws, index = (*laws, _law_of_one(trace)), len(laws)
    return replace(fitted, laws=laws, family={1: index, **fitted.family})


def _law_of_one(trace: MemoryTrace) -> Law:
    """The peak of one trace, for its size alone."""
    peak = peak_parts(trace)
    piece = Piece(
        first_size=1,
        coefficients=(peak.peak_bytes, 0, 0),
        parts={owner: (held, 0, 0) for owner, held in peak.parts.items()},
        phase=peak.phase,
        operator=peak.operator,
    )
    return Law(
        source=trace.source,
        anchors=(trace.micro_batch_size,),
        held_out=(),
        denominator=1,
        pieces=(piece,),
        last_size=LARGEST_SIZE,
    )


def _split(family: Sequence[MemoryTrace], degree: int | None) -> list[Law]:
    """One law, or one for small and one for large sizes where storages change their formula."""
    law = fit_law(family, degree=degree)
    if len(family) < 4 or _judge(family, [law], 0.0).miss <= _TOLERATED:
        return [law]
    half = len(family) // 2
    return [*_split(family[:half], degree), *_split(family[half:], degree)]


def _judge(traces: Sequence[MemoryTrace], laws: Sequence[Law], slope_share: float) -> Fitted:
    """Compare laws with every traced size, one that belongs to no family with its nearest."""
    family = dict(sorted((size, index) for index, law in enumerate(laws) for size in law.sizes))
    residual, miss = 0, 0.0
    for trace in traces:
        peak = peak_parts(trace).peak_bytes
        nearest = min(family, key=lambda size: abs(size - trace.micro_batch_size))
        error = abs(laws[family[nearest]].peak_bytes(trace.micro_batch_size) - peak)
        residual, miss = max(residual, error), max(miss, error / max(peak, 1))
    return Fitted(
        laws=tuple(laws), family=family, residual_bytes=residual, miss=miss, slope_share=slope_share
    )
