"""Files are written whole or not at all, and refused when they are not what is wanted."""

import os
import stat
from pathlib import Path

import pytest

import known
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.plan import Plan
from rightbatch.core.samples import Measurements
from rightbatch.core.store import read_json, read_record, write_record, write_text


def test_a_record_reads_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "measurements.json"
    write_record(path, known.measurements())
    assert read_record(path, Measurements) == known.measurements()
    assert list(path.parent.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("name", ["replace", "fsync", "chmod"])
def test_a_failure_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, name, fail)
    with pytest.raises(InvalidInputError, match=r"cannot write .*file\.txt: No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_passes_through_and_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def interrupt(*_: object) -> None:
        raise error("now")

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(error, match="now"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="need a folder that can be written") as caught:
        write_text(tmp_path / "file" / "plan.toml", "")
    assert "--out (train: --run)" in caught.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidInputError, match="Permission denied"):
        write_text(tmp_path / "plan.toml", "")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot read .*none\.json: No such file"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"task": ', "is no JSON"),
        ("", "is no JSON"),
        ("[1]", "holds no JSON object"),
        ("null", "holds no JSON object"),
    ],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(InvalidInputError, match=rf"broken\.json {found}"):
        read_record(tmp_path / "broken.json", Measurements)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match=r"binary\.json is no JSON"):
        read_json(tmp_path / "binary.json")


@pytest.mark.parametrize("version", ["2", '"1"', "null"])
def test_another_schema_version_is_refused_before_anything_else(tmp_path: Path, version: str) -> None:
    path = tmp_path / "measurements.json"
    path.write_text(f'{{"schema_version": {version}, "from_the_future": 1}}')
    with pytest.raises(InvalidInputError, match=r"has schema_version .*need schema_version 1"):
        read_record(path, Measurements)


def test_a_record_of_another_kind_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "measurements.json"
    write_record(path, known.measurements())
    with pytest.raises(InvalidInputError, match=r"measurements\.json: unknown key"):
        read_record(path, Plan)
