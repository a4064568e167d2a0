"""Several processes that train together, forked from the test's own: quicker than torchrun."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

SECONDS = 60


def run_ranks(count: int, work: Callable[[Path], Any], folder: Path) -> list[Any]:
    """What ``work(folder)`` returns in each of ``count`` processes, by rank."""
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()
    processes = [
        context.Process(target=_rank, args=(rank, count, work, folder, results))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    for process in processes:
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
    while not results.empty():
        rank, ok, value = results.get()
        assert ok, f"rank {rank}:\n{value}"
        found[rank] = value
    assert sorted(found) == list(range(count)), f"only ranks {sorted(found)} came back"
    return [found[rank] for rank in range(count)]


def _rank(rank: int, count: int, work: Any, folder: Path, results: Any) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder.resolve()}/rendezvous-{count}",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=SECONDS),
        )
        value = work(folder)
        dist.barrier()
        dist.destroy_process_group()
        results.put((rank, True, value))
    except BaseException:
        results.put((rank, False, traceback.format_exc()))
