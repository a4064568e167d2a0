"""Loci are read from GenBank records and labelled by GFF transcripts, on the gene's own strand."""

from pathlib import Path

import numpy as np
import pytest

from rightbatch.core.errors import InvalidInputError, MissingDataError
from rightbatch.tasks.builtin import AUGUSTUS_ROOT, AUGUSTUS_VARIABLE, augustus_root, is_data_present
from rightbatch.tasks.builtin.fly_genes import ACCEPTOR, DONOR, load_loci

#              exon      intron GT..AG    exon      intron GC..AG  exon
FORWARD = "aaaaccccc" + "gtaaaaaacag" + "ggggg" + "gcttttttag" + "cccna"
OFFSET = 101  # where the locus starts on the chromosome


def exons() -> list[tuple[int, int]]:
    """First and last base of each exon within the locus, counted from 1."""
    return [(5, 9), (21, 25), (36, 39)]


def genbank(name: str, bases: str, cds: str) -> str:
    rows = [bases[i : i + 20] for i in range(0, len(bases), 20)]
    numbered = (
        f"{1 + 20 * i:9} {' '.join((row[:10], row[10:])).strip()}" for i, row in enumerate(rows)
    )
    lines = [
        f"LOCUS       {name}   {len(bases)} bp  DNA",
        "FEATURES             Location/Qualifiers",
        f"     CDS             {cds}",
        '                     /gene="1"',
        "ORIGIN",
        *numbered,
        "//",
    ]
    return "\n".join(lines) + "\n"


def gff(strand: str, segments: list[tuple[int, int]], transcript: str = "1") -> str:
    fields = [
        ("chr2R", "Scipio", "CDS", a, b, "1.0", strand, 0, f'transcript_id "{transcript}"')
        for a, b in segments
    ]
    return "".join("\t".join(map(str, row)) + "\n" for row in fields)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    last = OFFSET + len(FORWARD) - 1
    other = str.maketrans("acgt", "tgca")
    turned = FORWARD[::-1].translate(other)
    places = [(a + OFFSET - 1, b + OFFSET - 1) for a, b in exons()]
    mirrored = [(1000 + OFFSET + last - b, 1000 + OFFSET + last - a) for a, b in places]
    records = genbank(f"chr2R_{OFFSET}-{last}", FORWARD, "join(5..9,21..25,\n          36..39)")
    records += genbank(
        f"chr2R_{1000 + OFFSET}-{1000 + last}", turned, "complement(join(2..5,16..20,32..36))"
    )
    (tmp_path / "results" / "genes.gb.train").write_text(records, encoding="ascii")
    lines = gff("+", places[::-1]) + gff("-", mirrored, "2") + gff("-", places, "3")
    # introns without GT or GC, cut by the end, of 1 base, without AG
    lines += gff("+", [(OFFSET, OFFSET + 1), (OFFSET + 12, OFFSET + 13)], "4")
    lines += gff("+", [(OFFSET + 37, OFFSET + 37), (OFFSET + 60, OFFSET + 70)], "5")
    lines += gff("+", [(OFFSET + 2, OFFSET + 3), (OFFSET + 5, OFFSET + 6)], "6")
    lines += gff("+", [(OFFSET + 4, OFFSET + 8), (OFFSET + 14, OFFSET + 16)], "7")
    (tmp_path / "results" / "scipio.gff").write_text(lines, encoding="ascii")
    return tmp_path


def test_both_strands_read_the_same_gene_with_the_same_labels(folder: Path) -> None:
    forward, reverse = load_loci("train", folder)
    codes = {"a": 0, "c": 1, "g": 2, "t": 3, "n": 4}
    expected = np.zeros(len(FORWARD), np.uint8)
    expected[[8, 24]], expected[[20, 35]] = DONOR, ACCEPTOR
    for locus in (forward, reverse):
        np.testing.assert_array_equal(locus.bases, [codes[base] for base in FORWARD])
        np.testing.assert_array_equal(locus.labels, expected)
    assert forward.name == "chr2R_101-140"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("genes.gb.train", ("aaaacccccg", "aaaaccccc"), r"GenBank record with 39 bases: 'LOCUS"),
        ("genes.gb.train", ("LOCUS", "LOCU"), r"GenBank record with 40 bases"),
        ("genes.gb.train", ("CDS", "xxx"), r"need LOCUS .* and a CDS"),
        ("scipio.gff", ("+\t0", "+"), r"scipio\.gff line 1: .*need nine fields"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(
    folder: Path, file: str, change: tuple[str, str], message: str
) -> None:
    path = folder / "results" / file
    path.write_text(path.read_text("ascii").replace(*change, 1), encoding="ascii")
    with pytest.raises(InvalidInputError, match=message):
        load_loci("train", folder)


def test_an_empty_file_is_no_set_of_loci(folder: Path) -> None:
    (folder / "results" / "genes.gb.train").write_text("", encoding="ascii")
    with pytest.raises(InvalidInputError, match="GenBank record with 0 bases"):
        load_loci("train", folder)


def test_absent_data_names_the_package_and_both_ways_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(AUGUSTUS_VARIABLE, str(tmp_path))
    assert not is_data_present("splice")
    with pytest.raises(MissingDataError, match="package augustus-doc") as caught:
        load_loci("train")
    assert str(tmp_path) in caught.value.found
    assert "as root: apt-get install" in caught.value.hint
    assert "without root: apt-get download augustus-doc && dpkg -x" in caught.value.hint
    assert f"export {AUGUSTUS_VARIABLE}=" in caught.value.hint
    monkeypatch.delenv(AUGUSTUS_VARIABLE)
    assert augustus_root() == Path(AUGUSTUS_ROOT)


@pytest.mark.skipif(not is_data_present("splice"), reason="Debian's augustus-doc is not installed")
def test_the_package_holds_586_loci_whose_introns_begin_with_gt_and_end_with_ag() -> None:
    totals = []
    for split in ("train", "test"):
        loci = load_loci(split)
        labels = np.concatenate([locus.labels for locus in loci])
        totals.append((len(loci), len(labels), (labels == ACCEPTOR).sum(), (labels == DONOR).sum()))
        bases = np.concatenate([locus.bases for locus in loci])
        assert (bases[np.flatnonzero(labels == DONOR) + 1] == 2).all()  # G
        assert (bases[np.flatnonzero(labels == DONOR) + 2] == 3).mean() > 0.98  # T
        assert (bases[np.flatnonzero(labels == ACCEPTOR) - 1] == 2).all()
        assert (bases[np.flatnonzero(labels == ACCEPTOR) - 2] == 0).all()
    assert totals == [(486, 2_655_825, 1925, 1916), (100, 625_369, 391, 393)]
