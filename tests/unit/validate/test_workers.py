"""Studies on several processes: the same runs, whoever dies or is stopped on the way."""

import math
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tiny
from rightbatch.core.errors import (
    InvalidInputError,
    InvalidTaskError,
    MeasurementError,
    MissingPackageError,
)
from rightbatch.core.progress import Progress
from rightbatch.core.recipe import Recipe, Target
from rightbatch.core.record import Record
from rightbatch.core.run import Run
from rightbatch.core.store import read_record
from rightbatch.core.sweep import Arm
from rightbatch.fit.hyperbola import best_rates
from rightbatch.tasks.task import Loss, Task
from rightbatch.validate.ledger import LEDGER, StudyStoppedError, open_ledger
from rightbatch.validate.session import COMPARISON, validate
from rightbatch.validate.sweep import ArmJob, SweepStudy, _first_seed, steps_of
from rightbatch.validate.sweep_session import sweep
from rightbatch.validate.work import Board, Job, run_chains
from rightbatch.validate.workers import HowMany

SIZES = [4, 8, 16]
PARENT = os.getpid()


def task(before: Callable[[], None] = lambda: None) -> Task:
    """A tiny task that does something before each loss."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Loss:
        before()
        return tiny.squared_error(model, batch)

    recipe = Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=5)
    return tiny.task(loss=loss, recipe=recipe, target=Target("mse", 0.5, higher_is_better=False))


def swept(folder: Path, given: Task, workers: HowMany = 2, **more: Any) -> Any:
    how = {"seeds": 2, "noise_seconds": 0, "workers": workers} | more
    return sweep(given, SIZES, out=folder, **how)


def entries(folder: Path) -> list[str]:
    if not (folder / LEDGER).exists():
        return []
    with open_ledger(folder / LEDGER) as ledger:
        return ledger.keys()


def answers(folder: Path) -> dict[str, Arm | None]:
    keys = entries(folder)
    with open_ledger(folder / LEDGER) as ledger:
        return {key: ledger.get(key, Arm) for key in keys}


def test_a_sweep_makes_the_same_runs_with_any_number_of_workers(tmp_path: Path) -> None:
    alone, crew = tmp_path / "alone", tmp_path / "crew"
    assert swept(alone, task(), 1).arms == swept(crew, task(), 3).arms
    assert sorted(entries(alone)) == sorted(entries(crew))
    assert multiprocessing.active_children() == []


def test_a_comparison_makes_the_same_runs_with_any_number_of_workers(tmp_path: Path) -> None:
    alone = validate(task(), 16, out=tmp_path / "alone", seeds=2)
    crew = validate(task(), 16, out=tmp_path / "crew", seeds=2, workers=3)
    assert [(r.seed, r.side, r.metrics) for r in alone.runs] == [
        (r.seed, r.side, r.metrics) for r in crew.runs
    ]


@dataclass
class _Shuffled:
    """Workers that give arms of a made-up sweep back in any order."""

    updates: Callable[[ArmJob], float]
    rng: random.Random
    count: int

    def __post_init__(self) -> None:
        self.jobs: list[ArmJob] = []
        self.asked: list[ArmJob] = []

    @property
    def has_room(self) -> bool:
        return len(self.jobs) < self.count

    def submit(self, job: Job) -> None:
        self.jobs.append(cast(ArmJob, job))
        self.asked.append(cast(ArmJob, job))

    def wait(self) -> Iterator[tuple[Job, Record]]:
        for _ in range(self.rng.randint(1, len(self.jobs))):
            job = self.jobs.pop(self.rng.randrange(len(self.jobs)))
            updates, most = self.updates(job), min(job.most_updates, 10_000)
            yield (
                job,
                Arm(
                    batch_size=job.batch_size,
                    factor=job.factor,
                    learning_rate=job.factor,
                    seed=job.seed,
                    outcome="reached" if updates <= most else "censored",
                    updates=min(updates, most),
                    value=0.0,
                ),
            )


class _Empty:
    """A ledger that keeps nothing."""

    def get(self, *_: object) -> None:
        return None

    def append(self, *_: object) -> bool:
        return True


@given(seed=st.integers(0, 10**6), count=st.integers(1, 8))
def test_what_a_sweep_asks_for_depends_on_answers_and_not_on_their_order(seed: int, count: int) -> None:
    study = cast(SweepStudy, type("S", (), {"rates": 3, "seeds": 3, "batch_sizes": (2, 4, 8)}))

    def updates(job: ArmJob) -> float:
        return random.Random(f"{seed}{job.key}").uniform(10, 200)

    asked: list[set[ArmJob]] = []
    for number in (1, count):
        workers = _Shuffled(updates, random.Random(seed), number)
        board = Board("sweep", 36, None)
        chains = [_first_seed(study, size, board) for size in study.batch_sizes]
        found = [*run_chains(chains, Arm, workers=workers, ledger=_Empty(), board=board)]  # type: ignore[arg-type]
        assert len(found) == len(workers.asked) == len({job.key for job in workers.asked})
        assert board.expected == len(found)
        asked.append({*workers.asked})
    assert asked[0] == asked[1]


def test_a_worker_that_is_killed_is_replaced_and_its_run_made_again(tmp_path: Path) -> None:
    calls = 0

    def die_once() -> None:
        nonlocal calls
        calls += 1
        if os.getpid() != PARENT and calls == 20 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    found = swept(tmp_path / "s", task(die_once))
    assert (tmp_path / "died").exists()
    assert found.arms == swept(tmp_path / "t", task(), 1).arms


def test_a_run_that_ends_every_worker_stops_the_study_and_says_how(tmp_path: Path) -> None:
    def die() -> None:
        if os.getpid() != PARENT:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(MeasurementError, match=r"batch .* ended its process by SIGKILL, twice") as told:
        swept(tmp_path, task(die))
    assert "fewer --workers" in told.value.hint
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_in_a_run_comes_back_in_three_parts_with_its_place(
    workers: int, tmp_path: Path
) -> None:
    def fail() -> None:
        if (tmp_path / "question.json").exists():  # the check of the task is over
            raise ZeroDivisionError("in the loss")

    where = rf"x the rate, seed 0 raised ZeroDivisionError: in the loss at {__file__}:\d+; need"
    with pytest.raises(InvalidTaskError, match=where):
        swept(tmp_path, task(fail), workers)
    assert multiprocessing.active_children() == []


def test_ctrl_c_in_the_only_process_says_what_is_kept(tmp_path: Path) -> None:
    def stop() -> None:
        if len(entries(tmp_path)) == 2:
            raise KeyboardInterrupt

    with pytest.raises(StudyStoppedError, match="stopped by Ctrl-C in ") as stopped:
        swept(tmp_path, task(stop), 1)
    assert stopped.value.exit_code == 130
    assert "keeps every finished run" in stopped.value.hint
    assert len(entries(tmp_path)) == 2


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for_the_end_of(pids: list[str]) -> None:
    deadline = time.monotonic() + 20  # of a machine with much else to do; alone it takes 0.1 s
    while left := [pid for pid in pids if alive(int(pid))]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def slow_sweep(folder: Path) -> None:
    me: set[int] = set()

    def note() -> None:
        if os.getpid() not in me:
            me.add(os.getpid())
            (folder / "pids" / str(os.getpid())).touch()
        time.sleep(0.001)

    swept(folder, task(note), seeds=1)
    (folder / "done").touch()


def test_kills_of_the_parent_lose_and_repeat_nothing_and_leave_nobody_behind(tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    waits = random.Random(0)
    kills, kept = 0, list[str]()
    while not (tmp_path / "done").exists():
        parent = multiprocessing.get_context("fork").Process(target=slow_sweep, args=(tmp_path,))
        parent.start()
        while parent.is_alive() and entries(tmp_path) == kept:
            time.sleep(0.002)  # until one more run is finished, however slow the machine is
        parent.join(waits.uniform(0.0, 0.2))
        if parent.is_alive():
            parent.kill()
            kills += 1
        parent.join()
        wait_for_the_end_of([path.name for path in (tmp_path / "pids").iterdir()])
        now = entries(tmp_path)
        assert now[: len(kept)] == kept
        kept = now
    assert kills >= 2
    assert len(kept) == len({*kept})
    swept(tmp_path / "whole", task(), 1, seeds=1)
    assert answers(tmp_path) == answers(tmp_path / "whole")


def test_a_worker_in_the_middle_of_a_long_step_ends_with_its_parent(tmp_path: Path) -> None:
    def study() -> None:
        own = os.getpid()

        def wait() -> None:
            if os.getpid() != own:
                (tmp_path / str(os.getpid())).touch()
                time.sleep(120)  # and tells its parent nothing

        swept(tmp_path / "s", task(wait), seeds=1)

    parent = multiprocessing.get_context("fork").Process(target=study)
    parent.start()
    deadline = time.monotonic() + 60
    while len(pids := [path.name for path in tmp_path.iterdir() if path.name.isdigit()]) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.kill()
    parent.join()
    wait_for_the_end_of(pids)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_saves_the_runs_of_all_workers_where_they_stand(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    calls: Counter[int] = Counter()
    training, asked = tmp_path / "training", tmp_path / "asked"
    training.mkdir()

    def ask_to_stop() -> None:
        me = os.getpid()
        if me == PARENT:
            return
        calls[me] += 1
        if calls[me] < 6:  # it may still be checking the task
            return
        (training / str(me)).touch()
        deadline = time.monotonic() + 60
        while len([*training.iterdir()]) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        with suppress(FileExistsError):  # one of the two asks
            asked.touch(exist_ok=False)
            os.kill(PARENT, number)
        time.sleep(0.1)  # nine updates are left at least: time enough for the parent

    with pytest.raises(StudyStoppedError, match=r"stopped by .* with 2 run\(s\) at work") as stopped:
        validate(task(ask_to_stop), 16, out=tmp_path / "s", seeds=2, workers=2)
    assert stopped.value.exit_code == code
    outcomes = {
        path.parent.name: read_record(path, Run) for path in tmp_path.glob("s/runs/*/outcome.json")
    }
    assert outcomes.keys() == {"reference-seed0", "candidate-seed0"}
    assert all(run.outcome.can_resume and run.examples < 5 * 48 for run in outcomes.values())
    found = validate(task(), 16, out=tmp_path / "s", seeds=2, workers=2)
    whole = validate(task(), 16, out=tmp_path / "t", seeds=2)
    assert [run.metrics for run in found.runs] == [run.metrics for run in whole.runs]
    assert (tmp_path / "s" / COMPARISON).exists()


def test_the_bar_moves_within_runs_and_says_how_long_the_rest_takes(tmp_path: Path) -> None:
    seen: list[Progress] = []
    swept(tmp_path, task(lambda: time.sleep(0.0005)), on_progress=seen.append)
    shares = [one.fraction for one in seen]
    assert shares[-1] == 1
    assert all(0 <= share <= 1 for share in shares)
    assert len({*shares}) > len(entries(tmp_path))
    assert seen[-1].seconds_left == 0
    assert all(one.seconds_left is not None for one in seen[len(seen) // 2 :])
    again: list[Progress] = []
    swept(tmp_path, task(), on_progress=again.append)
    assert {one.seconds_left for one in again} == {None}  # an earlier call's runs took no time of this


def test_workers_that_cannot_be_had_are_refused_in_three_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInputError, match="0 workers; need 1 or more"):
        swept(tmp_path / "none", task(), 0)
    from rightbatch.validate import workers

    board = Board("sweep", 1, None)
    several = workers.workers_for(
        2, lambda *_: tiny_record(), board, task=task(), device="cuda", folder=tmp_path
    )
    with pytest.raises(InvalidInputError, match="2 workers on cuda; need the CPU"):
        several.__enter__()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match="ray is not installed") as missing:
        swept(tmp_path / "ray", task(), "ray")
    assert missing.value.hint == "pip install 'rightbatch[ray]'"


def tiny_record() -> Record:
    raise AssertionError("nothing is to be done")


def test_stops_are_listened_to_in_the_main_thread_alone(tmp_path: Path) -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(swept(tmp_path, task())))
    thread.start()
    thread.join()
    assert len(found[0].arms) == len(entries(tmp_path))


def test_a_rate_that_fails_with_one_seed_does_not_end_the_one_that_reaches_with_all() -> None:
    study = cast(SweepStudy, type("S", (), {"rates": 3, "seeds": 3, "batch_sizes": (64,)}))
    steps = {0.5: (340.0, 350.0, 360.0), 1.0: (180.0, 170.0, 175.0), 2.0: (100.0, 80.0, math.inf)}

    def updates(job: ArmJob) -> float:
        return steps.get(job.factor, (math.inf,) * 3)[job.seed]

    workers = _Shuffled(updates, random.Random(0), 2)
    board = Board("sweep", 12, None)
    chains = [_first_seed(study, 64, board)]
    done = run_chains(chains, Arm, workers=workers, ledger=_Empty(), board=board)  # type: ignore[arg-type]
    arms = [found for _, found in done]
    (best,) = best_rates(steps_of(arms))
    assert best.factor == 1.0
    limits = {(job.factor, job.seed): job.most_updates for job in workers.asked}
    assert [limits[0.5, seed] for seed in (1, 2)] == [340.0, 350.0]  # and the rest is still cut short
