"""``rightbatch speed`` on a device that is not here, and with levers."""

from pathlib import Path

import pytest

from cli_runner import assert_three_parts, run_cli
from rightbatch.core.samples import Measurements
from rightbatch.core.store import read_record, write_record
from rightbatch.measure import levers


def test_an_accelerator_that_is_not_here_gets_a_derived_time_with_a_range() -> None:
    called = run_cli("speed", "digits", "--device", "cuda:a100-40gb", "--batch", "8,4096", "--json")
    assert called.code == 0
    small, large = called.document["predictions"]
    assert called.document["evidence"] == "derived"
    assert small["low"] < small["seconds"] < small["high"]
    assert large["flops"] == 512 * small["flops"]
    assert "Derived, not measured" in run_cli("speed", "digits", "--device", "cuda:t4").out


def test_levers_are_measured_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levers, "_compiled", lambda timer, size: None)  # a minute of compiling
    called = run_cli("speed", "digits", "--levers", "--time-budget", "3s", "--json")
    assert called.code == 0
    names = {lever["name"] for lever in called.document["levers"]}
    assert {"bf16 autocast", "torch.compile", "1 loader worker"} <= names
    assert called.document["work"]["flops_per_example"] > 0


def test_what_cut_or_disturbed_the_timing_is_said(saved: Path) -> None:
    path = saved / "measurements.json"
    note = "speed: timed on a busy machine (load average 3.0 per core), so times are too high"
    write_record(path, read_record(path, Measurements).replace(notes=(note,)))
    assert f"Note: {note}" in run_cli("speed", saved).out.replace("\n", " ")
    assert run_cli("speed", saved, "--json").document["notes"] == [note]


def test_options_that_say_nothing_are_refused(saved: Path) -> None:
    called = run_cli("speed", "digits", "--levers", "--device", "cuda:t4")
    assert_three_parts(called, code=2, found="--levers", need="a device that is here", hint="leave out")
    called = run_cli("speed", "digits", "--batch", "8")
    assert_three_parts(called, code=2, found="--batch 8", need="--device cuda:NAME", hint="speed TASK")
    called = run_cli("speed", saved, "--levers")
    assert_three_parts(called, code=2, found="--levers", need="a task to run", hint="name the task")
