"""The ledger of a study: entries for good, many writers, damage, other versions and full disks."""

import multiprocessing
import resource
import shutil
import signal
import sqlite3
import time
from pathlib import Path
from typing import Literal

import pytest

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.record import Record
from rightbatch.core.store import read_record, write_record
from rightbatch.core.sweep import Arm
from rightbatch.validate.ledger import Ledger, open_ledger, same_question, sole_owner

FORK = multiprocessing.get_context("fork")


def arm(seed: int, updates: float = 10.0) -> Arm:
    return Arm(
        batch_size=8,
        factor=1.0,
        learning_rate=0.1,
        seed=seed,
        outcome="reached",
        updates=updates,
        value=0.5,
    )


def test_an_entry_stays_as_it_was_first_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.sqlite"
    with open_ledger(path) as ledger:
        assert ledger.get("a", Arm) is None
        assert ledger.append("a", arm(0))
        assert not ledger.append("a", arm(1))
        assert ledger.append("b", arm(2))
    with open_ledger(path) as ledger:
        assert (ledger.keys(), ledger.get("a", Arm), ledger.get("b", Arm)) == (
            ["a", "b"],
            arm(0),
            arm(2),
        )
    plain = sqlite3.connect(path)
    for change in ("UPDATE entries SET key = 'c'", "DELETE FROM entries"):
        with pytest.raises(sqlite3.IntegrityError, match="append only"):
            plain.execute(change)
    plain.close()


def write(path: Path, writer: int) -> None:
    with open_ledger(path) as ledger:
        for number in range(40):
            assert ledger.append(f"{writer}:{number}", arm(number))
            ledger.append(f"shared {number}", arm(writer))


def test_many_processes_make_and_fill_one_ledger(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    writers = [FORK.Process(target=write, args=(path, n)) for n in range(4)]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
    assert [process.exitcode for process in writers] == [0] * 4
    with open_ledger(path) as ledger:
        keys = ledger.keys()
    assert len(keys) == len({*keys}) == 5 * 40
    for writer in range(4):
        own = [key for key in keys if key.startswith(f"{writer}:")]
        assert own == [f"{writer}:{number}" for number in range(40)]


def test_a_ledger_whose_log_was_cut_lacks_no_more_than_its_last_entry(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with open_ledger(path) as ledger:
        for number in range(5):
            ledger.append(str(number), arm(number))
        whole = (tmp_path / "ledger.sqlite-wal").read_bytes()
        for cut in range(1, 4097, 273):
            torn = tmp_path / f"cut{cut}" / path.name
            torn.parent.mkdir()
            shutil.copy(path, torn)
            Path(f"{torn}-wal").write_bytes(whole[:-cut])
            with open_ledger(torn) as other:
                assert other.keys() == ["0", "1", "2", "3"]
                assert other.append("4", arm(4))


def test_a_ledger_or_an_entry_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with open_ledger(path) as ledger:
        ledger.append("a", arm(0))
    plain = sqlite3.connect(path, isolation_level=None)
    document = arm(1).model_dump_json().replace('"schema_version":1', '"schema_version":9')
    plain.execute("INSERT INTO entries (key, document) VALUES ('b', ?)", (document,))
    with (
        open_ledger(path) as ledger,
        pytest.raises(InvalidInputError, match=r"b in .*ledger\.sqlite has schema_version 9"),
    ):
        ledger.get("b", Arm)
    plain.execute("PRAGMA user_version = 7")
    plain.close()
    with pytest.raises(InvalidInputError, match="has schema_version 7"), open_ledger(path):
        pass


def test_what_is_no_ledger_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_text("this is no ledger at all, but long enough to be looked at by SQLite" * 10)
    with pytest.raises(InvalidInputError, match=r"cannot use .*: file is not a database"):
        open_ledger(path).__enter__()
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match=r"cannot use .*: (Not a directory|File exists)"):
        open_ledger(tmp_path / "file" / "ledger.sqlite").__enter__()


def write_many(ledger: Ledger) -> None:
    for number in range(1000):
        ledger.append(str(number), arm(number))


def fill(path: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with open_ledger(path) as ledger:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        with pytest.raises(InvalidInputError, match=r"cannot use .*need .* with space left") as full:
            write_many(ledger)
        assert "free space" in full.value.hint
        kept = len(ledger.keys())
        assert kept > 5
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert ledger.append("after", arm(0))
        assert ledger.keys() == [*map(str, range(kept)), "after"]


def test_a_full_disk_is_said_and_harms_no_entry(tmp_path: Path) -> None:
    process = FORK.Process(target=fill, args=(tmp_path / "ledger.sqlite",))
    process.start()
    process.join()
    assert process.exitcode == 0
    with open_ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.keys()[-1] == "after"


def hold(folder: Path, seconds: float) -> None:
    with sole_owner(folder):
        (folder / "held").touch()
        time.sleep(seconds)


def test_an_owner_that_is_just_going_is_waited_for(tmp_path: Path) -> None:
    process = FORK.Process(target=hold, args=(tmp_path, 0.2))
    process.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.002)
    with sole_owner(tmp_path):
        pass
    process.join()


class _Question(Record):
    schema_version: Literal[1] = 1
    seeds: int
    rates: int = 3


def test_a_question_may_grow_and_nothing_else(tmp_path: Path) -> None:
    path, seeds = tmp_path / "question.json", frozenset({"seeds"})
    same_question(path, _Question(seeds=2), seeds)
    assert same_question(path, _Question(seeds=3), seeds).seeds == 3
    for fewer in (_Question(seeds=2), _Question(seeds=3, rates=5)):
        with pytest.raises(InvalidInputError, match=r"= ., while .* began with 3; need what was fixed"):
            same_question(path, fewer, seeds)
    assert read_record(path, _Question).seeds == 3


def test_a_question_of_another_kind_is_said_to_be_one(tmp_path: Path) -> None:
    write_record(tmp_path / "question.json", arm(0))
    with pytest.raises(
        InvalidInputError, match="of another kind; need a folder for each study"
    ) as told:
        same_question(tmp_path / "question.json", _Question(seeds=2))
    assert "--out" in told.value.hint
