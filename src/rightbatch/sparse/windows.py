"""Windows cut from labelled sequences of any length, some of them centred on a positive.

Which window is item ``i`` is a function of the seed and of ``i`` alone: any worker can read it, a run
that is resumed reads the same, and nothing but a table of the positives is kept beside the sequences.

A plain window takes a base at random, and with it a sequence by its length; the window then starts
anywhere inside the sequence. A centred one takes a positive at random, puts it in the middle and
shifts by up to ``jitter``, staying inside. Where a sequence is shorter than the window, the window
holds all of it, and the rest is padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from rightbatch.core.errors import InvalidInputError
from rightbatch.sparse.losses import IGNORE_INDEX

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledSequences:
    """Sequences and a label for each of their positions; arrays are kept as they are, never copied."""

    inputs: tuple[Array, ...]
    """Each [length] or [length, channels]; a memory map will do."""
    labels: tuple[Array, ...]
    """Each integer [length]: 0 is the background, ``IGNORE_INDEX`` does not count."""
    padding: int | None = None
    """The input that stands for nothing known, such as the code of N; None forbids padding."""

    def __post_init__(self) -> None:
        """Refuse sequences that cannot be sampled.

        Raises:
            InvalidInputError: none at all, labels of another length, a sequence with nothing known
                in it, no positive, or nothing but positives.
        """
        if not self.inputs or len(self.inputs) != len(self.labels):
            found = f"{len(self.inputs)} sequences and {len(self.labels)} arrays of labels"
            raise InvalidInputError(found, need="as many of one as of the other", hint="pair them")
        for index, (values, labels) in enumerate(zip(self.inputs, self.labels, strict=True)):
            if len(values) != len(labels) or len(values) == 0:
                found = f"sequence {index} of length {len(values)} with {len(labels)} labels"
                hint = "give every position a label"
                raise InvalidInputError(found, need="one label for each position", hint=hint)
            if labels.dtype.kind not in "biu" or bool(((labels < 0) & (labels != IGNORE_INDEX)).any()):
                found = f"labels of sequence {index}: {labels.dtype}, {np.unique(labels)[:4]}"
                need = f"integers of at least 0, or {IGNORE_INDEX} where a position does not count"
                raise InvalidInputError(found, need=need, hint="labels.astype(int), without nan")
            if self.padding is not None and bool((np.asarray(values) == self.padding).all()):
                found = f"sequence {index} holds nothing but {self.padding}, the padding"
                raise InvalidInputError(found, need="something known in it", hint="leave it out")
        positives = sum(int((labels > 0).sum()) for labels in self.labels)
        if positives in {0, sum(int((labels >= 0).sum()) for labels in self.labels)}:
            found = f"{positives} positives, {self.num_positions - positives} other positions"
            hint = "label the background 0 and positives 1 or more"
            raise InvalidInputError(found, need="some of both", hint=hint)

    @property
    def num_positions(self) -> int:
        """Length of all sequences together."""
        return sum(len(labels) for labels in self.labels)


class Place(NamedTuple):
    """Where a window lies; its start may be negative and its end beyond, where it is padded."""

    sequence: int
    start: int
    centred: bool


class RandomWindows(Dataset[tuple[Tensor, Tensor]]):
    """A map-style data set of ``num_windows`` draws: inputs [window + 2 context], labels [window]."""

    def __init__(
        self,
        sequences: LabelledSequences,
        *,
        window: int,
        num_windows: int,
        context: int = 0,
        centred: float = 0.0,
        jitter: int = 0,
        stratified: bool = True,
        seed: int = 0,
    ) -> None:
        """Draw nothing yet.

        Args:
            sequences: what windows are cut from.
            window: labelled positions of a window.
            num_windows: length of an epoch; every item is a draw of its own.
            context: further input on either side, without labels.
            centred: share of windows centred on a positive; 0 samples plainly.
            jitter: largest shift of a centred window, below half a window.
            stratified: spread the centred windows evenly, so that any stretch of items holds its
                share of them within one: read in order (``sampler="sequential"``), every batch
                does. Otherwise each window is centred by chance.
            seed: of the draws.

        Raises:
            InvalidInputError: an option out of its range, or windows or context that reach
                beyond a sequence that may not be padded.
        """
        if min(window, num_windows) < 1 or context < 0 or seed < 0:
            found = f"window {window}, num_windows {num_windows}, context {context}, seed {seed}"
            need = "window and num_windows of at least 1, context and seed of at least 0"
            raise InvalidInputError(found, need=need, hint="change the one that is less")
        if not 0 <= centred <= 1 or not 0 <= jitter <= (window - 1) // 2:
            found = f"centred = {centred}, jitter = {jitter} with windows of {window}"
            need = "a share of 0 to 1, and a jitter that keeps the positive inside"
            raise InvalidInputError(found, need=need, hint="centred=0.5, jitter=window // 4")
        _check_padding(sequences, window, context, whole=False)
        self.sequences, self.window, self.context = sequences, window, context
        self.centred, self.jitter, self.stratified, self.seed = centred, jitter, stratified, seed
        self._num_windows = num_windows
        self._ends = np.cumsum([len(labels) for labels in sequences.labels])
        found = [np.flatnonzero(labels > 0) for labels in sequences.labels]
        self._positives = np.concatenate(found)
        self._owners = np.repeat(np.arange(len(found)), [len(where) for where in found])

    def __len__(self) -> int:
        return self._num_windows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        place = self.place(index)
        return cut(self.sequences, place.sequence, place.start, self.window, self.context)

    def place(self, index: int) -> Place:
        """Where window ``index`` lies; the same in every process, run and order.

        Raises:
            IndexError: there is no such window, as a sequence says it.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        generator = np.random.default_rng((self.seed, index))
        if self._is_centred(index, generator):
            chosen = int(generator.integers(len(self._positives)))
            sequence = int(self._owners[chosen])
            shift = int(generator.integers(-self.jitter, self.jitter + 1))
            start = int(self._positives[chosen]) - self.window // 2 + shift
            low, high = starts(len(self.sequences.labels[sequence]), self.window)
            return Place(sequence, min(max(start, low), high), True)
        base = int(generator.integers(self._ends[-1]))
        sequence = int(np.searchsorted(self._ends, base, side="right"))
        low, high = starts(len(self.sequences.labels[sequence]), self.window)
        return Place(sequence, int(generator.integers(low, high + 1)), False)

    def _is_centred(self, index: int, generator: np.random.Generator) -> bool:
        if self.stratified:
            return floor((index + 1) * self.centred) > floor(index * self.centred)
        return bool(generator.random() < self.centred)


class TiledWindows(Dataset[tuple[Tensor, Tensor]]):
    """Every position of every sequence exactly once, in order: what evaluation reads."""

    def __init__(self, sequences: LabelledSequences, *, window: int, context: int = 0) -> None:
        """Cut each sequence into tiles; the last one of each is padded.

        Raises:
            InvalidInputError: a length below its least, or padding is needed and forbidden.
        """
        if window < 1 or context < 0:
            found = f"window {window}, context {context}"
            raise InvalidInputError(found, need="window >= 1 and context >= 0", hint="change it")
        _check_padding(sequences, window, context, whole=True)
        self.sequences, self.window, self.context = sequences, window, context
        self._places = [
            (index, start)
            for index, labels in enumerate(sequences.labels)
            for start in range(0, len(labels), window)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sequence, start = self._places[index]
        return cut(self.sequences, sequence, start, self.window, self.context)


def starts(length: int, window: int) -> tuple[int, int]:
    """First and last start of a window inside a sequence, or of one that holds all of it.

    >>> starts(10, 4), starts(4, 10)
    ((0, 6), (-6, 0))
    """
    return min(0, length - window), max(0, length - window)


def _check_padding(sequences: LabelledSequences, window: int, context: int, *, whole: bool) -> None:
    """Refuse windows that reach beyond a sequence where nothing was named to stand there.

    Raises:
        InvalidInputError: a window, its context or a last tile would have to be padded.
    """
    lengths = [len(labels) for labels in sequences.labels]
    beyond = [n for n in lengths if n < window or context or (whole and n % window)]
    if sequences.padding is None and beyond:
        found = f"windows of {window} with context {context}, and a sequence of length {beyond[0]}"
        need = "sequences that hold every window, or an input that stands for nothing"
        raise InvalidInputError(found, need=need, hint="name it: LabelledSequences(padding=4)")


def cut(
    sequences: LabelledSequences, index: int, start: int, window: int, context: int
) -> tuple[Tensor, Tensor]:
    """One window's inputs [window + 2 context, ...] and labels int64 [window], padded where outside."""
    values, labels = sequences.inputs[index], sequences.labels[index]
    fill = sequences.padding or 0  # None was refused wherever it would be needed
    inside = _padded(values, start - context, window + 2 * context, fill)
    inputs = torch.from_numpy(inside.astype(np.int64) if inside.dtype.kind in "iu" else inside)
    return inputs, torch.from_numpy(_padded(labels, start, window, IGNORE_INDEX).astype(np.int64))


def _padded(values: Array, start: int, length: int, fill: int) -> Array:
    low, high = max(start, 0), min(start + length, len(values))
    kind = np.result_type(values.dtype, np.int16) if fill < 0 else values.dtype
    out = np.full((length, *values.shape[1:]), fill, kind)
    if low < high:
        out[low - start : high - start] = values[low:high]
    return out
