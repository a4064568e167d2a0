"""What can be asked of a plan and of the scaling table, and what contradicts itself."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from cli_runner import assert_three_parts, run_cli
from rightbatch.core.recipe import Target
from rightbatch.core.units import format_number
from rightbatch.plan.toml import read_plan


def planned(folder: Path, tmp_path: Path, *options: str) -> dict[str, Any]:
    called = run_cli("plan", folder, "--out", tmp_path, *options, "--json")
    assert called.code == 0, called.out
    return called.document


@pytest.mark.parametrize("objective", ["time", "compute", "balanced", "accuracy"])
def test_every_objective_gives_a_plan_with_its_plateau(
    saved: Path, tmp_path: Path, objective: str
) -> None:
    document = planned(saved, tmp_path, "--objective", objective)
    low, high = document["plateau"]
    assert low <= document["plan"]["global_batch_size"] <= high
    asked = any(guard["name"] == "unvalidated" for guard in document["guards"])
    assert asked == (objective == "accuracy")


def test_every_constant_is_listed_as_changed_or_kept(saved: Path, tmp_path: Path) -> None:
    document = planned(saved, tmp_path, "--objective", "time")
    named = {d["name"] for d in document["decisions"]}
    assert {"learning_rate", "beta1", "beta2", "eps", "weight_decay", "warmup_examples"} < named
    assert {"schedule", "clip_norm", "precision", "batch_schedule"} < named
    plan = read_plan(tmp_path / "plan.toml")
    ratio = plan.global_batch_size / 32
    assert plan.betas == pytest.approx((0.9**ratio, 0.999**ratio))


def test_replicas_and_a_time_for_training_are_in_the_plan(saved: Path, tmp_path: Path) -> None:
    document = planned(
        saved, tmp_path, "--replicas", "4", "--bandwidth", "100GiB", "--time-budget-train", "30s"
    )
    plan = read_plan(tmp_path / "plan.toml")
    assert document["plan"]["num_replicas"] == plan.num_replicas
    assert plan.objective == "time"
    assert plan.epochs is None
    assert plan.steps is not None


def test_a_growing_batch_is_in_the_plan(saved: Path, tmp_path: Path) -> None:
    document = planned(saved, tmp_path, "--objective", "time", "--batch-schedule", "exponential")
    assert read_plan(tmp_path / "plan.toml").batch_schedule is not None
    assert document["batch_schedule"]["kind"] == "exponential"


@pytest.mark.parametrize(
    ("options", "found", "hint"),
    [
        (["--objective", "time", "--slowdown", "2"], "slowdown = 2", "--objective accuracy"),
        (["--slowdown", "0.5", "--objective", "accuracy"], "slowdown = 0.5", "--slowdown"),
        (["--objective", "compute", "--time-budget-train", "1m"], "a time for training", "--objective"),
        (["--time-budget-train", "1m", "--batch-schedule", "linear"], "'linear'", "--batch-schedule"),
        (["--bandwidth", "1GiB"], "one device", "--replicas"),
        (["--replicas", "0"], "num_replicas = 0", "num_replicas"),
        (["--target", "accuracy"], "--target 'accuracy'", "accuracy=0.98"),
        (["--target", "loss=0.1"], "the task's target is accuracy", "loss>=0.1"),
        (["--target", "accuracy=0.05"], "before any training", "--target accuracy"),
        (["--batch-schedule", "seesaw"], "beside a constant learning rate", "cosine"),
    ],
)
def test_options_that_contradict_something_are_refused(
    saved: Path, tmp_path: Path, options: list[str], found: str, hint: str
) -> None:
    called = run_cli("plan", saved, "--out", tmp_path, *options)
    assert_three_parts(called, code=2, found=found, need="", hint=hint)
    assert not (tmp_path / "plan.toml").exists()


def test_limits_that_nothing_meets_exit_3_with_what_to_relax(saved: Path, tmp_path: Path) -> None:
    called = run_cli("plan", saved, "--out", tmp_path, "--min-updates", "1000000")
    assert_three_parts(called, code=3, found="1,000,000 updates", need="meets", hint="--min-updates")


def test_another_target_is_planned_for(saved: Path, tmp_path: Path) -> None:
    called = run_cli("plan", saved, "--out", tmp_path, "--target", "accuracy=0.9")
    assert called.code == 0
    assert read_plan(tmp_path / "plan.toml").target == Target("accuracy", 0.9)
    assert "to accuracy &gt;= 0.9" in (tmp_path / "report.html").read_text()


def test_a_negative_time_in_the_file_is_refused_by_place(saved: Path) -> None:
    path = saved / "measurements.json"
    text = path.read_text()
    first = text.index('"seconds"')
    start = text.index("[", first) + 1
    path.write_text(text[:start] + "-1.0," + text[start:])
    called = run_cli("plan", saved)
    assert_three_parts(called, code=2, found="step_timings[0] has -1 s", need="", hint="--refresh")


SCALE = ("scale", "--optimizer", "sgd", "--lr", "0.1", "--batch", "32", "--to", "128")


def test_scale_writes_csv_that_spreadsheets_read() -> None:
    called = run_cli(*SCALE, "--examples", "1000", "--noise-scale", "320", "--csv")
    rows = list(csv.DictReader(io.StringIO(called.out)))
    assert [row["batch_size"] for row in rows] == ["32", "64", "128"]
    assert [row["updates_per_epoch"] for row in rows] == ["32", "16", "8"]
    assert float(rows[-1]["rate_linear"]) == pytest.approx(0.4)
    assert float(rows[-1]["learning_rate"]) == pytest.approx(0.1 * 11 / 3.5)


def test_scale_keeps_the_constants_of_an_optimizer_without_a_rule_and_says_so() -> None:
    called = run_cli(*SCALE[:2], "lion", *SCALE[3:])
    assert called.code == 0
    assert "No rule is known for lion" in called.out


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--pairs", "32-1e-3"], "--pairs '32-1e-3'"),
        (["--pairs", "32:1e-3"], "pairs 32:0.001"),
        (["--noise-scale", "0"], "noise scale 0"),
        (["--pairs", "32:nan,64:1e-3"], "pairs 32:nan, 64:0.001"),
        (["--batch-norm-momentum", "1.5"], "BatchNorm momentum 1.5"),
    ],
)
def test_scale_refuses_what_it_cannot_use(options: list[str], found: str) -> None:
    called = run_cli(*SCALE, *options)
    assert_three_parts(called, code=2, found=found, need="", hint="")


ADAMW = ("scale", "--optimizer", "adamw", "--lr", "1e-3", "--batch", "24", "--to", "1000")


def test_scale_fills_in_what_the_optimizer_has_by_default() -> None:
    rows = list(csv.DictReader(io.StringIO(run_cli(*ADAMW, "--csv").out)))
    given = ("--betas", "0.9,0.999", "--eps", "1e-8", "--weight-decay", "0.01")
    assert rows == list(csv.DictReader(io.StringIO(run_cli(*ADAMW, *given, "--csv").out)))
    assert float(rows[-1]["beta2"]) == pytest.approx(0.999 ** (1000 / 24))
    assert float(rows[-1]["weight_decay"]) == pytest.approx(0.01 * (1000 / 24) ** 0.5)


def test_scale_cuts_no_number_in_two_with_every_constant_given() -> None:
    options = ["--momentum", "0.9", "--ema-decay", "0.999", "--batch-norm-momentum", "0.1"]
    options += ["--warmup-steps", "100", "--examples", "50001", "--noise-scale", "300"]
    called = run_cli(*ADAMW, *options)
    words = set(called.out.split())
    for row in run_cli(*ADAMW, *options, "--json").document["rows"]:
        values = [one["value"] for one in (*row["decisions"], *row["rates"])]
        assert {format_number(value) for value in values} <= words
    assert {"learning", "momentum", "untuned", "linear"} <= words


def test_scale_answers_in_one_format() -> None:
    called = run_cli(*SCALE, "--csv", "--json")
    assert (called.code, called.document["error"]["found"]) == (2, "--csv and --json")


def test_rates_are_tried_once_and_the_next_call_takes_them_up(tmp_path: Path) -> None:
    call = ("plan", "digits", "--time-budget", "6s", "--out", tmp_path, "--tune-lr")
    first = run_cli(*call, "--json").document
    rate = next(d for d in first["decisions"] if d["name"] == "learning_rate")
    assert rate["evidence"] == "measured"
    saved = json.loads((tmp_path / "measurements.json").read_text())["rate_tunings"]
    assert len(saved) == 1
    again = run_cli("plan", tmp_path, "--json").document
    assert again["plan"] == first["plan"]


def test_rates_cannot_be_tried_without_a_task(saved: Path) -> None:
    called = run_cli("plan", saved, "--tune-lr")
    assert_three_parts(called, code=2, found="--tune-lr", need="a task to run", hint="name the task")


RARE_TASK = """
import torch
import rightbatch as rb
from rightbatch import sparse
from torch.utils.data import TensorDataset


def whole(model, batch):
    return sparse.cross_entropy(model(batch[0])[..., 0], batch[1])


def positives(model, batch):
    return sparse.cross_entropy(model(batch[0])[..., 0], batch[1], part="positives")


def make_task():
    torch.manual_seed(0)
    y = (torch.rand(256, 16) < 0.03).long()
    x = y[..., None] + torch.randn(256, 16, 4)
    return rb.Task(
        name="rare",
        model=lambda: torch.nn.Linear(4, 1),
        train_data=TensorDataset(x, y),
        valid_data=None,
        loss=whole,
        positive_loss=positives,
        recipe=rb.Recipe(optimizer="sgd", lr=0.1, batch_size=16, epochs=4),
    )
"""


def test_a_task_with_rare_positives_is_told_what_an_update_sees_of_them(tmp_path: Path) -> None:
    task = tmp_path / "rare.py"
    task.write_text(RARE_TASK, encoding="utf-8")
    call = ("plan", task, "--time-budget", "6s", "--out", tmp_path / "out", "--json")
    document = run_cli(*call).document
    signal = document["signal"]
    assert 0.01 < signal["positive_fraction"] < 0.06
    sizes = [update["batch_size"] for update in signal["updates"]]
    assert sizes == [4, 8, 16, 32, 64, 128, 256]
    chances = [update["probability_none"] for update in signal["updates"]]
    assert chances == sorted(chances, reverse=True)
    assert "of positions are positive" in run_cli("plan", tmp_path / "out").out
    assert "Rare positives" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_modes_are_measured_on_request_and_planned_from_the_saved_file(tmp_path: Path) -> None:
    call = ("plan", "digits", "--time-budget", "6s", "--out", tmp_path, "--modes", "--json")
    first = run_cli(*call)
    assert first.code == 0, first.out
    by_name = {d["name"]: d for d in first.document["decisions"]}
    assert by_name["precision"]["evidence"] == "measured"
    assert "bf16 x" in by_name["precision"]["reason"]
    again = run_cli("plan", tmp_path, "--modes", "--json").document
    assert again["plan"] == first.document["plan"]
    plain = run_cli("plan", tmp_path, "--json").document
    assert plain["plan"]["precision"] == "fp32"
    assert not plain["plan"]["checkpointing"]


def test_a_plan_for_an_accelerator_that_is_not_here_says_so(tmp_path: Path) -> None:
    call = ("plan", "digits", "--time-budget", "2s", "--out", tmp_path)
    first = run_cli(*call, "--device", "cuda:a100-40gb", "--json")
    assert first.code == 0, first.out
    assert first.document["planned_for"] == {"device": "cuda:a100-40gb", "evidence": "derived"}
    assert "not_here" in {guard["name"] for guard in first.document["guards"]}
    again = run_cli("plan", tmp_path, "--device", "cuda:a100-40gb", "--json").document
    assert again["plan"] == first.document["plan"]
    assert "not_here" not in (tmp_path / "plan.toml").read_text()
    assert 'device = "cuda:a100-40gb"' in (tmp_path / "plan.toml").read_text()
    other = run_cli("plan", tmp_path, "--device", "cuda:t4")
    assert_three_parts(other, code=2, found="cuda:t4", need="", hint="rightbatch plan digits --device")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--device", "cuda:a100-40gb", "--train"], "--train with --device cuda:a100-40gb"),
        (["--device", "cuda:a100-40gb", "--check-lr"], "--check-lr with --device"),
        (["--device", "cuda:a99"], "device 'cuda:a99'"),
        (["--device", "cuda:mi300x"], "device cuda:mi300x"),
    ],
)
def test_what_an_accelerator_that_is_not_here_cannot_do_is_refused(
    tmp_path: Path, options: list[str], found: str
) -> None:
    called = run_cli("plan", "digits", "--out", tmp_path / "out", *options)
    assert_three_parts(called, code=2, found=found, need="", hint="")
    assert not (tmp_path / "out").exists()


def test_a_planned_rate_is_checked_once_and_the_guard_gives_its_losses(tmp_path: Path) -> None:
    call = ("plan", "digits", "--time-budget", "4s", "--out", tmp_path, "--check-lr", "--json")
    guards = {g["name"]: g for g in run_cli(*call).document["guards"]}
    assert guards["stability"]["evidence"] == "measured"
    assert "loss" in guards["stability"]["text"]
    saved = json.loads((tmp_path / "measurements.json").read_text())["rate_checks"]
    assert len(saved) == 1
