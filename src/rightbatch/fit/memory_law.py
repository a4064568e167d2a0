"""The exact law of peak memory against micro-batch size, from streams that align.

Every storage of a step has a size that is a polynomial in the batch size b: affine, or quadratic
where examples meet each other. So is the live memory m_k(b) after each event k, and the peak is

    peak(b) = max_k m_k(b)

an upper envelope with few pieces. Coefficients are integers over one denominator, so nothing is
rounded. Only an instant that follows a birth and precedes a death can be the peak.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.samples import MemoryTrace, Owner

Ints = NDArray[np.int64]

LARGEST_SIZE = 2**20
"""Micro-batch sizes beyond this are never asked for; the envelope is built up to here."""
_INT64_SAFE = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Batch sizes over which one instant of the step is the peak."""

    first_size: int
    """Smallest micro-batch size of the piece; it ends where the next begins."""
    coefficients: tuple[int, ...]
    """Of b**0, b**1, b**2, over the law's denominator, in bytes."""
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
    residual_bytes: int
    """Largest error at a held-out size."""
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
    def first_size(self) -> int:
        """Smallest traced size that follows it."""
        return min((*self.anchors, *self.held_out))

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


def aligned(first: MemoryTrace, second: MemoryTrace) -> bool:
    """Whether two traces list the same births and deaths in the same order."""
    return signature(first) == signature(second)


def signature(trace: MemoryTrace) -> tuple[object, ...]:
    """What two traces must share to be compared event by event."""
    falls = np.asarray(trace.delta_bytes) < 0
    return (trace.source, trace.operators, trace.operator, trace.phase, falls.tobytes())


def fit_law(traces: Sequence[MemoryTrace]) -> Law:
    """Interpolate aligned traces event by event and take the upper envelope.

    The largest sizes fix the coefficients: a line, or a parabola where some instant of another
    size is not on its line.

    Args:
        traces: at least two, aligned, of different sizes.
    """
    ordered = sorted(traces, key=lambda t: t.micro_batch_size)
    sizes = [t.micro_batch_size for t in ordered]
    deltas = np.array([t.delta_bytes for t in ordered], dtype=np.int64)
    degree = 1
    if len(sizes) >= 3:
        degree = min((1, 2), key=lambda d: _largest_error(sizes, deltas, d))
    coefficients, denominator = _interpolate(sizes[-degree - 1 :], deltas[-degree - 1 :])
    pieces, last_size = _pieces(ordered[-1], coefficients, smallest=sizes[-degree - 1])
    law = Law(
        source=ordered[-1].source,
        anchors=tuple(sizes[-degree - 1 :]),
        held_out=tuple(sizes[: -degree - 1]),
        residual_bytes=0,
        denominator=denominator,
        pieces=pieces,
        last_size=last_size,
    )
    peaks = np.cumsum(deltas, axis=1).max(axis=1)
    errors = [abs(law.peak_bytes(b) - int(p)) for b, p in zip(sizes, peaks, strict=True)]
    return replace(law, residual_bytes=max(errors))


def line_through_peaks(traces: Sequence[MemoryTrace]) -> tuple[Law, float]:
    """Bound the peak of streams that do not align by the line through their outermost peaks.

    Args:
        traces: at two or more sizes.

    Returns:
        The line as a law, and the share by which peaks or the slope may be off: the largest
        relative error of the line at a traced size and of its slope against that of any half.
    """
    ordered = sorted(traces, key=lambda t: t.micro_batch_size)
    sizes = [t.micro_batch_size for t in ordered]
    peaks = [peak_parts(t) for t in ordered]
    outer = (sizes[0], sizes[-1])
    owners: list[Owner] = list(peaks[-1][1])
    table = np.array([[p[1].get(o, 0) for o in owners] for p in (peaks[0], peaks[-1])], dtype=np.int64)
    coefficients, denominator = _interpolate(outer, table)
    total = coefficients.sum(axis=0)
    piece = Piece(
        first_size=1,
        coefficients=_as_ints(total),
        parts={o: _as_ints(row) for o, row in zip(owners, coefficients, strict=True)},
        phase=peaks[-1][2],
        operator=peaks[-1][3],
    )
    law = Law(
        source=ordered[-1].source,
        anchors=outer,
        held_out=tuple(sizes[1:-1]),
        residual_bytes=0,
        denominator=denominator,
        pieces=(piece,),
        last_size=_last_safe_size(total[None]),
    )
    misses = {b: law.peak_bytes(b) - p[0] for b, p in zip(sizes, peaks, strict=True)}
    share = max(abs(m) / p[0] for m, p in zip(misses.values(), peaks, strict=True))
    slope = (peaks[-1][0] - peaks[0][0]) / (outer[1] - outer[0])
    half = (outer[1] - outer[0]) / 2
    slopes = [
        (q[0] - p[0]) / (c - b)
        for b, p in zip(sizes, peaks, strict=True)
        for c, q in zip(sizes, peaks, strict=True)
        if c - b >= half
    ]
    if slope > 0:
        share = max(share, *(abs(s / slope - 1) for s in slopes))
    return replace(law, residual_bytes=max(abs(m) for m in misses.values())), share


def peak_parts(trace: MemoryTrace) -> tuple[int, dict[Owner, int], str, str]:
    """Peak bytes of one trace, its parts by owner, its phase and its operator."""
    deltas = np.asarray(trace.delta_bytes, dtype=np.int64)
    at = int(np.argmax(np.cumsum(deltas)))
    owners = np.asarray(trace.owner)[: at + 1]
    parts = {o: int(deltas[: at + 1][owners == i].sum()) for i, o in enumerate(trace.owners)}
    phase, operator = trace.phases[trace.phase[at]], trace.operators[trace.operator[at]]
    return sum(parts.values()), parts, phase, operator


def _largest_error(sizes: list[int], deltas: Ints, degree: int) -> float:
    """Largest error of the live memory at any instant of any traced size."""
    coefficients, denominator = _interpolate(sizes[-degree - 1 :], deltas[-degree - 1 :])
    predicted = _horner(coefficients, np.array(sizes)[:, None]) / denominator
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
        sizes: two or three different sizes.
        deltas: bytes at each, shape [size, event].

    Returns:
        Coefficients over a common denominator, shape [event, 3], and the denominator.
    """
    if len(sizes) == 2:
        (b0, b1), (y0, y1) = sizes, deltas
        denominator = b1 - b0
        columns = [y0 * b1 - y1 * b0, y1 - y0, np.zeros_like(y0)]
    else:
        (b0, b1, b2), (y0, y1, y2) = sizes, deltas
        denominator = (b1 - b0) * (b2 - b0) * (b2 - b1)
        w0, w1, w2 = y0 * (b2 - b1), -y1 * (b2 - b0), y2 * (b1 - b0)
        columns = [
            w0 * b1 * b2 + w1 * b0 * b2 + w2 * b0 * b1,
            -(w0 * (b1 + b2) + w1 * (b0 + b2) + w2 * (b0 + b1)),
            w0 + w1 + w2,
        ]
    table = np.stack(columns, axis=1)
    shared = int(np.gcd.reduce(np.append(table.ravel(), denominator)))
    return table // shared, denominator // shared


def _candidates(coefficients: Ints, smallest: int) -> NDArray[np.intp]:
    """Events after which the live memory may be the peak: no certain death, no certain birth next."""
    at_smallest = _horner(coefficients, np.full(len(coefficients), smallest))
    grows = (at_smallest >= 0) & (coefficients[:, 1:] >= 0).all(axis=1)
    shrinks = (at_smallest <= 0) & (coefficients[:, 1:] <= 0).all(axis=1)
    return np.flatnonzero(~shrinks & ~np.append(grows[1:], False))


def _horner(coefficients: Ints, sizes: Ints) -> Ints:
    return (coefficients[..., 2] * sizes + coefficients[..., 1]) * sizes + coefficients[..., 0]


def _last_safe_size(live: Ints) -> int:
    """Largest size, at most ``LARGEST_SIZE``, at which no sum overflows 64 bits."""
    c0, c1, c2 = (int(c) for c in np.abs(live).max(axis=0))
    size = LARGEST_SIZE
    while c0 + c1 * size + c2 * size**2 >= _INT64_SAFE:
        size //= 2
    return size


def _envelope(live: Ints, last_size: int) -> list[tuple[int, int]]:
    """Walk the sizes from 1 up: which row is largest, from which size on.

    Args:
        live: polynomials, shape [candidate, 3].
        last_size: where to stop.

    Returns:
        Pairs of first size and row, in order of size.
    """
    found: list[tuple[int, int]] = []
    size = 1
    while size <= last_size:
        values = _horner(live, np.full(len(live), size))
        ties = np.flatnonzero(values == values.max())
        winner = int(ties[np.lexsort((live[ties, 1], live[ties, 2]))[-1]])
        if not found or (live[found[-1][1]] != live[winner]).any():
            found.append((size, winner))
        size = max(size + 1, _next_crossing(live - live[winner], size, last_size))
    return found


def _next_crossing(gaps: Ints, size: int, last_size: int) -> int:
    """A size at or just below the first one after ``size`` at which some gap is positive."""
    c0, c1, c2 = gaps.astype(np.float64).T
    roots: list[NDArray[np.float64]] = []
    line = c2 == 0
    with np.errstate(divide="ignore", invalid="ignore"):
        roots.append(np.where(line & (c1 > 0), -c0 / c1, np.inf))
        spread = np.sqrt(c1 * c1 - 4 * c2 * c0)
        roots += [np.where(line, np.inf, (-c1 + sign * spread) / (2 * c2)) for sign in (-1, 1)]
    joined = np.concatenate(roots)
    later = joined[np.isfinite(joined) & (joined >= size) & (joined <= last_size)]
    return int(np.floor(later.min())) if later.size else last_size + 1
