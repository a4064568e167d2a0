"""A sweep on two nodes of a Ray cluster, one of which is killed on the way."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import tiny
from rightbatch.core.errors import InvalidTaskError
from rightbatch.core.recipe import Recipe, Target
from rightbatch.core.record import Record
from rightbatch.tasks.load import load_task
from rightbatch.tasks.task import Task
from rightbatch.validate.ledger import LEDGER, open_ledger
from rightbatch.validate.ray_workers import _by_value, ray_workers
from rightbatch.validate.session import validate
from rightbatch.validate.sweep import ArmJob
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


OWN = """
import sys
sys.path.insert(0, {tests!r})
import tiny

class Net(tiny.nn.Linear):
    def __init__(self):
        super().__init__(3, 1)

def make_task():
    return tiny.task(model=Net)
"""


def test_what_a_tasks_own_file_defines_travels_to_machines_without_the_file(tmp_path: Path) -> None:
    here, there = tmp_path / "only_here.py", tmp_path / "job"
    here.write_text(OWN.format(tests=str(Path(tiny.__file__).parent)))
    own = load_task(str(here))
    there.write_bytes(_by_value(own.model, own))
    here.unlink()
    code = f"import pickle; print(pickle.load(open({str(there)!r}, 'rb'))())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Net(in_features=3"), done.stderr


def test_what_a_job_raises_arrives_and_the_jobs_beside_it_end(tmp_path: Path) -> None:
    began = tmp_path / "pid"

    def do(job: Any, tell: Any) -> Record:
        if job.seed:
            while not began.exists():
                time.sleep(0.05)
            raise InvalidTaskError("seed 1", need="seed 0", hint="take it")
        began.with_suffix(".new").write_text(str(os.getpid()))
        began.with_suffix(".new").rename(began)
        time.sleep(600)
        raise AssertionError

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with ray_workers(do, task(), "cpu") as crew:
            crew.submit(ArmJob(8, 1.0, 0, 1.0))
            crew.submit(ArmJob(8, 1.0, 1, 1.0))
            with pytest.raises(InvalidTaskError, match="seed 1; need seed 0"):
                list(crew.wait())
        for _ in range(200):
            if not Path("/proc", began.read_text()).exists():
                break
            time.sleep(0.1)
        assert not Path("/proc", began.read_text()).exists()
    finally:
        ray.shutdown()
