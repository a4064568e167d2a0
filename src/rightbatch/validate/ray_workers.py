"""The jobs of a study on the machines of a Ray cluster, each tried again where its machine is lost.

The task travels by value, with what its own file defines; rightbatch and the libraries that the task
imports have to be installed on every machine. Only this process writes to the ledger.
"""

# Ray is 240 MB and optional: types are checked without it too.
# pyright: reportMissingImports=false

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import torch

from rightbatch.core.errors import MeasurementError, RightBatchError
from rightbatch.core.packages import check_installed
from rightbatch.core.record import Record
from rightbatch.tasks.task import Task
from rightbatch.validate.work import Do, Job

_RETRIES = 10
"""Of one job, where its machine or process is lost; then the job is taken for the cause."""


@contextmanager
def ray_workers(do: Do, task: Task, device: str) -> Generator[OnRay]:
    """The cluster that RAY_ADDRESS names or that this machine belongs to; else this machine alone.

    Raises:
        MissingPackageError: Ray is not installed.
    """
    check_installed("ray", need="ray, which runs the jobs on its cluster", extra="ray")
    import ray

    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    crew = OnRay(ray, _by_value(do, task), device)
    try:
        yield crew
    finally:
        crew.cancel()
        if is_ours:
            ray.shutdown()


class OnRay:
    """As many jobs at a time as the cluster has CPUs, or on CUDA as many as it has GPUs."""

    def __init__(self, ray: Any, do: bytes, device: str) -> None:
        """Send the task to the cluster."""
        self._ray = ray
        needs = {"num_cpus": 1, "num_gpus": 0 if torch.device(device).type == "cpu" else 1}
        self._run = ray.remote(max_retries=_RETRIES, **needs)(_run_job)
        self._do = ray.put(do)
        self._at_work: dict[Any, Job] = {}

    @property
    def has_room(self) -> bool:
        """Always: the cluster keeps the queue, and may grow with it."""
        return True

    def submit(self, job: Job) -> None:
        """Put it into the cluster's queue."""
        # In a list, the reference travels and not what it refers to: each process fetches that once.
        self._at_work[self._run.remote([self._do], tuple(sys.path), job)] = job

    def wait(self) -> Iterator[tuple[Job, Record]]:
        """Take what is done.

        Raises:
            MeasurementError: a job took its machine or process with it, time and again.
            RightBatchError: a job raised it.
        """
        ready, _ = self._ray.wait([*self._at_work], num_returns=1)
        for reference in ready:
            job = self._at_work.pop(reference)
            try:
                found = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                text = str(error).strip().splitlines()[0]
                found = f"{job.key}: Ray raised {type(error).__name__}: {text}"
                need, hint = "a cluster that does it", "--workers 1 shows more"
                raise MeasurementError(found, need=need, hint=hint) from error
            if isinstance(found, RightBatchError):
                raise found
            yield job, found

    def cancel(self) -> None:
        """What is still in the queue or at work."""
        for reference in self._at_work:
            self._ray.cancel(reference, force=True)


def _by_value(do: Do, task: Task) -> bytes:
    """What does a job, with all that it needs, also the definitions in the task's own file."""
    from ray import cloudpickle

    location = task.spec.partition(":")[0]
    own = sys.modules.get(location.rpartition("/")[2].removesuffix(".py"))
    if not location.endswith(".py") or own is None:
        return cast(bytes, cloudpickle.dumps(do))
    cloudpickle.register_pickle_by_value(own)
    try:
        return cast(bytes, cloudpickle.dumps(do))
    finally:
        cloudpickle.unregister_pickle_by_value(own)


def _run_job(do: list[Any], path: tuple[str, ...], job: Job) -> Record | RightBatchError:
    """Runs on a machine of the cluster."""
    from rightbatch.validate.workers import answer

    sys.path += [folder for folder in path if folder not in sys.path]
    torch.set_num_threads(1)
    return answer(_fetched(do[0]), job, lambda share, text: None)


@lru_cache(maxsize=1)
def _fetched(reference: Any) -> Callable[..., Record]:
    import ray
    from ray import cloudpickle

    return cast("Callable[..., Record]", cloudpickle.loads(ray.get(reference)))
