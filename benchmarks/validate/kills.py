"""Kill -9 a study at random moments, write one ledger from many processes, fill the disk under it.

A sweep of a linear task on two workers, begun again after each of 100 kills of its parent; before some
of them a worker is killed as well. Counted are entries that were there before a kill and are not there
after it, runs that have two entries, processes that are still there a second later, and runs whose
training had ended when the kill came, but which had no entry yet. At the end all runs are compared with
those of a sweep that nobody disturbed.

    nice python benchmarks/validate/kills.py [--kills 100]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import tiny
from common import save
from rightbatch.core.errors import InvalidInputError
from rightbatch.core.recipe import Recipe, Target
from rightbatch.core.sweep import Arm
from rightbatch.tasks.task import Task
from rightbatch.validate import sweep as sweep_module
from rightbatch.validate.ledger import LEDGER, open_ledger, sole_owner
from rightbatch.validate.sweep_session import sweep

SIZES, SEEDS, WORKERS = (4, 8, 16), 10, 2
FORK = multiprocessing.get_context("fork")
train_arm = sweep_module._train_arm


def task() -> Task:
    recipe = Recipe(optimizer="sgd", lr=0.01, batch_size=8, epochs=20)
    return tiny.task(recipe=recipe, target=Target("mse", 0.5, higher_is_better=False))


def study(folder: Path, workers: int) -> None:
    """Sweep, and let each worker note who it is, and which runs it has trained to their end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def noted(*given: Any) -> Arm:
        (folder / "pids" / str(os.getpid())).touch()
        arm = train_arm(*given)
        with (folder / "ended").open("a") as file:
            file.write(f"{given[1].key}\n")
        return arm

    sweep_module._train_arm = noted
    sweep(task(), SIZES, out=folder, seeds=SEEDS, noise_seconds=0, workers=workers)
    (folder / "done").touch()


def entries(folder: Path) -> list[str]:
    if not (folder / LEDGER).exists():
        return []
    with open_ledger(folder / LEDGER) as ledger:
        return ledger.keys()


def ended(folder: Path) -> list[str]:
    """Keys of the runs whose training came to its end, entered or not."""
    path = folder / "ended"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def answers(folder: Path) -> dict[str, Arm | None]:
    with open_ledger(folder / LEDGER) as ledger:
        keys = ledger.keys()
        return {key: ledger.get(key, Arm) for key in keys}


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def living(folder: Path) -> list[int]:
    return [pid for pid in (int(path.name) for path in (folder / "pids").iterdir()) if is_alive(pid)]


def kill_one(folder: Path, rng: random.Random, found: dict[str, list[float]]) -> bool:
    """Start the study, kill it, look at what is left; False where it came to its end before."""
    before = entries(folder)
    process = FORK.Process(target=study, args=(folder, WORKERS))
    process.start()
    if rng.random() < 0.9:  # the others are killed while they begin
        while process.is_alive() and not living(folder):
            time.sleep(0.01)
        process.join(rng.uniform(0.0, 1.5))
    if rng.random() < 0.3:
        for pid in living(folder)[:1]:
            os.kill(pid, signal.SIGKILL)
            found["workers_killed"].append(1)
        process.join(rng.uniform(0.0, 0.5))
    killed = process.is_alive()
    process.kill()
    began = time.perf_counter()
    process.join()
    while left := living(folder):
        if time.perf_counter() - began > 1.0:
            break
        time.sleep(0.002)
    found["left_running"].append(len(left))
    found["seconds_until_gone"].append(time.perf_counter() - began)
    began = time.perf_counter()
    with sole_owner(folder):
        after = entries(folder)
    found["seconds_to_reopen"].append(time.perf_counter() - began)
    found["lost"].append(len({*before} - {*after}))
    found["twice"].append(len(after) - len({*after}))
    found["entries_at_kill"].append(len(after))
    found["trained_again"] = [len(ended(folder)) - len({*ended(folder)})]
    return killed


def kills(number: int) -> dict[str, Any]:
    rng, names = random.Random(0), ("left_running", "seconds_until_gone", "seconds_to_reopen", "lost")
    found: dict[str, list[float]] = {
        name: [] for name in (*names, "twice", "workers_killed", "entries_at_kill")
    }
    done, trained_again, runs, equal = 0, 0.0, 0, []
    with tempfile.TemporaryDirectory() as name:
        whole = Path(name, "whole")
        (whole / "pids").mkdir(parents=True)
        process = FORK.Process(target=study, args=(whole, 1))
        process.start()
        process.join()
        expected = answers(whole)
        for attempt in range(1000):
            folder = Path(name, str(attempt))
            (folder / "pids").mkdir(parents=True)
            while done < number and not (folder / "done").exists():
                done += kill_one(folder, rng, found)
            process = FORK.Process(target=study, args=(folder, WORKERS))
            process.start()
            process.join()
            equal.append(answers(folder) == expected)
            trained_again += found.pop("trained_again", [0])[0]
            runs += len(entries(folder))
            if done == number:
                break
    return {
        "kills": done,
        "of_a_worker_before": len(found["workers_killed"]),
        "workers": WORKERS,
        "studies": len(equal),
        "runs": runs,
        "kills_by_number_of_entries": np.histogram(found["entries_at_kill"], 5)[0].tolist(),
        "entries_lost": sum(found["lost"]),
        "entries_twice": sum(found["twice"]),
        "left_running_after_a_second": sum(found["left_running"]),
        "trained_to_the_end_but_not_entered": trained_again,
        "studies_equal_to_an_undisturbed_one": sum(equal),
        "seconds_until_gone": quantiles(found["seconds_until_gone"]),
        "seconds_to_reopen": quantiles(found["seconds_to_reopen"]),
    }


def quantiles(values: list[float]) -> dict[str, float]:
    return {"median": round(float(np.median(values)), 4), "most": round(max(values), 4)}


def write(path: Path, writer: int, number: int) -> None:
    arm = Arm(
        batch_size=8, factor=1, learning_rate=1, seed=writer, outcome="reached", updates=1, value=0
    )
    with open_ledger(path) as ledger:
        for entry in range(number):
            assert ledger.append(f"{writer}:{entry}", arm)


def writers(count: int = 8, number: int = 500) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, LEDGER)
        began = time.perf_counter()
        crew = [FORK.Process(target=write, args=(path, n, number)) for n in range(count)]
        for process in crew:
            process.start()
        for process in crew:
            process.join()
        seconds = time.perf_counter() - began
        with open_ledger(path) as ledger:
            keys = ledger.keys()
        own = [[key for key in keys if key.startswith(f"{n}:")] for n in range(count)]
        return {
            "writers": count,
            "entries_each": number,
            "failed": sum(process.exitcode != 0 for process in crew),
            "entries": len(keys),
            "unique": len({*keys}),
            "writers_in_order": sum(
                keys == [f"{n}:{e}" for e in range(number)] for n, keys in enumerate(own)
            ),
            "seconds": round(seconds, 2),
        }


def refusal(path: Path) -> dict[str, str]:
    try:
        with open_ledger(path) as ledger:
            for entry in range(1000):
                write_one(ledger, entry)
    except InvalidInputError as error:
        return {"found": error.found.replace(str(path), LEDGER), "need": error.need, "hint": error.hint}
    raise SystemExit("no error")


def write_one(ledger: Any, entry: int) -> None:
    ledger.append(
        str(entry),
        Arm(batch_size=8, factor=1, learning_rate=1, seed=0, outcome="reached", updates=1, value=0),
    )


def damage() -> dict[str, Any]:
    """What is said of a ledger of another version and on a full disk, and what is left afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "old", LEDGER)
        with open_ledger(path):
            pass
        with closing(sqlite3.connect(path)) as plain:
            plain.execute("PRAGMA user_version = 7")
        found: dict[str, Any] = {"another version": refusal(path)}
        path = Path(folder, "full", LEDGER)
        with open_ledger(path):
            pass
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        found["no space left"] = refusal(path)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        with open_ledger(path) as ledger:
            kept = ledger.keys()
            assert kept == [str(n) for n in range(len(kept))]
            write_one(ledger, len(kept))
            found["entries kept, and one added once there was space"] = [len(kept), len(ledger.keys())]
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    torch.set_num_threads(1)
    number = parser.parse_args().kills
    save("validate_kills", {"kills": kills(number), "writers": writers(), "errors": damage()})


if __name__ == "__main__":
    main()
