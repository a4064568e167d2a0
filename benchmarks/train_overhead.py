"""What an update costs beside a bare hand-written PyTorch loop: ours, Lightning's and Accelerate's.

    python benchmarks/train_overhead.py [--rounds 30] [--peers SITE_PACKAGES] [TASK ...]

Every tool trains the same fresh model on one thread with the same optimizer, data and batch, turn by
turn in random order. The loss is the clock: it notes the time at an early call and at a late one, so
setting up is outside and whatever a tool does between updates is inside. Each tool is called as its
documentation shows, without evaluation, checkpoints, logging and progress. ``memory`` is the peak of
live tensor bytes over a whole run of a few updates, building the model included.
"""

from __future__ import annotations

import argparse
import logging
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import chain, islice, pairwise, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import rightbatch as rb
from common import ratio_interval, save
from noise.nets import LARGE
from rightbatch.measure.memory.compat import record_allocator
from rightbatch.tasks.build import build_optimizer

WARM_UP, TASKS = 10, ("digits", "fashion-mnist", "characters")
UPDATES = {"digits": 200, "fashion-mnist": 25, "characters": 8}
MEMORY_UPDATES = 4


@dataclass
class Job:
    """One run of a tool: what it trains, for how many updates, and when its loss was called."""

    task: rb.Task
    updates: int
    stamps: list[tuple[float, float]] = field(default_factory=list)

    def build(self) -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
        torch.manual_seed(0)
        model, recipe = self.task.model(), self.task.recipe
        loader = DataLoader(self.task.train_data, batch_size=recipe.batch_size, shuffle=True)
        return model, build_optimizer(recipe, model, recipe.lr), loader

    def tick(self) -> None:
        """Note wall and CPU time; a few calls that check the task may come before the first update."""
        self.stamps.append((time.perf_counter(), time.process_time()))

    def summed(self, model: Any, batch: Any) -> Any:
        """The task's own loss, a sum and its count."""
        self.tick()
        return self.task.loss(model, batch)

    def mean(self, model: Any, batch: Any) -> Tensor:
        """What everybody else writes."""
        self.tick()
        x, y = batch
        logits = model(x)
        return F.cross_entropy(logits.flatten(0, -2), y.flatten())

    def batches(self, loader: Any) -> Iterator[Any]:
        return islice(chain.from_iterable(repeat(loader)), self.updates)


def bare(job: Job) -> None:
    """What a careful user writes."""
    model, optimizer, loader = job.build()
    for batch in job.batches(loader):
        optimizer.zero_grad()
        job.mean(model, batch).backward()
        optimizer.step()


def by_rightbatch(job: Job) -> None:
    task = replace(job.task, loss=job.summed)
    with tempfile.TemporaryDirectory() as folder:
        rb.train(task, rb.Plan.from_recipe(task.recipe), folder, max_updates=job.updates)


def by_lightning(job: Job) -> None:
    import pytorch_lightning as pl

    built, optimizer, loader = job.build()

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = built

        def training_step(self, batch: Any, index: int) -> Tensor:
            return job.mean(self.model, batch)

        def configure_optimizers(self) -> Any:
            return optimizer

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    pl.Trainer(
        max_steps=job.updates,
        max_epochs=-1,
        accelerator="cpu",
        devices=1,
        **dict.fromkeys(quiet, False),
    ).fit(Module(), loader)


def by_accelerate(job: Job) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(*job.build())
    for batch in job.batches(loader):
        with accelerator.accumulate(model):
            optimizer.zero_grad()
            accelerator.backward(job.mean(model, batch))
            optimizer.step()


TOOLS: dict[str, Callable[[Job], None]] = {"bare": bare, "rightbatch": by_rightbatch}
PEERS = {"lightning": by_lightning, "accelerate": by_accelerate}


def characters() -> rb.Task:
    """A transformer of four layers, width 192, on 128 characters of Python's own source text."""
    net = LARGE["transformer"]

    def loss(model: Any, batch: Any) -> rb.Loss:
        x, y = batch
        total = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum")
        return rb.Loss(total, y.numel())

    return rb.Task(
        name="characters",
        model=net.model,
        train_data=TensorDataset(*net.data(512)),
        valid_data=None,
        loss=loss,
        recipe=rb.Recipe(optimizer="adamw", lr=1e-3, batch_size=net.batch_size, steps=100_000),
    )


def load(name: str) -> rb.Task:
    """A task that is trained and never evaluated."""
    task = characters() if name == "characters" else rb.load_task(name)
    return replace(task, valid_data=None, evaluate=None, target=None)


def seconds_per_update(tool: Callable[[Job], None], task: rb.Task, updates: int) -> tuple[float, float]:
    """Wall and CPU seconds of the median update."""
    job = Job(task, WARM_UP + updates)
    tool(job)
    pairs = list(pairwise(job.stamps[-updates:]))
    return (
        statistics.median(after[0] - before[0] for before, after in pairs),
        statistics.median(after[1] - before[1] for before, after in pairs),
    )


def peak_bytes(tool: Callable[[Job], None], task: rb.Task) -> int:
    """Of live tensors, over a run of a few updates."""
    live = peak = 0
    for event in record_allocator(lambda mark: tool(Job(task, MEMORY_UPDATES)), "overhead/"):
        live += event.delta_bytes if event.kind == "memory" else 0
        peak = max(peak, live)
    return peak


def compare(name: str, tools: dict[str, Callable[[Job], None]], rounds: int) -> dict[str, Any]:
    task, updates = load(name), UPDATES[name]
    times: dict[str, list[tuple[float, float]]] = {tool: [] for tool in tools}
    for turn in range(rounds + 1):
        for tool in random.Random(turn).sample(list(tools), len(tools)):
            times[tool].append(seconds_per_update(tools[tool], task, updates))
    peaks = {tool: peak_bytes(run, task) for tool, run in tools.items()}
    rows: dict[str, Any] = {}
    for tool, found in times.items():
        pairs = list(zip(found, times["bare"], strict=True))[1:]  # the first warms up
        rows[tool] = {"milliseconds": round(1e3 * statistics.median(w for (w, _), _ in pairs), 4)}
        if tool != "bare":
            rows[tool] |= {
                "wall": ratio_interval([a[0] / b[0] for a, b in pairs]),
                "cpu": ratio_interval([a[1] / b[1] for a, b in pairs]),
                "memory": round(peaks[tool] / peaks["bare"], 4),
            }
        print(name, tool, rows[tool], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--peers", help="a folder to import lightning and accelerate from")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tools, versions = dict(TOOLS), dict[str, str]()
    if options.peers:
        sys.path.append(options.peers)
        import pytorch_lightning  # noqa: F401 - sets its own logger's level

        logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
        tools |= PEERS
        versions = {name: version(name) for name in ("lightning", "accelerate")}
    rows = {name: compare(name, tools, options.rounds) for name in options.tasks}
    save("train_overhead", {"rounds": options.rounds, "level": 0.9, "peers": versions, "rows": rows})


if __name__ == "__main__":
    main()
