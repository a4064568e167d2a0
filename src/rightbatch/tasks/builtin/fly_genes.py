"""586 gene loci of Drosophila's chromosome 2R with their splice sites, from Debian's augustus-doc.

The package's tutorial holds a training and a test set as GenBank records (one locus each, with 1,000
bases or less to either side of the gene) and, as GFF, every transcript that Scipio placed on the same
coordinates. A locus is read on its gene's strand; all transcripts of that strand label it. Introns
outside coding sequence are not annotated, so some sites are labelled as none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rightbatch.core.errors import InvalidInputError, MissingDataError
from rightbatch.tasks.builtin import AUGUSTUS_VARIABLE, augustus_root

NONE, ACCEPTOR, DONOR = 0, 1, 2
CLASSES = ("none", "acceptor", "donor")
UNKNOWN = 4  # the code of a base that is none of A, C, G, T; also what pads a window

_CODES = np.full(256, UNKNOWN, np.uint8)
for _code, _base in enumerate("acgt"):
    _CODES[[ord(_base), ord(_base.upper())]] = _code
_COMPLEMENT = np.array([3, 2, 1, 0, UNKNOWN], np.uint8)
_A, _C, _G, _T = range(4)

Introns = NDArray[np.int64]  # [N, 2], first and last base, counted from 1


class Locus(NamedTuple):
    """A gene with its surroundings, on its own strand."""

    name: str
    bases: NDArray[np.uint8]
    """A, C, G, T as 0 to 3, anything else 4; [length]."""
    labels: NDArray[np.uint8]
    """Acceptor at the first base of an exon, donor at the last; [length]."""


def load_loci(split: str, root: Path | None = None) -> list[Locus]:
    """The loci of split ``train`` (486) or ``test`` (100).

    Args:
        split: which.
        root: the folder that holds ``results``; None is where the package lies.

    Raises:
        MissingDataError: the files are absent; names the package and the ways to get it.
        InvalidInputError: a file is damaged.
    """
    folder = (augustus_root() if root is None else root) / "results"
    introns = _read_introns(_text(folder / "scipio.gff"))
    return [_label(record, introns) for record in _records(_text(folder / f"genes.gb.{split}"))]


def _text(path: Path) -> str:
    if not path.is_file():
        hint = (
            "as root: apt-get install --no-install-recommends augustus-doc (images that leave out"
            " /usr/share/doc need the other way); without root: apt-get download augustus-doc"
            " && dpkg -x augustus-doc_*.deb DIR"
            f" && export {AUGUSTUS_VARIABLE}=DIR/usr/share/doc/augustus/tutorial"
        )
        raise MissingDataError(f"no {path}", "the tutorial of Debian's package augustus-doc", hint)
    return path.read_text(encoding="ascii", errors="replace")


class _Record(NamedTuple):
    """One GenBank record, as it stands in the file."""

    name: str
    first: int
    """Of its bases on the chromosome part, counted from 1."""
    strand: str
    bases: NDArray[np.uint8]


_LOCUS = re.compile(r"LOCUS\s+(\S+_(\d+)-(\d+))\s+(\d+) bp")
_CDS = re.compile(r"^\s+CDS\s+(\S+)", re.MULTILINE)


def _records(text: str) -> Iterator[_Record]:
    """Read every record up to its ``//``.

    Raises:
        InvalidInputError: one without name, coding sequence or bases, or with another length than
            it says; or none at all.
    """
    parts = [part for part in re.split(r"^//\s*$", text, flags=re.MULTILINE) if part.strip()]
    for part in parts or [""]:
        header, _, origin = part.partition("ORIGIN")
        locus, cds = _LOCUS.search(header), _CDS.search(header)
        letters = re.sub(r"[^a-zA-Z]", "", origin)
        if locus is None or cds is None or not len(letters) == int(locus[4]) > 0:
            found = f"a GenBank record with {len(letters)} bases: {header.strip()[:60]!r}"
            need = "LOCUS name_first-last with as many bases as it says, and a CDS"
            raise InvalidInputError(found, need=need, hint="install augustus-doc again")
        strand = "-" if cds[1].startswith("complement") else "+"
        bases = _CODES[np.frombuffer(letters.encode("ascii"), np.uint8)]
        yield _Record(locus[1], int(locus[2]), strand, bases)


def _read_introns(text: str) -> dict[str, Introns]:
    """Introns of every transcript by strand: what lies between two of its coding segments.

    Raises:
        InvalidInputError: a line that is no GFF.
    """
    transcripts: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split("\t")
        if len(fields) != 9 or not (fields[3] + fields[4]).isdigit():
            found = f"scipio.gff line {number}: {line[:60]!r}"
            raise InvalidInputError(found, need="nine fields of GFF", hint="install augustus-doc again")
        place = transcripts.setdefault((fields[6], fields[8]), [])
        place.append((int(fields[3]), int(fields[4])))
    introns: dict[str, list[tuple[int, int]]] = {"+": [], "-": []}
    for (strand, _), segments in transcripts.items():
        pairs = pairwise(sorted(segments))
        introns[strand] += [(end + 1, start - 1) for (_, end), (start, _) in pairs]
    return {strand: np.array(rows, np.int64).reshape(-1, 2) for strand, rows in introns.items()}


def _label(record: _Record, introns: dict[str, Introns]) -> Locus:
    """Turn a record to its gene's strand and mark the ends of introns that read GT-AG or GC-AG."""
    rows = introns[record.strand] - record.first  # counted from 0 within the locus
    bases = record.bases
    if record.strand == "-":
        rows = len(bases) - 1 - rows[:, ::-1]
        bases = _COMPLEMENT[bases[::-1]]
    labels = np.zeros(len(bases), np.uint8)
    inside = (rows[:, 0] >= 1) & (rows[:, 1] <= len(bases) - 2) & (rows[:, 1] - rows[:, 0] >= 3)
    for first, last in rows[inside]:
        donor, acceptor = tuple(bases[first : first + 2]), tuple(bases[last - 1 : last + 1])
        if donor in {(_G, _T), (_G, _C)} and acceptor == (_A, _G):
            labels[first - 1], labels[last + 1] = DONOR, ACCEPTOR
    return Locus(record.name, bases, labels)
