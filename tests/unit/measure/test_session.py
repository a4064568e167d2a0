"""A session saves as it goes: interrupted, cut short or refused, nothing measured is lost."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import known
import tiny
from rightbatch.core.errors import InvalidInputError, InvalidTaskError
from rightbatch.core.progress import Progress
from rightbatch.core.samples import Measurements
from rightbatch.core.store import read_record, write_record
from rightbatch.measure import noise, session, timing
from rightbatch.measure.budget import Budget
from rightbatch.measure.environment import read_environment
from rightbatch.measure.session import STAGES, measure

REAL = ("loader", "speed", "noise")


class Clock:
    """Moves only when a fake stage works."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real stages that content themselves with few samples."""
    monkeypatch.setattr(timing, "MAX_ROUNDS", timing.MIN_ROUNDS)
    monkeypatch.setattr(noise, "MAX_SAMPLES", noise.ENOUGH_SAMPLES)
    monkeypatch.setattr(session, "BUSY_LOAD", float("inf"))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stages that take 1 second a sample, 4 samples each, on a clock of their own."""
    fake = Clock()
    monkeypatch.setattr(session, "Budget", partial(Budget, clock=fake))

    def stage(name: str, context: Any, state: Measurements, limit: Budget) -> Iterator[Any]:
        done = list(state.pilot)
        mine = [p for p in done if name in p.metrics]
        for k in range(len(mine), 4):
            if limit.left <= 0:
                return
            fake.now += 1
            done.append(known_point(name, k))
            yield f"{name} {k}", {"pilot": tuple(done)}

    monkeypatch.setattr(session, "_RUN", {name: partial(stage, name) for name in STAGES})
    return fake


def known_point(name: str, k: int) -> Any:
    from rightbatch.core.samples import PilotPoint

    return PilotPoint(examples_seen=k, loss=1.0, metrics={name: float(k)})


def stages_of(found: Measurements) -> list[str]:
    return [next(iter(p.metrics)) for p in found.pilot]


@pytest.mark.usefixtures("quick")
def test_a_whole_session_completes_every_stage_and_saves_it(tmp_path: Path) -> None:
    seen: list[Progress] = []
    found = measure(
        tiny.task(), out=tmp_path, time_budget_seconds=60, stages=REAL, on_progress=seen.append
    )
    assert found.complete == REAL
    assert found.notes == ()
    assert found.step_timings
    assert found.loader_timings
    assert found.gradients
    assert found.pilot
    assert found.environment == read_environment()
    assert read_record(tmp_path / "measurements.json", Measurements) == found
    assert {p.stage for p in seen} == set(REAL)
    assert all(0 <= p.fraction <= 1 for p in seen)
    assert all(0 <= (p.seconds_left or 0) <= 60 for p in seen)


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert measure(tiny.task(), time_budget_seconds=60, stages=["loader"]).complete == ("loader",)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_ctrl_c_keeps_what_was_measured_and_the_next_call_goes_on(tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.stage == "noise":
            raise KeyboardInterrupt

    task = tiny.task()
    with pytest.raises(KeyboardInterrupt):
        measure(task, out=tmp_path, time_budget_seconds=60, stages=REAL, on_progress=interrupt)
    kept = read_record(tmp_path / "measurements.json", Measurements)
    assert kept.complete == ("loader", "speed")
    assert len(kept.pilot) == 2  # before training, and where gradients were sampled first
    assert kept.gradients
    seen: list[Progress] = []
    found = measure(task, out=tmp_path, time_budget_seconds=60, stages=REAL, on_progress=seen.append)
    assert {p.stage for p in seen} == {"noise"}
    assert found.complete == REAL
    assert found.step_timings == kept.step_timings
    assert found.loader_timings == kept.loader_timings
    assert found.gradients[: len(kept.gradients)] == kept.gradients
    assert len(found.pilot) > 1


def test_an_error_in_a_stage_keeps_what_was_measured(tmp_path: Path, clock: Clock) -> None:
    def fail(progress: Progress) -> None:
        if progress.message == "speed 1":
            raise RuntimeError("broken bar")

    with pytest.raises(RuntimeError, match="broken bar"):
        measure(tiny.task(), out=tmp_path, time_budget_seconds=1000, on_progress=fail)
    kept = read_record(tmp_path / "measurements.json", Measurements)
    assert stages_of(kept) == ["memory"] * 4 + ["loader"] * 4 + ["speed"] * 2


def test_a_finished_file_is_not_measured_again(tmp_path: Path, clock: Clock) -> None:
    first = measure(tiny.task(), out=tmp_path, time_budget_seconds=1000)
    assert first.complete == STAGES
    seen: list[Progress] = []
    again = measure(tiny.task(), out=tmp_path, time_budget_seconds=1000, on_progress=seen.append)
    assert (again, seen) == (first, [])


def test_stages_are_added_to_an_earlier_file_in_order(tmp_path: Path, clock: Clock) -> None:
    measure(tiny.task(), out=tmp_path, time_budget_seconds=1000, stages=["speed"])
    found = measure(tiny.task(), out=tmp_path, time_budget_seconds=1000, stages=["noise", "loader"])
    assert found.complete == ("speed", "loader", "noise")


def test_a_stage_cut_by_the_budget_is_noted_and_not_complete_until_a_later_call(
    tmp_path: Path, clock: Clock
) -> None:
    first = measure(tiny.task(), out=tmp_path, time_budget_seconds=8)
    assert first.complete == ()
    assert stages_of(first) == ["memory"] * 2 + ["loader"] + ["speed"] * 2 + ["noise"] * 3
    assert clock.now == 8  # not a sample beyond the budget
    assert first.notes == tuple(
        f"{stage}: ended by the time budget; the next call goes on" for stage in STAGES
    )
    found = measure(tiny.task(), out=tmp_path, time_budget_seconds=1000)
    assert sorted(stages_of(found)) == sorted(STAGES * 4)
    assert found.complete == STAGES
    assert found.notes == ()


def test_a_stage_that_time_cut_short_is_not_complete_even_where_some_time_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stage(*_: Any) -> Iterator[Any]:
        yield "as far as it went", {"cut": True}

    monkeypatch.setattr(session, "_RUN", {"noise": stage})
    found = measure(tiny.task(), time_budget_seconds=60, stages=["noise"])
    assert found.complete == ()
    assert found.notes == ("noise: ended by the time budget; the next call goes on",)


@pytest.mark.usefixtures("clock")
def test_a_note_of_a_stage_stays_until_that_stage_is_complete(tmp_path: Path) -> None:
    measure(tiny.task(), out=tmp_path, time_budget_seconds=8)
    found = measure(tiny.task(), out=tmp_path, time_budget_seconds=1000, stages=["loader"])
    assert [note.split(":")[0] for note in found.notes] == ["memory", "speed", "noise"]


def test_progress_is_the_share_of_the_budget(clock: Clock) -> None:
    seen: list[Progress] = []
    measure(tiny.task(), time_budget_seconds=16, stages=["noise"], on_progress=seen.append)
    assert [(p.fraction, p.seconds_left) for p in seen] == [(k / 16, 16 - k) for k in (1, 2, 3, 4)]


def test_measurements_of_another_task_are_refused(tmp_path: Path, clock: Clock) -> None:
    measure(tiny.task(), out=tmp_path, time_budget_seconds=1000)
    other = tiny.task(train_data=tiny.data(64))
    text = (tmp_path / "measurements.json").read_text()
    with pytest.raises(
        InvalidInputError, match=r"before the task changed .*num_train_examples: 48 -> 64"
    ) as caught:
        measure(other, out=tmp_path, time_budget_seconds=1000)
    assert "--refresh" in caught.value.hint
    assert (tmp_path / "measurements.json").read_text() == text


def test_measurements_of_another_environment_are_refused(tmp_path: Path, clock: Clock) -> None:
    found = measure(tiny.task(), out=tmp_path, time_budget_seconds=1000)
    elsewhere = found.replace(environment=found.environment.replace(torch="1.0"))
    write_record(tmp_path / "measurements.json", elsewhere)
    with pytest.raises(InvalidInputError, match=r"before the environment changed .*torch: 1.0 -> "):
        measure(tiny.task(), out=tmp_path, time_budget_seconds=1000)


def test_measurements_under_another_seed_are_refused(tmp_path: Path, clock: Clock) -> None:
    measure(tiny.task(), out=tmp_path, time_budget_seconds=1000)
    with pytest.raises(InvalidInputError, match=r"before the seed changed \(seed: 0 -> 7\)"):
        measure(tiny.task(), out=tmp_path, time_budget_seconds=1000, seed=7)
    assert measure(tiny.task(), out=tmp_path, time_budget_seconds=1000).seed == 0


def test_refresh_discards_an_earlier_file_even_a_broken_one(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "measurements.json").write_text("{")
    with pytest.raises(InvalidInputError, match="is no JSON"):
        measure(tiny.task(), out=tmp_path, time_budget_seconds=1000)
    found = measure(tiny.task(), out=tmp_path, time_budget_seconds=1000, refresh=True)
    assert read_record(tmp_path / "measurements.json", Measurements) == found
    assert clock.now == 16
    measure(tiny.task(), out=tmp_path, time_budget_seconds=1000, refresh=True)
    assert clock.now == 32


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot write"):
        measure(tiny.task(), out=tmp_path / "file", time_budget_seconds=1000)
    assert clock.now == 0


def test_bad_arguments_and_tasks_are_refused_before_the_work(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(InvalidInputError, match=r"stage 'nois'.*\n.*did you mean `noise`"):
        measure(tiny.task(), out=tmp_path, stages=["nois"])
    for seconds in (0, -1, float("nan")):
        with pytest.raises(InvalidInputError, match="time_budget_seconds = "):
            measure(tiny.task(), out=tmp_path, time_budget_seconds=seconds)
    with pytest.raises(InvalidTaskError, match="train_data is empty"):
        measure(tiny.task(train_data=[]), out=tmp_path)
    assert (clock.now, list(tmp_path.iterdir())) == (0, [])


def test_the_budget_bounds_a_real_session(tmp_path: Path) -> None:
    found = measure(tiny.task(), out=tmp_path, time_budget_seconds=0.05, stages=REAL)
    assert "noise" not in found.complete
    assert any(note.startswith("noise: ended") for note in found.notes)
    assert found.gradients  # little, and yet what a plan needs


@pytest.mark.usefixtures("quick")
def test_a_busy_machine_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "BUSY_LOAD", -1.0)
    for seconds in (1e-6, 60):
        found = measure(tiny.task(), out=tmp_path, time_budget_seconds=seconds, stages=["speed"])
    assert [note[:32] for note in found.notes] == ["speed: timed on a busy machine ("]


def traces(count: int) -> Any:
    """Stands in for tracing: sizes in the order they would come."""

    def iterate(task: Any) -> Iterator[Any]:
        yield from (known.trace((1_000, 16), b) for b in (2, 3, 4, 64)[:count])

    return iterate


@pytest.mark.usefixtures("quick")
def test_the_speed_stage_stays_below_half_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "iterate_memory_traces", traces(4))
    small = read_environment().replace(memory_bytes=2 * (1_000 + 16 * 10))

    def read(device: str) -> Any:
        return small

    monkeypatch.setattr(session, "read_environment", read)
    found = measure(tiny.task(), time_budget_seconds=60, stages=("memory", "speed"))
    assert max(t.micro_batch_size for t in found.step_timings) == 8
    assert [t.micro_batch_size for t in found.memory] == [2, 3, 4, 64]


def test_memory_cut_short_still_carries_a_law_for_the_speed_stage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "iterate_memory_traces", traces(4))
    found = measure(tiny.task(), time_budget_seconds=1e-6, stages=("memory", "speed"))
    assert [t.micro_batch_size for t in found.memory] == [2, 3]
    assert found.complete == ()
    assert found.step_timings


def test_known_traces_are_not_stored_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "iterate_memory_traces", traces(4))
    measure(tiny.task(), out=tmp_path, time_budget_seconds=1e-6, stages=["memory"])
    found = measure(tiny.task(), out=tmp_path, time_budget_seconds=60, stages=["memory"])
    assert [t.micro_batch_size for t in found.memory] == [2, 3, 4, 64]
    assert found.complete == ("memory",)


@pytest.mark.usefixtures("quick")
def test_the_callers_model_factory_is_called_under_the_seed() -> None:
    states: list[Any] = []

    def build() -> Any:
        states.append(torch.initial_seed())
        return tiny.linear()

    measure(tiny.task(model=build), time_budget_seconds=60, stages=["noise"], seed=5)
    assert 5 in states
