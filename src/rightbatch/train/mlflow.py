"""The lines of metrics as a run in MLflow, where its package is installed.

MLFLOW_TRACKING_URI names the store, as for everything that speaks to MLflow; without it the run's
folder gets a file store of its own. What was logged once is not logged again: a run that goes on
repeats the updates after its checkpoint, and MLflow cannot take back what it was told.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from rightbatch.core.errors import InvalidInputError
from rightbatch.core.packages import check_installed
from rightbatch.core.plan import Plan
from rightbatch.core.record import SCHEMA_VERSION, Record
from rightbatch.core.run import Outcome, Run
from rightbatch.core.store import read_record, write_record
from rightbatch.train.folder import Start
from rightbatch.train.record import OpenLog
from rightbatch.train.tensorboard import scalars

Value = TypeVar("Value")
_WHERE = "mlflow.json"
_ALWAYS = "examples"  # a number that every line of metrics has


class Where(Record):
    """Under what a run's folder is known to MLflow."""

    schema_version: int = SCHEMA_VERSION
    tracking_uri: str | None
    """None is the store in the run's folder."""
    run_id: str


def open_mlflow(plan: Plan, start: Start, *, resume: bool) -> OpenLog:
    """What opens a run in MLflow, once the run's folder is there.

    Raises:
        MissingPackageError: mlflow is not installed.
    """
    check_installed("mlflow", need="mlflow-skinny or mlflow, which write its stores", extra="mlflow")
    return partial(MLflowLog, plan=plan, start=start, resume=resume)


class MLflowLog:
    """Owns a run in MLflow; a plan's constants are its parameters, updates its steps."""

    def __init__(self, folder: Path, updates: int, *, plan: Plan, start: Start, resume: bool) -> None:
        """Begin a run in MLflow, or go on with the one that this folder has.

        Raises:
            InvalidInputError: the store cannot be written, or no longer has that run.
        """
        del updates  # MLflow itself knows how far it was told
        # What a user trains is nobody else's business; and the file store wants to be asked for.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        path = folder / _WHERE
        known = read_record(path, Where) if resume and path.exists() else None
        self._uri = known.tracking_uri if known else os.environ.get("MLFLOW_TRACKING_URI")
        if self._uri is None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = self._uri or (folder / "mlflow").resolve().as_uri()
        self._client: Any = self._told(lambda: _client(uri))
        self._last_step = 0
        if known is None:
            self._id = self._told(lambda: self._begin(folder.name, plan, start))
            write_record(path, Where(tracking_uri=self._uri, run_id=self._id))
        else:
            self._id = known.run_id
            self._told(lambda: self._client.update_run(self._id, "RUNNING"))
            logged = self._told(lambda: self._client.get_metric_history(self._id, _ALWAYS))
            self._last_step = max((point.step for point in logged), default=0)

    def _begin(self, name: str, plan: Plan, start: Start) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(start.task)
        experiment = (
            self._client.create_experiment(start.task) if found is None else found.experiment_id
        )
        run_id = self._client.create_run(experiment, run_name=name).info.run_id
        values = plan.model_dump(mode="json") | start.model_dump(mode="json")
        kept = {key: v for key, v in values.items() if isinstance(v, (bool, int, float, str))}
        self._client.log_batch(run_id, params=[Param(key, str(v)) for key, v in kept.items()])
        return run_id

    def add(self, line: dict[str, Any]) -> None:
        """Add a line of metrics, by update.

        Raises:
            InvalidInputError: the store does not take it.
        """
        from mlflow.entities import Metric

        step, now = line["updates"], time.time_ns() // 1_000_000
        if step > self._last_step:
            metrics = [Metric(tag, float(value), now, step) for tag, value in scalars(line).items()]
            self._told(lambda: self._client.log_batch(self._id, metrics=metrics))

    def close(self, run: Run | None) -> None:
        """End the run in MLflow, with its outcome.

        Raises:
            InvalidInputError: the store does not take it.
        """
        status = "FAILED"
        if run is not None:
            self._told(lambda: self._client.set_tag(self._id, "outcome", run.outcome.value))
            self._told(lambda: self._client.set_tag(self._id, "message", run.message))
            if run.outcome in {Outcome.INTERRUPTED, Outcome.TERMINATED}:
                status = "KILLED"
            elif run.outcome not in {Outcome.DIVERGED, Outcome.FAILED}:
                status = "FINISHED"
        self._told(lambda: self._client.set_terminated(self._id, status))

    def _told(self, act: Callable[[], Value]) -> Value:
        """What the store answers.

        Raises:
            InvalidInputError: it refuses, or cannot be reached or written.
        """
        from mlflow.exceptions import MlflowException

        try:
            return act()
        except (MlflowException, OSError) as error:
            where = self._uri or "the run's own store"
            found = f"MLflow at {where}: {str(error).splitlines()[0]}"
            hint = "repair it, then go on with --resume (resume=True), with or without --mlflow"
            raise InvalidInputError(found, need="a store that takes metrics", hint=hint) from error


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)
