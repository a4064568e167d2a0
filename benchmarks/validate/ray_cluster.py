"""A sweep on a local Ray cluster of two nodes, one of which is killed on the way.

Every run must be in the ledger exactly once, and the answer must be the one that this process gives by
itself. Training a run twice on the way is no fault: that is how what a lost node had begun is saved.

    python benchmarks/validate/ray_cluster.py
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
import ray
from ray.cluster_utils import Cluster

import tiny
from common import save
from rightbatch.core.recipe import Recipe, Target
from rightbatch.tasks.task import Loss, Task
from rightbatch.validate.ledger import LEDGER, open_ledger
from rightbatch.validate.sweep_session import sweep

SIZES, SEEDS = (4, 8, 16), 8


def task(nodes: Path) -> Task:
    """Each node that trains leaves its name; a run takes a while, so that the kill meets one."""

    def loss(model: Any, batch: Any) -> Loss:
        if ray.is_initialized():
            (nodes / ray.get_runtime_context().get_node_id()).touch()
            time.sleep(0.002)
        return tiny.squared_error(model, batch)

    recipe = Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=5)
    return tiny.task(loss=loss, recipe=recipe, target=Target("mse", 0.5, higher_is_better=False))


def entries(folder: Path) -> list[str]:
    if not (folder / LEDGER).exists():
        return []
    with open_ledger(folder / LEDGER) as ledger:
        return ledger.keys()


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"ray": ray.__version__, "nodes": 2}
    with tempfile.TemporaryDirectory() as name:
        folder, alone = Path(name, "ray"), Path(name, "alone")
        nodes = Path(name, "nodes")
        nodes.mkdir()
        began = time.perf_counter()
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        second = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        found["seconds_to_start_the_cluster"] = round(time.perf_counter() - began, 1)
        answers: list[Any] = []

        def run() -> None:
            answers.append(
                sweep(task(nodes), SIZES, out=folder, seeds=SEEDS, noise_seconds=0, workers="ray")
            )

        began = time.perf_counter()
        study = threading.Thread(target=run)
        study.start()
        while len(entries(folder)) < 10 or len([*nodes.iterdir()]) < 2:
            time.sleep(0.05)
        found["runs_when_a_node_was_killed"] = len(entries(folder))
        found["nodes_that_had_trained"] = len([*nodes.iterdir()])
        killed = time.perf_counter()
        cluster.remove_node(second, allow_graceful=False)
        study.join()
        found["seconds_after_the_kill"] = round(time.perf_counter() - killed, 1)
        found["seconds"] = round(time.perf_counter() - began, 1)
        ray.shutdown()
        cluster.shutdown()
        keys = entries(folder)
        expected = sweep(task(nodes), SIZES, out=alone, seeds=SEEDS, noise_seconds=0)
        found |= {
            "runs": len(keys),
            "entered_once": len({*keys}),
            "runs_missing": len({*entries(alone)} - {*keys}),
            "equal_to_one_process": answers[0] == expected,
        }
    save("validate_ray", found)


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main()
