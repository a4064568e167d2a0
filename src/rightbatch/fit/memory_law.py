"""The exact law of peak memory against micro-batch size, from streams that align.

The size of every storage is a polynomial in the batch size b: affine, quadratic where pairs of
examples meet, cubic where triples do. So is the live memory m_k(b) after each event k; the peak is

    peak(b) = max_k m_k(b)

an upper envelope with few pieces. Coefficients are integers over one denominator, so nothing is
rounded. Only an instant that follows a birth and precedes a death can be the peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.samples import MemoryTrace, Owner

Ints = NDArray[np.int64]

LARGEST_SIZE = 2**20
"""Micro-batch sizes beyond this are never asked for; the envelope is built up to here."""
MAX_DEGREE = 3
_INT64_SAFE = 2**62
_FINEST = 2**20
# Two roots that meet come out as a pair beside the real axis; one too many costs a look, no more.
_NEARLY_REAL = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Batch sizes over which one instant of the step is the peak."""

    first_size: int
    """Smallest micro-batch size of the piece; it ends where the next begins."""
    coefficients: tuple[int, ...]
    """Of b**0, b**1 and so on, over the law's denominator, in bytes."""
    parts: dict[Owner, tuple[int, ...]]
    """The same for each owner; they sum to ``coefficients``."""
    phase: str
    operator: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """Peak bytes as pieces of polynomials, and where they come from."""

    source: str
    """``fake`` or ``kernels``."""
    anchors: tuple[int, ...]
    """Traced sizes that fixed the coefficients."""
    held_out: tuple[int, ...]
    """Traced sizes that align with the anchors and fixed nothing."""
    denominator: int
    pieces: tuple[Piece, ...]
    last_size: int
    """Largest micro-batch size that the pieces cover."""

    @property
    def degree(self) -> int:
        """Highest power of the batch size in any piece."""
        return max(
            max(p for p, c in enumerate(piece.coefficients) if c or p == 0) for piece in self.pieces
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Traced sizes that follow it."""
        return tuple(sorted((*self.anchors, *self.held_out)))

    def piece_at(self, size: int) -> Piece:
        """The piece that covers a micro-batch size."""
        return next(piece for piece in reversed(self.pieces) if piece.first_size <= size)

    def evaluate(self, coefficients: Sequence[int], size: int) -> int:
        """Bytes at a size, rounded up where traced sizes were not whole polynomials."""
        return -(-sum(c * size**power for power, c in enumerate(coefficients)) // self.denominator)

    def peak_bytes(self, size: int) -> int:
        """Peak at one size."""
        return self.evaluate(self.piece_at(size).coefficients, size)

    def peaks_bytes(self, sizes: Ints) -> Ints:
        """Peaks at many sizes, shape like ``sizes``."""
        starts = np.array([piece.first_size for piece in self.pieces])
        table = np.array([piece.coefficients for piece in self.pieces], dtype=np.int64)
        chosen = table[np.searchsorted(starts, sizes, side="right") - 1]
        return -(-_horner(chosen, sizes) // self.denominator)


def signature(trace: MemoryTrace) -> tuple[object, ...]:
    """What two traces must share to be compared event by event."""
    falls = np.asarray(trace.delta_bytes) < 0
    return (trace.source, trace.operators, trace.operator, trace.phase, falls.tobytes())


def fit_law(traces: Sequence[MemoryTrace], *, degree: int | None = None) -> Law:
    """Interpolate aligned traces event by event and take the upper envelope.

    The outermost sizes fix the coefficients, so that storages which libraries round up to whole
    pages bend the slope least. A parabola meets any three sizes and a cubic any four, so rounding
    looks like one: it is taken only where something else vouches for it.

    Args:
        traces: at least two, aligned, of different sizes.
        degree: highest power of the batch size that sizes inside the step are known to grow with. A
            higher one has to meet one more size to the byte; where the known one is 1 there is none.
    """
    ordered = sorted(traces, key=lambda t: t.micro_batch_size)
    sizes = np.array([t.micro_batch_size for t in ordered])
    deltas = np.array([t.delta_bytes for t in ordered], dtype=np.int64)
    rows = [0, last := len(sizes) - 1]
    for power in range(2, min(last, 1 if degree == 1 else MAX_DEGREE) + 1):
        anchors = [-(-last * k // power) for k in range(power + 1)]
        error = _largest_error(sizes, deltas, anchors)
        vouched = power <= (degree or 1) or (last > power and error < 1)
        rows = anchors if vouched and error < _largest_error(sizes, deltas, rows) else rows
    coefficients, denominator = _interpolate(sizes[rows].tolist(), deltas[rows])
    pieces, last_size = _pieces(ordered[-1], coefficients, smallest=int(sizes[0]))
    return Law(
        source=ordered[-1].source,
        anchors=_as_ints(sizes[rows]),
        held_out=_as_ints(np.delete(sizes, rows)),
        denominator=denominator,
        pieces=pieces,
        last_size=last_size,
    )


def line_through_peaks(traces: Sequence[MemoryTrace]) -> tuple[Law, float]:
    """Describe streams that do not align by the line through their outermost peaks.

    Args:
        traces: at two or more sizes.

    Returns:
        The line as a law, and by which share its slope may be off: its largest departure from the
        slope between peaks that lie at least half the sizes apart.
    """
    ordered = sorted(traces, key=lambda t: t.micro_batch_size)
    sizes = [t.micro_batch_size for t in ordered]
    peaks = [peak_parts(t) for t in ordered]
    owners = ordered[0].owners
    table = np.array([[p.parts[o] for o in owners] for p in (peaks[0], peaks[-1])], dtype=np.int64)
    coefficients, denominator = _interpolate([sizes[0], sizes[-1]], table)
    total = coefficients.sum(axis=0)
    piece = Piece(
        first_size=1,
        coefficients=_as_ints(total),
        parts={o: _as_ints(row) for o, row in zip(owners, coefficients, strict=True)},
        phase=peaks[-1].phase,
        operator=peaks[-1].operator,
    )
    law = Law(
        source=ordered[-1].source,
        anchors=(sizes[0], sizes[-1]),
        held_out=tuple(sizes[1:-1]),
        denominator=denominator,
        pieces=(piece,),
        last_size=_last_safe_size(total[None]),
    )
    slopes = [
        (q.peak_bytes - p.peak_bytes) / (c - b)
        for b, p in zip(sizes, peaks, strict=True)
        for c, q in zip(sizes, peaks, strict=True)
        if 2 * (c - b) >= sizes[-1] - sizes[0]
    ]
    slope = (peaks[-1].peak_bytes - peaks[0].peak_bytes) / (sizes[-1] - sizes[0])
    return law, max((abs(s / slope - 1) for s in slopes), default=0.0) if slope else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The peak of one trace."""

    peak_bytes: int
    parts: dict[Owner, int]
    phase: str
    operator: str


def peak_parts(trace: MemoryTrace) -> Peak:
    """Find the peak of one trace and what is alive at it."""
    deltas = np.asarray(trace.delta_bytes, dtype=np.int64)
    at = int(np.argmax(np.cumsum(deltas)))
    owners = np.asarray(trace.owner)[: at + 1]
    parts: dict[Owner, int] = {
        o: int(deltas[: at + 1][owners == i].sum()) for i, o in enumerate(trace.owners)
    }
    return Peak(
        peak_bytes=sum(parts.values()),
        parts=parts,
        phase=trace.phases[trace.phase[at]],
        operator=trace.operators[trace.operator[at]],
    )


def _largest_error(sizes: Ints, deltas: Ints, rows: list[int]) -> float:
    """Largest error of the live memory at any instant of any traced size."""
    coefficients, denominator = _interpolate(sizes[rows].tolist(), deltas[rows])
    predicted = _horner(coefficients, sizes[:, None]) / denominator
    return float(np.abs(np.cumsum(predicted - deltas, axis=1)).max())


def _pieces(trace: MemoryTrace, coefficients: Ints, smallest: int) -> tuple[tuple[Piece, ...], int]:
    """The envelope of the running sums, and the largest size it covers."""
    live = np.cumsum(coefficients, axis=0)
    candidates = _candidates(coefficients, smallest)
    last_size = _last_safe_size(live[candidates])
    owners = np.asarray(trace.owner)
    pieces: list[Piece] = []
    for first_size, row in _envelope(live[candidates], last_size):
        at = int(candidates[row])
        before, owned = coefficients[: at + 1], owners[: at + 1]
        pieces.append(
            Piece(
                first_size=first_size,
                coefficients=_as_ints(live[at]),
                parts={o: _as_ints(before[owned == i].sum(axis=0)) for i, o in enumerate(trace.owners)},
                phase=trace.phases[trace.phase[at]],
                operator=trace.operators[trace.operator[at]],
            )
        )
    return tuple(pieces), last_size


def _as_ints(row: Ints) -> tuple[int, ...]:
    return tuple(int(c) for c in row)


def _interpolate(sizes: Sequence[int], deltas: Ints) -> tuple[Ints, int]:
    """Lagrange interpolation in integers.

    Args:
        sizes: two to four different sizes.
        deltas: bytes at each, shape [size, event].

    Returns:
        Coefficients over a common denominator, shape [event, 4], and the denominator.
    """
    denominator = prod(c - b for b, c in combinations(sizes, 2))
    table = np.zeros((deltas.shape[1], MAX_DEGREE + 1), dtype=object)  # Python's integers: no overflow
    for b, row in zip(sizes, deltas, strict=True):
        basis, others = [1], [c for c in sizes if c != b]
        for c in others:  # times (x - c)
            basis = [low - c * high for low, high in zip([0, *basis], [*basis, 0], strict=True)]
        factor = denominator // prod(b - c for c in others)
        table[:, : len(basis)] += np.outer(row.astype(object), [factor * k for k in basis])
    shared = int(np.gcd.reduce(np.append(table.ravel(), denominator)))
    table, denominator = table // shared, denominator // shared
    if denominator > _FINEST:  # storages that libraries round: a part of a byte is enough
        table, denominator = table * _FINEST // denominator, _FINEST
    return table.astype(np.int64), denominator


def _candidates(coefficients: Ints, smallest: int) -> NDArray[np.intp]:
    """Events after which the live memory may be the peak: no certain death, no certain birth next."""
    at_smallest = _horner(coefficients, np.full(len(coefficients), smallest))
    grows = (at_smallest >= 0) & (coefficients[:, 1:] >= 0).all(axis=1)
    shrinks = ~grows & (at_smallest <= 0) & (coefficients[:, 1:] <= 0).all(axis=1)
    return np.flatnonzero(~shrinks & ~np.append(grows[1:], False))


def _horner(coefficients: Ints, sizes: Ints) -> Ints:
    *lower, value = np.moveaxis(coefficients, -1, 0)
    for column in reversed(lower):
        value = value * sizes + column
    return value


def _last_safe_size(live: Ints) -> int:
    """Largest size, at most ``LARGEST_SIZE``, at which no sum overflows 64 bits."""
    largest = _as_ints(np.abs(live).max(axis=0))
    size = LARGEST_SIZE
    while sum(c * size**power for power, c in enumerate(largest)) >= _INT64_SAFE:
        size //= 2
    return size


def _envelope(live: Ints, last_size: int) -> list[tuple[int, int]]:
    """Walk the sizes from 1 up: which row is largest, from which size on.

    Args:
        live: polynomials, shape [candidate, 4].
        last_size: where to stop.

    Returns:
        Pairs of first size and row, in order of size.
    """
    found: list[tuple[int, int]] = []
    size = 1
    while size <= last_size:
        values = _horner(live, np.full(len(live), size))
        ties = np.flatnonzero(values == values.max())
        winner = int(ties[np.lexsort(live[ties, 1:].T)[-1]])
        if not found or (live[found[-1][1]] != live[winner]).any():
            found.append((size, winner))
        size = max(size + 1, _next_crossing(live - live[winner], size, last_size))
    return found


def _next_crossing(gaps: Ints, size: int, last_size: int) -> int:
    """A size at or just below the first one after ``size`` at which some gap is positive."""
    cubic = gaps[:, 3] != 0
    found = [np.roots(row[::-1]) for row in gaps[cubic].astype(np.float64)]
    roots = [r.real[np.abs(r.imag) <= _NEARLY_REAL * np.abs(r)] for r in found]
    c0, c1, c2, _ = gaps[~cubic].astype(np.float64).T
    line = c2 == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        roots.append(np.where(line & (c1 > 0), -c0 / c1, np.inf))
        spread = np.sqrt(c1 * c1 - 4 * c2 * c0)
        roots += [np.where(line, np.inf, (-c1 + sign * spread) / (2 * c2)) for sign in (-1, 1)]
    joined = np.concatenate(roots)
    later = joined[np.isfinite(joined) & (joined >= size) & (joined <= last_size)]
    return int(np.floor(later.min())) if later.size else last_size + 1
