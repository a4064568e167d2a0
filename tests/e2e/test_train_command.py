"""``rightbatch train`` as people and schedulers use it: stopped, resumed, on two processes, checked."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest

from cli_runner import assert_three_parts, run_cli
from rightbatch.core.run import Run
from rightbatch.core.store import read_record

SCRIPTS = Path(sysconfig.get_path("scripts"))

TASK = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
import rightbatch as rb

x = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))

def loss(model, batch):
    return rb.Loss((model(batch[0]) - batch[0].sum(1, keepdim=True)).square().sum(), len(batch[0]))

def make_task():
    return rb.Task(
        name="line", model=lambda: {model}, train_data=TensorDataset(x),
        valid_data=TensorDataset(x[:9]), loss=loss,
        recipe=rb.Recipe(optimizer="sgd", lr=1e-4, batch_size=16, epochs=1e6),
    )
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    path = tmp_path / "line.py"
    path.write_text(TASK.replace("{model}", "nn.Linear(3, 1)"))
    return path


def test_a_run_stopped_by_sigterm_goes_on_and_then_on_two_processes(tmp_path: Path, task: Path) -> None:
    folder = tmp_path / "run"
    argv = [sys.executable, "-m", "rightbatch", "train", str(task), "--run", str(folder), "--seed", "7"]
    work = subprocess.Popen([*argv, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not ((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text()):
        assert time.monotonic() < deadline
        assert work.poll() is None
        time.sleep(0.05)
    work.send_signal(signal.SIGTERM)
    out, _ = work.communicate(timeout=60)
    stopped = json.loads(out)
    assert (work.returncode, stopped["outcome"], stopped["seed"]) == (143, "terminated", 7)

    limit = stopped["updates"] + 3
    called = run_cli("train", task, "--run", folder, "--resume", "--max-updates", str(limit), "--json")
    assert (called.code, called.document["updates"]) == (0, limit)
    assert called.document["seed"] == 7  # as it was started, without being told again

    many = [SCRIPTS / "torchrun", "--standalone", "--nproc-per-node", "2", "-m", "rightbatch", "train"]
    done = subprocess.run(
        [*many, task, "--run-dir", folder, "--resume", "--max-updates", str(limit + 4)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert (
        f"training line into {folder}: global 16 = micro 8 x accumulation 1 x replicas 2" in done.stderr
    )
    assert done.stdout.count("Run: ") == 1  # the first process speaks for all
    run = read_record(folder / "outcome.json", Run)
    assert (run.updates, run.outcome) == (limit + 4, "stopped")


def test_the_run_says_how_it_goes_on(tmp_path: Path, task: Path) -> None:
    called = run_cli("train", task, "--run", tmp_path / "run", "--max-updates", "2")
    how = f"--run {tmp_path / 'run'} --resume and a larger --max-updates"
    assert f"The same command with {how} goes on." in called.out
    assert "global 16 = micro 16 x accumulation 1 x replicas 1" in called.err


def test_a_run_ends_at_the_target_that_it_is_given(tmp_path: Path, task: Path) -> None:
    short = ("--max-updates", "9", "--json")
    easy = run_cli("train", task, "--run", tmp_path / "easy", "--target", "loss<=1e9", *short)
    assert (easy.document["outcome"], easy.document["target_reached"]) == ("target_reached", True)
    called = run_cli("train", task, "--run", tmp_path / "none", "--target", "0.9")
    assert_three_parts(called, code=2, found="--target '0.9'", need="METRIC=VALUE", hint="--target")


def test_resume_without_a_folder_takes_the_newest_run(
    tmp_path: Path, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run_cli("train", task, "--max-updates", "2").code == 0
    called = run_cli("train", task, "--resume", "--max-updates", "3", "--json")
    assert called.document["run_dir"] == "rightbatch-line/runs/recipe-2"
    assert called.document["updates"] == 3


def test_resume_of_what_is_not_there_is_refused(tmp_path: Path, task: Path) -> None:
    called = run_cli("train", task, "--run", tmp_path / "none", "--resume")
    assert_three_parts(
        called,
        code=2,
        found="start.json",
        need="the folder of a run",
        hint="start it without --resume",
    )


def test_check_says_that_accumulation_is_exact_or_what_breaks_it(tmp_path: Path, task: Path) -> None:
    called = run_cli("train", task, "--check")
    assert (called.code, called.out.split(":")[0]) == (0, "exact")
    task.write_text(TASK.replace("{model}", "nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))"))
    called = run_cli("train", task, "--check", "--json")
    assert called.code == 1
    assert called.document["finding"]["drifts"][0]["cause"] == "batch-norm"
    assert not (tmp_path / "rightbatch-line").exists()


def test_noise_is_metered_when_asked(tmp_path: Path, task: Path) -> None:
    called = run_cli("train", task, "--run", tmp_path / "run", "--max-updates", "40", "--noise")
    assert called.code == 0, called.err
