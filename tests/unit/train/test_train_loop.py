"""A run ends with an outcome, and what it left on disk says what happened."""

import importlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import tiny
from rightbatch.core.errors import InvalidInputError, InvalidTaskError
from rightbatch.core.plan import Plan
from rightbatch.core.recipe import LoaderOptions, Target
from rightbatch.core.run import Outcome, Run
from rightbatch.core.store import read_record
from rightbatch.tasks.load import load_task
from rightbatch.tasks.task import Loss, Task
from rightbatch.train.loop import Saving, train
from rightbatch.train.record import Progress

UPDATES_PER_EPOCH = tiny.NUM_EXAMPLES // 8


def plan(**changes: Any) -> Plan:
    return Plan.from_recipe(tiny.task().recipe, **changes)


def lines(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_full_run_evaluates_after_every_epoch_and_finishes(tmp_path: Path) -> None:
    run = train(tiny.task(), plan(), tmp_path / "run")
    assert run.outcome is Outcome.FINISHED
    assert run.message == "all 192 examples processed without reaching mse <= 1e-06"
    assert [(e.updates, e.examples) for e in run.evaluations] == [
        (6, 48),
        (12, 96),
        (18, 144),
        (24, 192),
    ]
    losses = [e.train_loss for e in run.evaluations]
    assert losses == sorted(losses, reverse=True)
    assert not run.target_reached
    assert run.metrics == run.evaluations[-1].metrics


def test_the_train_loss_of_an_evaluation_is_the_mean_since_the_one_before(tmp_path: Path) -> None:
    totals: list[float] = []

    def loss(model: nn.Module, batch: Any) -> Loss:
        found = tiny.squared_error(model, batch)
        totals.append(float(found.total.detach()))
        return found

    run = train(tiny.task(loss=loss, evaluate=lambda model, batches: {"mse": 1.0}), plan(), tmp_path)
    epochs = [totals[-24:][i : i + 6] for i in (0, 6, 12, 18)]  # after the check's own calls
    expected = [sum(epoch) / tiny.NUM_EXAMPLES for epoch in epochs]
    assert [e.train_loss for e in run.evaluations] == pytest.approx(expected)


def test_the_outcome_file_is_the_run(tmp_path: Path) -> None:
    run = train(tiny.task(), plan(), tmp_path)
    assert read_record(tmp_path / "outcome.json", Run) == run
    assert read_record(tmp_path / "plan.json", Plan) == plan()
    assert [entry["metrics"] for entry in lines(run) if "metrics" in entry] == [
        e.metrics for e in run.evaluations
    ]
    first = lines(run)[0]
    assert set(first) == {
        "examples",
        "updates",
        "seconds",
        "loss",
        "learning_rate",
        "batch_size",
    }
    assert (first["examples"], first["updates"], first["learning_rate"]) == (8, 1, 0.01)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    def weights(folder: str, seed: int) -> Tensor:
        torch.manual_seed(len(folder))  # the caller's own random numbers must not matter
        task = tiny.task(model=lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)))
        return train(task, plan(), tmp_path / folder, seed).final_state_dict()["1.weight"]

    assert torch.equal(weights("a", 3), weights("another", 3))
    assert not torch.equal(weights("b", 3), weights("c", 4))


def test_the_run_stops_at_its_target(tmp_path: Path) -> None:
    task = tiny.task(target=Target("mse", 100.0, higher_is_better=False))
    run = train(task, plan(), tmp_path)
    assert run.outcome is Outcome.TARGET_REACHED
    assert run.target_reached
    assert (run.updates, run.message) == (UPDATES_PER_EPOCH, "mse <= 100 reached after 48 examples")


def test_early_stopping_ends_the_run_when_the_best_evaluation_is_long_ago(tmp_path: Path) -> None:
    values = iter([9.0, 3.0, 2.0, 2.0, 4.0, 1.0])  # the first is of the check before the run
    task = tiny.task(evaluate=lambda model, batches: {"mse": next(values)})
    first = train(task, plan(), tmp_path, max_updates=18, early_stopping=2)
    assert (first.outcome, first.updates) == (Outcome.STOPPED, 18)
    values = iter([9.0, 4.0])
    run = train(task, plan(), tmp_path, resume=True, early_stopping=2)
    assert (run.outcome, run.updates) == (Outcome.EARLY_STOPPED, 24)
    best = "no better evaluation in 2 after that of update 12, whose weights are best.safetensors"
    assert run.message == best
    assert train(task, plan(), tmp_path, resume=True) == run


def test_early_stopping_needs_evaluations_and_something_to_judge_them_by(tmp_path: Path) -> None:
    task = tiny.task(valid_data=None, evaluate=None, target=None)
    with pytest.raises(InvalidInputError, match="early stopping without valid_data; need evaluations"):
        train(task, plan(), tmp_path, early_stopping=1)
    with pytest.raises(InvalidInputError, match="early stopping and metrics mse; need a target, or a"):
        train(tiny.task(target=None), plan(), tmp_path, early_stopping=1)


def test_max_updates_stops_the_run_and_still_evaluates(tmp_path: Path) -> None:
    run = train(tiny.task(), plan(), tmp_path, max_updates=8)
    assert run.outcome is Outcome.STOPPED
    assert run.message == "stopped at max_updates = 8, 128 examples early"
    assert [e.updates for e in run.evaluations] == [6, 8]
    long = train(tiny.task(), plan(epochs=100), tmp_path / "long", max_updates=2)
    assert long.message == "stopped at max_updates = 2, 4,784 examples early"


def test_max_updates_does_not_shorten_the_schedule(tmp_path: Path) -> None:
    run = train(tiny.task(), plan(schedule="linear"), tmp_path, max_updates=1)
    assert lines(run)[0]["learning_rate"] == pytest.approx(0.01 * (1 - 4 / 192))


def test_a_task_without_validation_data_trains_without_evaluation(tmp_path: Path) -> None:
    run = train(tiny.task(valid_data=None, evaluate=None, target=None), plan(), tmp_path)
    assert (run.outcome, run.evaluations, run.metrics) == (Outcome.FINISHED, (), {})
    assert run.message == "all 192 examples processed"


@dataclass
class Failing:
    """The task's loss, but ``spoil`` changes it from the call after ``good`` updates on."""

    good: int
    spoil: Callable[[Loss], Loss]
    model: nn.Module | None = None
    calls: int = 0
    before: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, model: nn.Module, batch: Any) -> Loss:
        loss = tiny.squared_error(model, batch)
        if not torch.is_grad_enabled() or len(batch[1]) < 8:  # evaluation, or the check before the run
            return loss
        self.calls += 1
        if self.calls <= self.good:
            return loss
        self.before = {name: value.clone() for name, value in model.state_dict().items()}
        return self.spoil(loss)


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * math.inf


SPOILS: dict[str, Callable[[Loss], Loss]] = {
    "loss": lambda loss: Loss(loss.total * math.nan, loss.count),
    "gradient": lambda loss: Loss(InfiniteGradient.apply(loss.total), loss.count),
}


@pytest.mark.parametrize("kind", list(SPOILS))
@pytest.mark.parametrize("changes", [{}, {"clip_norm": 1.0, "ema_decay": 0.9}])
def test_a_loss_or_gradient_that_is_not_finite_leaves_the_weights_before_it(
    tmp_path: Path, kind: str, changes: dict[str, Any]
) -> None:
    failing = Failing(good=3, spoil=SPOILS[kind])
    run = train(tiny.task(loss=failing), plan(**changes), tmp_path)
    assert run.outcome is Outcome.DIVERGED
    assert "at update 4; the weights are those before it: lower learning_rate" in run.message
    assert (run.updates, run.examples) == (3, 24)
    torch.testing.assert_close(run.final_state_dict(), failing.before, rtol=0, atol=0)
    assert read_record(tmp_path / "outcome.json", Run) == run


def test_running_statistics_of_a_diverged_update_are_not_kept(tmp_path: Path) -> None:
    data = tiny.data()
    data.tensors[0][20] = math.inf
    task = tiny.task(model=tiny.batch_norm, train_data=data)
    run = train(task, plan(sampler="sequential"), tmp_path)  # example 20 is of update 3
    assert (run.outcome, run.updates) == (Outcome.DIVERGED, 2)
    state = run.final_state_dict()
    assert all(value.isfinite().all() for value in state.values())
    assert state["1.num_batches_tracked"] == 2


class Squeezing(nn.Linear):
    """Cannot take one example alone, which its ``squeeze`` leaves without a row."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).squeeze()[:, None]


def test_a_run_has_diverged_where_its_examples_cannot_be_looked_at_one_by_one(tmp_path: Path) -> None:
    data = tiny.data()
    data.tensors[0][20] = math.inf
    task = tiny.task(model=lambda: Squeezing(3, 1), train_data=data)
    run = train(task, plan(sampler="sequential"), tmp_path)  # example 20 is of update 3
    assert (run.outcome, run.updates) == (Outcome.DIVERGED, 2)
    assert run.suspects == tuple(range(16, 24))


class Running(nn.Linear):
    """Puts another tensor in its buffer's place in every update."""

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self.seen = self.seen + input.sum()
        return super().forward(input)


def test_nor_are_statistics_that_a_module_keeps_in_a_new_tensor(tmp_path: Path) -> None:
    data = tiny.data()
    data.tensors[0][20] = math.inf
    run = train(tiny.task(model=Running, train_data=data), plan(sampler="sequential"), tmp_path)
    assert run.updates == 2
    torch.testing.assert_close(run.final_state_dict()["seen"], data.tensors[0][:16].sum())


def test_a_first_update_that_is_not_finite_points_at_the_data(tmp_path: Path) -> None:
    run = train(tiny.task(loss=Failing(good=0, spoil=SPOILS["loss"])), plan(), tmp_path)
    assert "at update 1; the weights are those before it: check the data" in run.message
    assert run.seconds == 0


def test_a_metric_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    task = tiny.task(evaluate=lambda model, batches: {"mse": math.nan})
    run = train(task, plan(), tmp_path)
    assert run.outcome is Outcome.DIVERGED
    assert run.message.startswith("evaluation after update 6 gave mse = nan; check `evaluate`")


def interrupt(progress: Progress) -> None:
    if progress.updates >= 12:
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_ends_the_run_after_the_update_in_flight_and_keeps_it(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    run = train(tiny.task(), plan(), tmp_path, on_progress=interrupt)
    assert run.outcome is Outcome.INTERRUPTED
    assert run.message == "stopped by Ctrl-C; saved after update 13"
    assert [e.updates for e in run.evaluations] == [6, 12]
    limited = train(tiny.task(), plan(), tmp_path / "limited", max_updates=13)
    torch.testing.assert_close(run.final_state_dict(), limited.final_state_dict(), rtol=0, atol=0)
    assert signal.getsignal(signal.SIGINT) is handler


class SignalledSGD(torch.optim.SGD):
    """Sends itself Ctrl-C in the third step, before any weight has changed."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        if self.steps == 3:
            signal.raise_signal(signal.SIGINT)
        return super().step(closure)


def signalled(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return SignalledSGD(parameters, lr)


def test_ctrl_c_in_the_middle_of_a_step_waits_until_the_step_is_whole(tmp_path: Path) -> None:
    run = train(tiny.task(), plan(optimizer=signalled), tmp_path / "signalled")
    assert (run.outcome, run.updates) == (Outcome.INTERRUPTED, 4)
    whole = train(tiny.task(), plan(), tmp_path / "whole", max_updates=4)
    torch.testing.assert_close(run.final_state_dict(), whole.final_state_dict(), rtol=0, atol=0)


def insist(progress: Progress) -> None:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def test_a_second_ctrl_c_aborts(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tiny.task(), plan(), tmp_path, on_progress=insist)
    assert not (tmp_path / "outcome.json").exists()
    assert signal.getsignal(signal.SIGINT) is handler


def terminate(progress: Progress) -> None:
    signal.raise_signal(signal.SIGTERM)


def test_sigterm_is_an_outcome_of_its_own(tmp_path: Path) -> None:
    run = train(tiny.task(), plan(), tmp_path, on_progress=terminate)
    assert (run.outcome, run.message) == (
        Outcome.TERMINATED,
        "stopped by SIGTERM; saved after update 2",
    )


def test_training_outside_the_main_thread_needs_no_signal_handler(tmp_path: Path) -> None:
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(train(tiny.task(), plan(), tmp_path)))
    thread.start()
    thread.join()
    assert runs[0].outcome is Outcome.FINISHED


def test_a_folder_that_records_a_run_is_refused_and_kept(tmp_path: Path) -> None:
    train(tiny.task(), plan(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InvalidInputError, match=r"outcome\.json records an earlier run; need a folder"):
        train(tiny.task(), plan(), tmp_path, seed=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match=r"cannot write .*plan\.json"):
        train(tiny.task(), plan(), tmp_path / "file" / "run")


def test_an_update_without_targets_is_an_error(tmp_path: Path) -> None:
    failing = Failing(good=1, spoil=lambda loss: Loss(loss.total * 0, 0))
    with pytest.raises(InvalidInputError, match="0 counted targets in an update of 8 examples"):
        train(tiny.task(loss=failing), plan(), tmp_path)


class Faulty(Dataset[tuple[Tensor, Tensor]]):
    """Its example 33 cannot be read until it is repaired."""

    broken = True

    def __len__(self) -> int:
        return tiny.NUM_EXAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index == 33 and self.broken:
            raise ValueError("corrupt image 33.png")
        return tiny.data()[index]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_the_data_leaves_an_outcome_and_the_last_whole_update(
    tmp_path: Path, workers: int
) -> None:
    data = Faulty()
    task = tiny.task(train_data=data, loader=LoaderOptions(num_workers=workers))
    with pytest.raises(
        InvalidTaskError, match=r"ValueError: corrupt image 33\.png.* after update"
    ) as e:
        train(task, plan(), tmp_path)
    assert "\n" not in e.value.found
    run = read_record(tmp_path / "outcome.json", Run)
    assert run.outcome is Outcome.FAILED
    assert "corrupt image 33.png" in run.message
    if workers == 0:  # a worker reads ahead, but its error comes with its batch
        assert (tmp_path / "checkpoints" / f"update-{run.updates:09}.json").exists()
    data.broken = False
    again = train(task, plan(), tmp_path, resume=True)
    whole = train(task, plan(), tmp_path / "whole")
    assert again.outcome is Outcome.FINISHED
    torch.testing.assert_close(again.final_state_dict(), whole.final_state_dict(), rtol=0, atol=0)


def test_an_evaluation_that_fails_is_made_up_for(tmp_path: Path) -> None:
    failing = True

    def metrics(model: nn.Module, batches: Any) -> dict[str, float]:
        found = tiny.mean_squared_error(model, batches)
        return found if found["mse"] > 3 or not failing else {}["f1"]

    task = tiny.task(evaluate=metrics)
    with pytest.raises(InvalidTaskError, match="evaluate raised KeyError: 'f1'"):
        train(task, plan(), tmp_path)
    failed = read_record(tmp_path / "outcome.json", Run)
    assert (failed.outcome, failed.updates % UPDATES_PER_EPOCH) == (Outcome.FAILED, 0)
    failing = False
    run = train(task, plan(), tmp_path, resume=True)
    assert [e.updates for e in run.evaluations] == [6, 12, 18, 24]


class Stumbling(torch.optim.SGD):
    """Changes the weights and then fails, at its third step."""

    steps = 0

    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().step()
        Stumbling.steps += 1
        if Stumbling.steps == 3:
            raise RuntimeError("no memory left")


def stumbling(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return Stumbling(parameters, lr)


def test_an_error_amid_a_step_goes_on_from_the_checkpoint_before_it(tmp_path: Path) -> None:
    task = tiny.task(recipe=tiny.task().recipe.replace(optimizer=stumbling))
    chosen = Plan.from_recipe(task.recipe)
    with pytest.raises(InvalidTaskError, match=r"no memory left.* after update 2"):
        train(task, chosen, tmp_path, saving=Saving(seconds=0.0))
    assert not (tmp_path / "checkpoints" / "update-000000003.json").exists()
    run = train(task, chosen, tmp_path, resume=True)
    whole = train(tiny.task(), plan(), tmp_path / "whole")
    torch.testing.assert_close(run.final_state_dict(), whole.final_state_dict(), rtol=0, atol=0)


def test_an_error_before_the_first_update_starts_again(tmp_path: Path) -> None:
    chosen = plan(optimizer="sparseadam")
    for resume in (False, True):
        with pytest.raises(
            InvalidTaskError, match=r"SparseAdam does not support dense.* after update 0"
        ):
            train(tiny.task(), chosen, tmp_path, resume=resume)
        assert read_record(tmp_path / "outcome.json", Run).outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (lambda model, batches: None, "evaluate returned None; need a dict of metric to number"),
        (lambda model, batches: {"auc": torch.ones(2)}, "evaluate raised (Runtime|Value)Error"),
        (lambda model, batches: {}["f1"], "evaluate raised KeyError"),
    ],
)
def test_evaluations_are_tried_before_the_run(tmp_path: Path, evaluate: Any, message: str) -> None:
    with pytest.raises(InvalidTaskError, match=message):
        train(tiny.task(evaluate=evaluate, target=None), plan(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_metric_that_two_examples_cannot_give_is_tried_on_all(tmp_path: Path) -> None:
    def of_many(model: nn.Module, batches: Any) -> dict[str, float]:
        if (n := sum(len(y) for _, y in batches)) < 16:
            raise ValueError(f"only one class among {n}")
        return {"auc": 0.5}

    run = train(tiny.task(evaluate=of_many, target=None), plan(epochs=1), tmp_path)
    assert run.metrics == {"auc": 0.5}


class Tied(nn.Module):
    """Encoder and decoder share one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)).sum(dim=1, keepdim=True)


def test_tied_weights_are_saved_and_load_strictly(tmp_path: Path) -> None:
    run = train(tiny.task(model=Tied), plan(ema_decay=0.5), tmp_path)
    model = Tied()
    model.load_state_dict(run.final_state_dict(), strict=True)
    assert model.decode.weight is model.encode.weight
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "best.safetensors",
        "ema.safetensors",
        "final.safetensors",
    ]


def test_evaluation_sees_the_averaged_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    run = train(tiny.task(), plan(ema_decay=0.9), tmp_path, max_updates=6)
    x, y = tiny.data(16, seed=1).tensors
    state = load_file(tmp_path / "checkpoints" / "ema.safetensors")
    assert run.metrics["mse"] == pytest.approx(float(F.mse_loss(F.linear(x, **state), y)), rel=1e-5)
    raw = run.final_state_dict()
    assert run.metrics["mse"] != pytest.approx(float(F.mse_loss(F.linear(x, **raw), y)), rel=1e-2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Time that stands still unless a test moves it."""
    now = {"seconds": 100.0}
    module = importlib.import_module("rightbatch.train.training")
    monkeypatch.setattr(module, "perf_counter", lambda: now["seconds"])
    return now


def ticking(clock: dict[str, float], update: float, evaluation: float) -> Task:
    """Each training forward takes ``update`` seconds, each evaluation ``evaluation``."""

    def loss(model: nn.Module, batch: Any) -> Loss:
        clock["seconds"] += update
        return tiny.squared_error(model, batch)

    def evaluate(model: nn.Module, batches: Iterator[Any]) -> dict[str, float]:
        clock["seconds"] += evaluation
        return tiny.mean_squared_error(model, batches)

    return tiny.task(loss=loss, evaluate=evaluate)


def test_evaluation_time_is_not_training_time(tmp_path: Path, clock: dict[str, float]) -> None:
    run = train(ticking(clock, update=0.25, evaluation=50.0), plan(), tmp_path)
    assert run.seconds == pytest.approx(24 * 0.25)
    assert [e.seconds for e in run.evaluations] == pytest.approx([1.5, 3.0, 4.5, 6.0])
    # A line of metrics every second: after updates 1 (0.25 s), 5, 9, 13, 17 and 21.
    assert [entry["updates"] for entry in lines(run) if "loss" in entry] == [1, 5, 9, 13, 17, 21]


def test_progress_is_told_ten_times_a_second_and_at_evaluations(
    tmp_path: Path, clock: dict[str, float]
) -> None:
    seen: list[Progress] = []
    train(ticking(clock, update=0.03125, evaluation=9.0), plan(), tmp_path, on_progress=seen.append)
    between = [p.updates for p in seen if p.metrics is None]
    assert between == [1, 5, 9, 13, 17, 21]  # every 0.125 s, the first multiple of 1/32 over 0.1
    assert [p.updates for p in seen if p.metrics is not None] == [6, 12, 18, 24]
    half = next(p for p in seen if p.updates == 12)
    assert (half.examples, half.total_examples) == (96, 192)
    assert half.seconds_left == pytest.approx(half.seconds) == pytest.approx(12 * 0.03125)


def test_todays_recipe_reaches_the_target_of_digits(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    task = load_task("digits")
    run = train(task, Plan.from_recipe(task.recipe, task=task.name), tmp_path)
    assert run.target_reached
    assert run.metrics["accuracy"] >= 0.97
    model = task.model()
    model.load_state_dict(run.final_state_dict())
    assert task.valid_data is not None
    x, y = task.valid_data[:]
    assert float((model(x).argmax(dim=1) == y).float().mean()) == pytest.approx(run.metrics["accuracy"])
