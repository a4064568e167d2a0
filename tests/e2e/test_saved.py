"""The verbs on measurements that an earlier call saved: tables for people, keys for programs."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli_runner import assert_three_parts, run_cli
from rightbatch.core.plan import Plan
from rightbatch.core.store import read_record
from rightbatch.plan.toml import read_plan


def assert_keys(document: dict[str, Any], *keys: str) -> None:
    assert document["schema_version"] == 1
    assert {"task", *keys} <= set(document)


def test_plan_writes_its_files_beside_the_measurements(saved: Path) -> None:
    called = run_cli("plan", saved)
    assert (called.code, called.err) == (0, "")
    plan = read_record(saved / "plan.json", Plan)
    assert read_plan(saved / "plan.toml").global_batch_size == plan.global_batch_size
    assert (saved / "report.html").stat().st_size > 10_000
    lines = called.out.strip().splitlines()
    assert lines[-1] == f"Report: {saved / 'report.html'}"
    assert sum(line.startswith("Train digits with") for line in lines) == 1
    assert all(any(line.split()[:1] == [d.name] for line in lines) for d in plan.decisions)


def test_plan_answers_in_json_with_the_same_facts(saved: Path) -> None:
    document = run_cli("plan", saved, "--json").document
    assert_keys(document, "plan", "plateau", "predicted", "decisions", "files")
    plan = read_record(saved / "plan.json", Plan)
    assert document["plan"] == {
        "global_batch_size": plan.global_batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "accumulation_steps": plan.accumulation_steps,
        "num_replicas": 1,
        "learning_rate": plan.learning_rate,
        "warmup_examples": plan.warmup_examples,
        "precision": "fp32",
        "checkpointing": False,
    }
    assert document["plateau"] == list(plan.plateau or ())
    assert {"value", "low", "high"} <= set(document["predicted"]["seconds_to_target_ratio"])
    assert 0 <= document["predicted"]["probability_better"] <= 1
    assert {"name", "value", "evidence", "rule", "source", "reason"} <= set(document["decisions"][0])
    assert document["files"] == {
        "plan": str(saved / "plan.toml"),
        "measurements": str(saved / "measurements.json"),
        "report": str(saved / "report.html"),
    }


def test_plan_into_another_folder_takes_the_measurements_along(saved: Path, tmp_path: Path) -> None:
    files = run_cli("plan", saved / "measurements.json", "--out", tmp_path / "b", "--json").document[
        "files"
    ]
    assert files["measurements"] == str(tmp_path / "b" / "measurements.json")
    assert (tmp_path / "b" / "measurements.json").read_bytes() == (
        saved / "measurements.json"
    ).read_bytes()


def test_limits_bound_the_plan(saved: Path) -> None:
    plan = run_cli("plan", saved, "--max-batch", "48", "--objective", "time", "--json").document["plan"]
    assert plan["global_batch_size"] <= 48


def test_without_plotly_the_plan_is_made_and_the_missing_report_named(saved: Path) -> None:
    script = (
        "import sys; sys.modules['plotly'] = None; from rightbatch.cli import main;"
        "sys.exit(main(['plan', sys.argv[1], '--json']))"
    )
    argv = [sys.executable, "-c", script, str(saved)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert '"report": null' in done.stdout
    assert "no report was written" in done.stderr
    assert "rightbatch[report]" in done.stderr


@pytest.mark.parametrize("option", ["--train", "--refresh", "--device=cuda", "--time-budget=9s"])
def test_an_option_that_needs_the_task_is_refused_with_saved_measurements(
    saved: Path, option: str
) -> None:
    name = option.partition("=")[0]
    called = run_cli("plan", saved, option)
    assert_three_parts(called, code=2, found=name, need="a task", hint="name the task")


def test_memory_predicts_every_size_that_was_asked_for(saved: Path) -> None:
    called = run_cli("memory", saved, "--batch", "1,32,1024", "--limit", "64MiB")
    assert called.code == 0
    assert "64 MiB" in called.out
    document = run_cli("memory", saved, "--batch", "1,32,1024", "--limit", "64MiB", "--json").document
    assert_keys(document, "predictions", "limit_bytes", "max_micro_batch_size", "verified")
    assert [p["micro_batch_size"] for p in document["predictions"]] == [1, 32, 1024]
    assert document["limit_bytes"] == 64 * 2**20
    for p in document["predictions"]:
        assert p["low_bytes"] <= p["peak_bytes"] <= p["high_bytes"]
        assert sum(p["parts"].values()) == p["peak_bytes"]
    assert (document["verified"], document["verification"]) == (False, None)
    assert (document["max_micro_batch_size"], document["limited_by"]) == (1437, "data")
    assert document["max_micro_batch_size_by_memory"] > 1437
    assert "1,437, where the training data ends" in called.out


def test_memory_ends_the_largest_size_where_data_does_not(saved: Path) -> None:
    document = run_cli("memory", saved, "--limit", "2MiB", "--json").document
    assert document["limited_by"] == "memory"
    assert document["max_micro_batch_size"] == document["max_micro_batch_size_by_memory"] < 1437
    assert document["process_bytes"]["evidence"] == "assumed"


@pytest.mark.parametrize(
    "options", [("--verify",), ("--precision", "bf16"), ("--accumulation", "2"), ("--checkpointing",)]
)
def test_memory_of_saved_measurements_cannot_change_the_step(
    saved: Path, options: tuple[str, ...]
) -> None:
    called = run_cli("memory", saved, *options)
    assert_three_parts(called, code=2, found=options[0], need="a task", hint="name the task")


def test_memory_that_fits_nothing_exits_3_with_the_missing_bytes(saved: Path) -> None:
    called = run_cli("memory", saved, "--limit", "10KiB")
    assert_three_parts(called, code=3, found="one example needs", need="bytes more", hint="limit")
    document = run_cli("memory", saved, "--limit", "10KiB", "--json").document
    assert document["error"]["kind"] == "infeasible"


def test_a_plan_that_fits_nothing_exits_3_with_the_missing_bytes(saved: Path) -> None:
    called = run_cli("plan", saved, "--memory-limit", "10KiB")
    assert_three_parts(called, code=3, found="one example needs", need="bytes more", hint="limit")
    least = re.search(r"--memory-limit (\d+),", called.err)
    assert least is not None
    assert run_cli("plan", saved, "--memory-limit", least[1]).code == 0
    assert run_cli("plan", saved, "--memory-limit", str(int(least[1]) - 10)).code == 3


def test_speed_names_the_knee_and_what_sets_the_pace(saved: Path) -> None:
    document = run_cli("speed", saved, "--json").document
    assert_keys(document, "samples", "optimizer_seconds", "knee_micro_batch_size", "bound")
    assert document["loader_examples_per_second"] > 0
    assert document["bound"] in {"compute", "input", "overhead"}
    assert [s["micro_batch_size"] for s in document["samples"]] == [2**k for k in range(10)] + [768]
    assert run_cli("speed", saved).code == 0


def test_noise_that_is_decided_exits_0(saved: Path) -> None:
    document = run_cli("noise", saved, "--json").document
    assert_keys(document, "points", "summary")
    keys = {
        "examples_seen",
        "noise_scale",
        "low",
        "high",
        "decided",
        "grad_sq_norm",
        "trace_covariance",
    }
    assert {*keys, "source"} <= set(document["summary"])
    assert all({*keys, "source"} <= set(point) for point in document["points"])
    assert run_cli("noise", saved).code == 0


def test_noise_that_nothing_bounds_from_above_exits_1(undecided: Path) -> None:
    called = run_cli("noise", undecided, "--json")
    assert called.code == 1
    assert called.document["summary"]["decided"] is False
    assert called.document["summary"]["high"] is None


def test_report_is_rebuilt_from_the_folder(saved: Path) -> None:
    run_cli("plan", saved)
    (saved / "report.html").unlink()
    called = run_cli("report", saved, "--json")
    assert called.code == 0
    assert called.document["files"]["report"] == str(saved / "report.html")
    assert (saved / "report.html").exists()


def test_a_folder_without_measurements_is_no_folder_of_a_report(tmp_path: Path) -> None:
    called = run_cli("report", tmp_path)
    assert_three_parts(
        called, code=2, found="measurements.json", need="that plan wrote", hint="plan TASK --out DIR"
    )


def test_tasks_says_where_missing_data_comes_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RIGHTBATCH_FASHION_MNIST", str(tmp_path))
    listed = {task["name"]: task for task in run_cli("tasks", "--json").document["tasks"]}
    assert {"digits", "digits-cnn", "fashion-mnist", "fashion-vit", "shakespeare"} <= set(listed)
    assert listed["fashion-mnist"]["present"] is False
    assert "dataset-fashion-mnist" in run_cli("tasks").out


def test_scale_moves_the_rate_by_the_optimizers_rule_and_cites_it() -> None:
    argv = ["scale", "--optimizer", "adamw", "--lr", "1e-3", "--batch", "32", "--to", "512"]
    document = run_cli(*argv, "--examples", "1437", "--json").document
    assert [row["batch_size"] for row in document["rows"]] == [32, 64, 128, 256, 512]
    assert document["rows"][-1]["decisions"][0]["value"] == pytest.approx(4e-3)
    assert document["rows"][-1]["updates_per_epoch"] == 3
    assert "arXiv:2205.10287" in run_cli(*argv).out


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["--lr", "-0.1"], "lr = -0.1"),
        (["--lr", "0.1", "--betas", "0.9"], "--betas '0.9'"),
        (["--lr", "0.1", "--examples", "0"], "--examples 0"),
        (["--lr", "0.1", "--optimizer", "adamww"], "'adamww'"),
    ],
)
def test_scale_refuses_what_no_recipe_can_hold(argv: list[str], found: str) -> None:
    called = run_cli("scale", "--batch", "32", "--to", "64", *argv)
    assert_three_parts(called, code=2, found=found, need="", hint="")


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["plan", "SAVED", "--memory-limit", "20XB"], "--memory-limit '20XB'"),
        (["plan", "SAVED", "--headroom", "1.5"], "headroom = 1.5"),
        (["plan", "SAVED", "--max-batch", "0"], "max_batch_size = 0"),
        (["memory", "SAVED", "--batch", "1,x"], "--batch '1,x'"),
        (["memory", "SAVED", "--batch", "0"], "--batch '0'"),
        (["plan", "digits", "--time-budget", "soon"], "--time-budget 'soon'"),
    ],
)
def test_an_option_out_of_range_is_named(argv: list[str], found: str, saved: Path) -> None:
    words = [saved if word == "SAVED" else word for word in argv]
    assert_three_parts(run_cli(*words), code=2, found=found, need="", hint="")
