"""What ``rightbatch train`` does before it trains."""

import pytest

from cli_runner import assert_three_parts, run_cli
from rightbatch.cli import train
from rightbatch.core.errors import InvalidTaskError, MeasurementError
from rightbatch.measure.memory import malloc
from rightbatch.train import exact


def test_malloc_is_pinned_before_the_task_makes_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def load(spec: str, device: str) -> None:
        called.append(f"load {spec} on {device}")
        raise InvalidTaskError("the end", need="of this test", hint="none")

    monkeypatch.setattr(malloc, "pin_malloc", lambda: called.append("pin"))
    monkeypatch.setattr(train, "load", load)
    assert run_cli("train", "digits", "--pin-malloc").code == 2
    assert called == ["pin", "load digits on cpu"]
    assert run_cli("train", "digits").code == 2
    assert called[2:] == ["load digits on cpu"]


def test_another_malloc_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise MeasurementError("musl", need="glibc's malloc", hint="run without --pin-malloc")

    monkeypatch.setattr(malloc, "pin_malloc", refuse)
    called = run_cli("train", "digits", "--pin-malloc")
    assert_three_parts(called, code=2, found="musl", need="glibc", hint="without --pin-malloc")


def test_a_check_refuses_the_options_of_a_run_and_takes_a_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["train", "digits", "--check", "--run", "runs/x", "--keep", "3", "--noise"]
    assert_three_parts(
        run_cli(*argv), code=2, found="--run, --keep, --noise", need="a check", hint="without --check"
    )
    seeds: list[int] = []
    monkeypatch.setattr(exact, "check_accumulation", lambda *_, seed, **__: seeds.append(seed))
    assert run_cli("train", "digits", "--check", "--seed", "5").code == 0
    assert seeds == [5]
