"""A job under torchrun whose process is killed starts again and goes on where it was saved."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cli_runner import assert_three_parts, run_cli
from rightbatch.core.run import Run
from rightbatch.core.store import read_record

TASK = """
import os
import signal
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset
import rightbatch as rb

x = torch.randn(90, 3, generator=torch.Generator().manual_seed(0))

def loss(model, batch):
    saved = list(Path(__file__).parent.glob("run/checkpoints/update-*.json"))
    if saved and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return rb.Loss((model(batch[0]) - batch[0].sum(1, keepdim=True)).square().sum(), len(batch[0]))

def make_task():
    return rb.Task(
        name="line", model=lambda: nn.Linear(3, 1), train_data=TensorDataset(x), valid_data=None,
        loss=loss, recipe=rb.Recipe(optimizer="adamw", lr=1e-2, batch_size=16, epochs=2),
    )
"""


@pytest.mark.slow
def test_a_killed_process_costs_what_came_after_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, folder = tmp_path / "line.py", tmp_path / "run"
    task.write_text(TASK)
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    options = ["--run-dir", folder, "--checkpoint-every", "0.001s"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "rightbatch", "train", task, *options],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("training line into") == 2  # once more after the kill
    run = read_record(folder / "outcome.json", Run)
    assert (run.outcome, run.updates, run.examples) == ("finished", 12, 180)

    monkeypatch.setenv("RANK", "0")
    whole = tmp_path / "whole"
    assert run_cli("train", task, "--run", whole).code == 0
    wanted = read_record(whole / "outcome.json", Run)
    torch.testing.assert_close(run.final_state_dict(), wanted.final_state_dict())


def test_shards_of_one_process_are_refused(tmp_path: Path) -> None:
    task = tmp_path / "line.py"
    task.write_text(TASK)
    called = run_cli("train", task, "--run", tmp_path / "run", "--shard")
    assert_three_parts(
        called,
        code=2,
        found="sharding over 1 process",
        need="2 processes or more",
        hint="start more with torchrun, or leave out --shard",
    )
