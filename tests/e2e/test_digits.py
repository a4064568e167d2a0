"""The main job on real data: plan, train, go on, after Ctrl-C too."""

import json
import signal
import subprocess
import sysconfig
import time
from pathlib import Path
from typing import Any

import pytest

from cli_runner import run_cli
from rightbatch.core.run import Run
from rightbatch.core.samples import Measurements
from rightbatch.core.store import read_record

COMMAND = str(Path(sysconfig.get_path("scripts")) / "rightbatch")


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """``rightbatch plan digits --train`` on a short budget: its folder and its JSON."""
    folder = tmp_path_factory.mktemp("digits") / "demo"
    called = run_cli("plan", "digits", "--train", "--out", folder, "--time-budget", "12s", "--json")
    assert called.code == 0, called.err
    return folder, called.document


def test_plan_with_training_leaves_every_file(planned: tuple[Path, dict[str, Any]]) -> None:
    folder, document = planned
    files = {"measurements.json", "plan.toml", "plan.json", "report.html", "runs"}
    assert {path.name for path in folder.iterdir()} == files
    assert document["task"] == "digits"
    assert document["run"]["run_dir"] == str(folder / "runs" / "plan")
    run = read_record(folder / "runs" / "plan" / "outcome.json", Run)
    assert run.global_batch_size == document["plan"]["global_batch_size"]
    assert run.metrics["accuracy"] > 0.9


def test_the_same_call_takes_up_what_is_there(planned: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = planned
    kept = read_record(folder / "measurements.json", Measurements)
    called = run_cli("plan", "digits", "--out", folder, "--time-budget", "2s", "--json")
    assert called.code == 0, called.err
    after = read_record(folder / "measurements.json", Measurements)
    assert after.memory[: len(kept.memory)] == kept.memory != ()
    assert len(after.gradients) >= len(kept.gradients) > 0


def test_a_plan_trains_beside_itself_unless_told_otherwise(
    planned: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = planned
    (tmp_path / "plan.toml").write_bytes((folder / "plan.toml").read_bytes())
    argv = ["train", "digits", "--plan", tmp_path / "plan.toml", "--max-updates", "3", "--json"]
    document = run_cli(*argv).document
    assert {"outcome", "examples", "updates", "seconds", "metrics", "target_reached"} <= set(document)
    assert (document["updates"], document["outcome"]) == (3, "stopped")
    assert document["run_dir"] == str(tmp_path / "runs" / "plan")
    assert run_cli(*argv).document["run_dir"] == str(tmp_path / "runs" / "plan-2")
    named = run_cli(*argv, "--run", tmp_path / "runs" / "plan")
    assert named.code == 2
    assert "earlier run" in named.document["error"]["found"]


def test_without_a_plan_todays_recipe_is_trained(tmp_path: Path) -> None:
    called = run_cli("train", "digits", "--run", tmp_path / "run", "--max-updates", "2")
    assert called.code == 0
    assert "global 32 = micro 32 x accumulation 1 x replicas 1" in called.err
    assert called.out.startswith("Run: ")


def test_a_run_that_diverges_exits_1(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text(
        'schema_version = 1\ntask = "digits"\noptimizer = "sgd"\nepochs = 2.0\nlearning_rate = 1e9\n'
        "global_batch_size = 32\nmicro_batch_size = 32\n"
    )
    called = run_cli("train", "digits", "--plan", tmp_path / "plan.toml", "--json")
    assert (called.code, called.document["outcome"]) == (1, "diverged")


def test_piped_output_holds_no_bar_and_no_colour(tmp_path: Path) -> None:
    argv = [COMMAND, "train", "digits", "--run", str(tmp_path / "run"), "--max-updates", "2"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert not {"\r", "\x1b"} & set(done.stdout + done.stderr)
    assert done.stderr.startswith("training digits into ")


def test_ctrl_c_keeps_what_was_measured_and_names_the_command_that_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    argv = ["plan", "digits", "--out", str(folder), "--time-budget", "60s"]
    work = subprocess.Popen([COMMAND, *argv, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    file, deadline = folder / "measurements.json", time.monotonic() + 60
    while not (file.exists() and json.loads(file.read_text())["memory"]):
        assert time.monotonic() < deadline
        assert work.poll() is None
        time.sleep(0.05)
    work.send_signal(signal.SIGINT)
    out, _ = work.communicate(timeout=30)
    assert work.returncode == 130
    error = json.loads(out)["error"]
    assert f"{file} keeps what was measured" in error["found"]
    assert f"rightbatch {' '.join(argv)}" in error["hint"]
    assert read_record(file, Measurements).memory


def test_ctrl_c_while_training_keeps_the_weights(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(
        "import dataclasses\nfrom rightbatch.tasks.builtin.digits import digits\n\n"
        "def make_task():\n    task = digits()\n"
        "    recipe = task.recipe.replace(epochs=1e6)\n"
        "    return dataclasses.replace(task, recipe=recipe, target=None)\n"
    )
    run = tmp_path / "run"
    argv = [COMMAND, "train", str(tmp_path / "endless.py"), "--run", str(run), "--json"]
    work = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not ((run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text()):
        assert time.monotonic() < deadline
        assert work.poll() is None
        time.sleep(0.05)
    work.send_signal(signal.SIGINT)
    out, _ = work.communicate(timeout=30)
    assert (work.returncode, json.loads(out)["outcome"]) == (130, "interrupted")
    assert (run / "checkpoints" / "final.safetensors").stat().st_size > 100_000
