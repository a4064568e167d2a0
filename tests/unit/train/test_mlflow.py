"""Metrics go to a run in MLflow when it is asked for, and a run that goes on goes on there."""

import importlib.util
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import tiny
from rightbatch.core.errors import InvalidInputError, InvalidTaskError, MissingPackageError
from rightbatch.core.plan import Plan
from rightbatch.core.run import Outcome
from rightbatch.tasks.task import Loss
from rightbatch.train.loop import Saving, train
from rightbatch.train.record import Progress

PLAN = Plan.from_recipe(tiny.task().recipe, "tiny")


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "true")


def logged(store: Path) -> tuple[Any, Any]:
    """A client of a store, and the only run in it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store.as_uri())
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def history(store: Path, key: str) -> list[tuple[int, float]]:
    client, run = logged(store)
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]


def test_a_run_and_what_goes_on_with_it_are_one_run_with_every_evaluation(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(tiny.task(), PLAN, folder, 3, 6, mlflow=True)
    run = train(tiny.task(), PLAN, folder, 3, resume=True, mlflow=True)
    _, found = logged(folder / "mlflow")
    assert (found.info.run_name, found.info.status) == ("run", "FINISHED")
    assert found.data.tags["outcome"] == "finished"
    assert found.data.params["global_batch_size"] == "8"
    assert found.data.params["seed"] == "3"
    evaluated = [(e.updates, e.metrics["mse"]) for e in run.evaluations]
    assert history(folder / "mlflow", "metrics/mse") == evaluated
    assert history(folder / "mlflow", "batch_size")[0] == (1, 8.0)


def test_updates_that_are_made_again_are_not_logged_again(tmp_path: Path) -> None:
    train(tiny.task(), PLAN, tmp_path, saving=Saving(seconds=0.0, keep=30), mlflow=True)
    (tmp_path / "outcome.json").unlink()
    for manifest in sorted((tmp_path / "checkpoints").glob("*.json"))[7:]:
        manifest.unlink()
    train(tiny.task(), PLAN, tmp_path, resume=True, mlflow=True)
    assert [step for step, _ in history(tmp_path / "mlflow", "metrics/mse")] == [6, 12, 18, 24]


def terminate(progress: Progress) -> None:
    if progress.metrics is not None:
        signal.raise_signal(signal.SIGTERM)


def bad(model: nn.Module, batch: Any) -> Loss:
    """Finite for the two examples that a task is checked with."""
    loss = tiny.squared_error(model, batch)
    return loss if len(batch[0]) == 2 else Loss(loss.total * float("nan"), loss.count)


@pytest.mark.parametrize(
    ("loss", "on_progress", "outcome", "status"),
    [
        (bad, None, Outcome.DIVERGED, "FAILED"),
        (tiny.squared_error, terminate, Outcome.TERMINATED, "KILLED"),
    ],
)
def test_the_outcome_is_the_status(
    tmp_path: Path,
    loss: Any,
    on_progress: Callable[[Progress], None] | None,
    outcome: Outcome,
    status: str,
) -> None:
    run = train(tiny.task(loss=loss), PLAN, tmp_path, on_progress=on_progress, mlflow=True)
    _, found = logged(tmp_path / "mlflow")
    assert (run.outcome, found.info.status) == (outcome, status)


def test_a_run_that_an_error_ended_has_failed(tmp_path: Path) -> None:
    def broken(progress: Progress) -> None:
        raise ZeroDivisionError

    with pytest.raises(InvalidTaskError, match="training raised ZeroDivisionError at"):
        train(tiny.task(), PLAN, tmp_path, on_progress=broken, mlflow=True)
    assert logged(tmp_path / "mlflow")[1].info.status == "FAILED"


def test_metrics_go_where_the_tracking_uri_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "everybody").as_uri())
    train(tiny.task(), PLAN, tmp_path / "run", mlflow=True)
    assert len(history(tmp_path / "everybody", "metrics/mse")) == 4
    assert not (tmp_path / "run" / "mlflow").exists()


def test_a_store_that_cannot_be_written_ends_the_run_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "file").as_uri())
    with pytest.raises(InvalidInputError, match=r"MLflow at file:.*; need a store that takes metrics"):
        train(tiny.task(), PLAN, tmp_path / "run", mlflow=True)


def test_without_the_package_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "mlflow" else find(name, *a)
    )
    with pytest.raises(MissingPackageError, match="mlflow is not installed; need mlflow-skinny") as e:
        train(tiny.task(), PLAN, tmp_path / "run", mlflow=True)
    assert "pip install 'rightbatch[mlflow]'" in str(e.value)
    assert not (tmp_path / "run").exists()
