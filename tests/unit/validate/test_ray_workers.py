"""A sweep on two nodes of a Ray cluster, one of which is killed on the way."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

import tiny
from rightbatch.core.recipe import Recipe, Target
from rightbatch.tasks.task import Task
from rightbatch.validate.ledger import LEDGER, open_ledger
from rightbatch.validate.session import validate
from rightbatch.validate.sweep_session import sweep

ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'rightbatch[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # those of ray itself


def task() -> Task:
    recipe = Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=5)
    return tiny.task(recipe=recipe, target=Target("mse", 0.5, higher_is_better=False))


def swept(folder: Path, workers: Any) -> Any:
    return sweep(task(), [4, 8, 16], out=folder, seeds=3, noise_seconds=0, workers=workers)


def entries(folder: Path) -> list[str]:
    if not (folder / LEDGER).exists():
        return []
    with open_ledger(folder / LEDGER) as ledger:
        return ledger.keys()


def test_every_run_is_made_once_though_a_node_is_killed(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        found: list[Any] = []
        study = threading.Thread(target=lambda: found.append(swept(tmp_path / "ray", "ray")))
        study.start()
        while len(entries(tmp_path / "ray")) < 3 and study.is_alive():
            time.sleep(0.02)
        cluster.remove_node(second, allow_graceful=False)
        study.join()
        crew = validate(task(), 16, out=tmp_path / "pairs", seeds=2, workers="ray")
    finally:
        ray.shutdown()
        cluster.shutdown()
    keys = entries(tmp_path / "ray")
    assert found[0] == swept(tmp_path / "alone", 1)
    assert len(keys) == len({*keys})
    assert {*keys} == {*entries(tmp_path / "alone")}
    alone = validate(task(), 16, out=tmp_path / "one", seeds=2)
    assert [run.metrics for run in crew.runs] == [run.metrics for run in alone.runs]
