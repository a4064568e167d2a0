"""How often a run that is killed, starved of disk or told to stop loses something: it should be never.

    python benchmarks/reliability.py 100

Each count is of so many trials on digits with a checkpoint after every update:
    kills      kill -9 at a random moment; half of them while a checkpoint is being written
    full_disks RLIMIT_FSIZE at a random size
    signals    SIGTERM to one of two processes, at a random moment
A trial is lost if no checkpoint loads afterwards, if the run cannot go on, or if its final weights
differ from those of the run that nothing happened to.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

import rightbatch as rb
from common import save
from rightbatch.core.errors import RightBatchError
from rightbatch.train import checkpoint
from rightbatch.train.loop import Saving, train

UPDATES = 60
FORK: Any = multiprocessing.get_context("fork")
TASK = rb.load_task("digits")
PLAN = rb.Plan.from_recipe(TASK.recipe, TASK.name, micro_batch_size=16, accumulation_steps=2)


def run(folder: Path, *, resume: bool = False) -> rb.Run:
    return train(TASK, PLAN, folder, 0, UPDATES, saving=Saving(seconds=0.0), resume=resume)


def final(folder: Path) -> str:
    return hashlib.sha256((folder / "checkpoints" / "final.safetensors").read_bytes()).hexdigest()


def goes_on(folder: Path, whole: str, again: Callable[[bool], Any]) -> bool:
    """Whether the newest checkpoint loads and the run ends with the weights it should have."""
    try:
        checkpoint.Checkpoints(folder / "checkpoints", 2).load()
        again((folder / "start.json").exists())
    except RightBatchError as error:
        print(error, file=sys.stderr)
        return False
    return final(folder) == whole


def kill(folder: Path, seed: int) -> None:
    """End a run at a random moment; with an even seed inside one of its saves."""
    chance = random.Random(seed)
    inside, target = FORK.Event(), chance.randrange(1, UPDATES)

    def work() -> None:
        if seed % 2 == 0:
            original, count = checkpoint.save_file, [0]

            def noted(*args: Any, **kwargs: Any) -> None:
                count[0] += 1
                if count[0] == target:
                    inside.set()
                original(*args, **kwargs)

            checkpoint.save_file = noted  # type: ignore[attr-defined]
        run(folder)

    process = FORK.Process(target=work)
    process.start()
    if seed % 2 == 0:
        inside.wait(60)
        time.sleep(chance.uniform(0, 0.004))
    else:
        time.sleep(chance.uniform(0.05, 1.5))
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def fill(folder: Path, seed: int) -> None:
    """Run with a limit to the size of every file."""
    limit = random.Random(seed).randrange(100, 400_000)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            run(folder)
        except RightBatchError:
            os._exit(2)

    process = FORK.Process(target=work)
    process.start()
    process.join()
    if process.exitcode not in {0, 2}:
        raise SystemExit(f"limit {limit}: exit code {process.exitcode}")


def on_two(folder: Path, *, resume: bool, stop_after: float | None) -> None:
    """Run on two processes; tell one of them to stop."""

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        where = f"file://{folder}-meet-{resume}"
        limit = timedelta(seconds=60)
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2, timeout=limit)
        run(folder, resume=resume)
        dist.barrier()
        dist.destroy_process_group()

    processes = [FORK.Process(target=work, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    if stop_after is not None:
        while not (folder / "start.json").exists():
            time.sleep(0.01)
        time.sleep(stop_after)
        if processes[1].is_alive():
            os.kill(processes[1].pid, signal.SIGTERM)
    for process in processes:
        process.join()
    if any(process.exitcode not in {0, -signal.SIGTERM} for process in processes):
        raise SystemExit(f"exit codes {[process.exitcode for process in processes]}")


def trials(name: str, count: int, trial: Callable[[Path, int], bool]) -> dict[str, Any]:
    lost = 0
    for seed in range(count):
        folder = Path(tempfile.mkdtemp()) / "run"
        lost += not trial(folder, seed)
        shutil.rmtree(folder.parent)
        print(f"{name} {seed + 1}/{count}, {lost} lost", file=sys.stderr)
    return {"trials": count, "lost": lost}


def main() -> None:
    torch.set_num_threads(1)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder) / "one")
        whole = final(Path(folder) / "one")
        on_two(Path(folder) / "two", resume=False, stop_after=None)
        whole_on_two = final(Path(folder) / "two")

    def killed(folder: Path, seed: int) -> bool:
        kill(folder, seed)
        return goes_on(folder, whole, lambda resume: run(folder, resume=resume))

    def filled(folder: Path, seed: int) -> bool:
        fill(folder, seed)
        return goes_on(folder, whole, lambda resume: run(folder, resume=resume))

    def told(folder: Path, seed: int) -> bool:
        on_two(folder, resume=False, stop_after=random.Random(seed).uniform(0, 1.0))
        again = lambda resume: on_two(folder, resume=resume, stop_after=None)  # noqa: E731
        return goes_on(folder, whole_on_two, again)

    results = {
        "kills": trials("kills", count, killed),
        "full_disks": trials("full disks", max(1, count // 5), filled),
        "signals": trials("signals", max(1, count // 2), told),
    }
    save("reliability", {"updates": UPDATES, **results})


if __name__ == "__main__":
    main()
