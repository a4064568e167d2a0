"""Bars on a terminal, and only there."""

import io

import pytest

from rightbatch.cli.progress import measure_bar, train_bar
from rightbatch.core.progress import Progress
from rightbatch.train.record import Progress as TrainProgress


class Terminal(io.StringIO):
    """A stderr that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def fake_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Not a fixture: pytest sets its own stderr between a fixture and its test."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    stderr = Terminal()
    monkeypatch.setattr("sys.stderr", stderr)
    return stderr


def test_nobody_is_called_where_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    with measure_bar() as on_measure, train_bar() as on_train:
        assert on_measure is None
        assert on_train is None


def test_a_measurement_shows_what_how_far_and_how_long_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = fake_terminal(monkeypatch)
    with measure_bar() as on_progress:
        assert on_progress is not None
        on_progress(Progress(stage="speed", fraction=0.25, seconds_left=45.0, message="round [3]"))
    assert all(text in terminal.getvalue() for text in ("25%", "round [3]", "45 s left"))


EVALUATED = TrainProgress(
    examples=500,
    total_examples=1000,
    updates=5,
    loss=0.123456,
    learning_rate=0.1,
    batch_size=32,
    seconds=2.0,
    seconds_left=723.0,
    metrics={"accuracy": 0.9, "loss": 0.25},
)


def test_a_narrow_terminal_loses_the_metrics_first(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = fake_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "80")
    with train_bar() as on_progress:
        assert on_progress is not None
        on_progress(EVALUATED)
    text = terminal.getvalue()
    shown = ("50%", "12 min 3 s left", "250 examples/s", "loss 0.1235", "batch 32, rate 0.1")
    assert all(part in text for part in shown)
    assert "accuracy" not in text


def test_a_run_shows_loss_speed_and_its_latest_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = fake_terminal(monkeypatch)
    with train_bar() as on_progress:
        assert on_progress is not None
        on_progress(EVALUATED)
    text = terminal.getvalue()
    shown = ("loss 0.1235", "batch 32, rate 0.1", "evaluated accuracy 0.9, loss 0.25", "3 s left")
    assert all(part in text for part in shown)
