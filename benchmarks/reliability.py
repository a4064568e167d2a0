"""How often a run that is killed, stopped, moved or starved of disk loses something.

    nice -n 10 python benchmarks/reliability.py [STUDY ...] [--fresh]

Trials on digits with a checkpoint after every update, each in processes forked from this one:
    kills      kill -9 at a random moment
    saves      kill -9 inside a save, after its begin and before its end
    commands   the same to ``python -m rightbatch train``
    aborts     the process ends before, or after, each write, fsync and rename in turn; after a write
               with half of it written
    full_disks RLIMIT_FSIZE at 20 sizes from 64 bytes to 1 MB
    signals    SIGTERM to one or to both of two processes, at a random moment
    moves      4, 2, 1 and 4 processes one after the other, each but the last stopped by SIGTERM in the
               middle of an update; float64
A trial is lost if no checkpoint loads afterwards, if something half written stays, if the run cannot go
on, or if its final weights differ from those of the run that nothing happened to: by a bit, and in
``moves`` by more than 1e-10. A moment that came too late to hit is missed and drawn again. Counts are
kept after every trial: started again, the script goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import distributed as dist
from torch.utils.data import TensorDataset

import rightbatch as rb
from common import save
from rightbatch.core.errors import RightBatchError
from rightbatch.train import checkpoint
from rightbatch.train.loop import Saving, train

UPDATES, CALLS = 30, 46  # calls: the folder's own files and the first five checkpoints
TRIALS = {
    "kills": 50,
    "saves": 50,
    "commands": 10,
    "aborts": 2 * CALLS,
    "full_disks": 20,
    "signals": 50,
    "moves": 10,
}
STATE = Path(tempfile.gettempdir()) / "rightbatch-reliability.json"
FORK: Any = multiprocessing.get_context("fork")
TASK = rb.load_task("digits")
PLAN = rb.Plan.from_recipe(TASK.recipe, TASK.name, micro_batch_size=16, accumulation_steps=2)
MOVED = rb.Plan.from_recipe(TASK.recipe, TASK.name, micro_batch_size=4, accumulation_steps=8)


def run(folder: Path, task: rb.Task = TASK, plan: rb.Plan = PLAN, *, resume: bool = False) -> rb.Run:
    done = train(task, plan, folder, 0, UPDATES, saving=Saving(seconds=0.0), resume=resume)
    if multiprocessing.parent_process() is None and done.outcome != "stopped":
        raise SystemExit(f"this script was asked to stop: {done.message}")
    return done


def final(folder: Path) -> str:
    return hashlib.sha256((folder / "checkpoints" / "final.safetensors").read_bytes()).hexdigest()


def goes_on(folder: Path, whole: str, again: Callable[[bool], Any]) -> str:
    """What was lost: nothing, if the newest checkpoint loads and the run ends as it should."""
    try:
        checkpoint.Checkpoints(folder / "checkpoints", 2).load()
        again((folder / "start.json").exists())
    except RightBatchError as error:
        return str(error)
    if final(folder) != whole:
        return "other weights"
    return "".join(f"left over: {path.name}" for path in folder.rglob(".*"))


def forked(*work: Callable[[], Any]) -> list[Any]:
    processes = [FORK.Process(target=act) for act in work]
    for process in processes:
        process.start()
    return processes


def kill(folder: Path, seed: int, seconds: float, *, in_save: bool) -> bool:
    """End a run by kill -9 so many seconds after its start at most, or after the start of a save."""
    chance = random.Random(seed)
    begun, ended, target = FORK.Value("i"), FORK.Value("i"), chance.randrange(1, UPDATES)

    def work() -> None:
        original = checkpoint.Checkpoints.save

        def noted(self: Any, *args: Any) -> None:
            begun.value += 1
            original(self, *args)
            ended.value += 1

        checkpoint.Checkpoints.save = noted  # type: ignore[method-assign]
        run(folder)

    (process,) = forked(work)
    if in_save:
        while begun.value < target and process.is_alive():
            time.sleep(0.0002)
    time.sleep(chance.uniform(0, seconds))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    is_hit = not in_save or (begun.value, ended.value) == (target, target - 1)
    return process.exitcode == -signal.SIGKILL and is_hit


def kill_command(folder: Path, seed: int) -> bool:
    """The same to the command, once it has begun to train; whether it still ran."""
    command = [sys.executable, "-m", "rightbatch", "train", "digits", "--run-dir", str(folder)]
    command += ["--checkpoint-every", "0.001s", "--max-updates", str(UPDATES)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not (folder / "start.json").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0, 0.6))
    process.kill()
    return process.wait() == -signal.SIGKILL


def abort(folder: Path, seed: int) -> bool:
    """End a run before its n-th write, fsync or rename, or after it."""
    last, after = seed // 2, seed % 2 == 1

    def work() -> None:
        count = 0

        def dying(original: Any) -> Any:
            def act(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count <= last:
                    return original(*args, **kwargs)
                if after:
                    original(*args, **kwargs)
                    if original is save_file:
                        os.truncate(args[1], args[1].stat().st_size // 2)
                os._exit(9)

            return act

        save_file = checkpoint.save_file
        checkpoint.save_file = dying(save_file)  # type: ignore[attr-defined]
        os.fsync = dying(os.fsync)  # type: ignore[assignment]
        os.replace = dying(os.replace)  # type: ignore[assignment]
        run(folder)

    (process,) = forked(work)
    process.join()
    return process.exitcode == 9


def fill(folder: Path, seed: int) -> bool:
    """Run with a limit to the size of every file; whether that was an error, and none half written."""
    limit = round(64 * (1e6 / 64) ** (seed / (TRIALS["full_disks"] - 1)))

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            run(folder)
        except RightBatchError:
            os._exit(2)

    (process,) = forked(work)
    process.join()
    return process.exitcode in {0, 2} and not list(folder.rglob(".*"))


def on_ranks(
    count: int, folder: Path, task: rb.Task = TASK, plan: rb.Plan = PLAN, *, resume: bool
) -> list[Any]:
    """Begin, or go on with, a run on several processes."""
    meeting = Path(tempfile.mkdtemp(dir=folder.parent)) / "meet"

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        where, limit = f"file://{meeting}", timedelta(seconds=60)
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=count, timeout=limit)
        run(folder, task, plan, resume=resume)
        dist.barrier()
        dist.destroy_process_group()

    return forked(*(lambda rank=rank: work(rank) for rank in range(count)))


def join(processes: Sequence[Any]) -> None:
    for process in processes:
        process.join()


def stop(folder: Path, seed: int, seconds: float) -> bool:
    """SIGTERM to one or both of two processes; whether that ended the run."""
    chance = random.Random(seed)
    processes = on_ranks(2, folder, resume=False)
    while not (folder / "start.json").exists() and processes[0].is_alive():
        time.sleep(0.005)
    time.sleep(chance.uniform(0, seconds))
    for process in chance.choice([processes, processes[:1], processes[1:]]):
        process.terminate()
    join(processes)
    ended = folder / "outcome.json"
    return not ended.exists() or json.loads(ended.read_text())["outcome"] == "terminated"


def doubled() -> rb.Task:
    x, y = TASK.train_data.tensors  # type: ignore[attr-defined]
    data = TensorDataset(x.double(), y)
    nothing = {"valid_data": None, "evaluate": None, "target": None}
    return replace(TASK, train_data=data, model=lambda: TASK.model().double(), **nothing)


def move(folder: Path, seed: int) -> None:
    """Run on 4, 2, 1 and 4 processes; a loss in the middle of an update stops each but the last."""
    chance, task = random.Random(seed), doubled()
    for turn, count in enumerate((4, 2, 1, 4)):
        pieces, calls = MOVED.accumulation_steps // count, 0
        middle = 8 + chance.randrange(8) * pieces + chance.randrange(pieces - 1 or 1)
        told = chance.randrange(count)

        def loss(model: Any, batch: Any, told: int = told, middle: int = middle) -> Any:
            nonlocal calls
            calls += 1
            if calls == middle and (not dist.is_initialized() or dist.get_rank() == told):
                signal.raise_signal(signal.SIGTERM)
            return TASK.loss(model, batch)

        stopped = task if turn == 3 else replace(task, loss=loss)
        join(on_ranks(count, folder, stopped, MOVED, resume=turn > 0))


def other_weights(found: Path, wanted: Path) -> str:
    ours, theirs = (load_file(f / "checkpoints" / "final.safetensors") for f in (found, wanted))
    near = all(torch.allclose(ours[n], theirs[n], rtol=1e-10, atol=1e-12) for n in theirs)
    return "" if near else "other weights"


def trials(name: str, state: dict[str, Any], trial: Callable[[Path, int], str | None]) -> None:
    """Make those that are still to be made; a trial gives what was lost, or None where it missed."""
    counts = state.setdefault(name, {"trials": 0, "missed": 0, "lost": []})
    while counts["trials"] < TRIALS[name]:
        seed = counts["trials"] + counts["missed"]
        with tempfile.TemporaryDirectory() as place:
            lost = trial(Path(place) / "run", seed)
        counts["missed" if lost is None else "trials"] += 1
        counts["lost"] += [f"{seed}: {lost}"] if lost else []
        STATE.write_text(json.dumps(state))
        print(f"{name} {counts}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="*", default=list(TRIALS))
    parser.add_argument("--fresh", action="store_true", help="forget the counts of an earlier start")
    options = parser.parse_args()
    torch.set_num_threads(1)
    state = json.loads(STATE.read_text()) if STATE.exists() and not options.fresh else {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        started = time.perf_counter()
        run(folder / "one")
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        join(on_ranks(2, folder / "two", resume=False))
        seconds_on_two = time.perf_counter() - started
        run(folder / "double", doubled(), MOVED)
        plain = rb.Plan.from_recipe(TASK.recipe, TASK.name)
        run(folder / "command", TASK, plain)
        whole, two, command = (final(folder / name) for name in ("one", "two", "command"))

        def alone(path: Path, *, is_hit: bool) -> str | None:
            return goes_on(path, whole, lambda resume: run(path, resume=resume)) if is_hit else None

        def commanded(path: Path, seed: int) -> str | None:
            if not kill_command(path, seed):
                return None
            return goes_on(path, command, lambda resume: run(path, TASK, plain, resume=resume))

        def stopped(path: Path, seed: int) -> str | None:
            if not stop(path, seed, 0.8 * seconds_on_two):
                return None
            return goes_on(path, two, lambda resume: join(on_ranks(2, path, resume=resume)))

        def filled(path: Path, seed: int) -> str | None:
            return alone(path, is_hit=True) if fill(path, seed) else "no error, or half written"

        def moved(path: Path, seed: int) -> str:
            move(path, seed)
            return other_weights(path, folder / "double")

        studies: dict[str, Callable[[Path, int], str | None]] = {
            "kills": lambda path, seed: alone(
                path, is_hit=kill(path, seed, 0.7 * seconds, in_save=False)
            ),
            "saves": lambda path, seed: alone(
                path, is_hit=kill(path, seed, seconds / UPDATES / 8, in_save=True)
            ),
            "commands": commanded,
            "aborts": lambda path, seed: alone(path, is_hit=abort(path, seed)),
            "full_disks": filled,
            "signals": stopped,
            "moves": moved,
        }
        for name in options.studies:
            trials(name, state, studies[name])
    save("reliability", {"updates": UPDATES, **state})
    STATE.unlink()


if __name__ == "__main__":
    main()
