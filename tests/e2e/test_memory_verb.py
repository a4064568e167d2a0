"""``rightbatch memory`` on tasks of the user's own: verified answers, and every way to be refused."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from cli_runner import assert_three_parts, run_cli

COMMAND = str(Path(sysconfig.get_path("scripts")) / "rightbatch")
linux = pytest.mark.skipif(sys.platform != "linux", reason="caps memory as Linux does")
MIB = 2**20
TASKS = """
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import TensorDataset
import rightbatch as rb

data = TensorDataset(torch.randn(40, 8), torch.randn(40))
recipe = rb.Recipe(optimizer="adamw", lr=0.1, batch_size=4, epochs=1)

def model():
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))

def loss(model, batch):
    x, y = batch
    return ((model(x).squeeze(1) - y) ** 2).mean()

def task(**changes):
    values = dict(name="own", model=model, train_data=data, valid_data=None, loss=loss, recipe=recipe)
    return rb.Task(**(values | changes))

def on_cuda(model, batch):
    x, y = batch
    return loss(model, (x.cuda(), y))

def branches(model, batch):
    value = loss(model, batch)
    return 2 * value if value > 1 else value

def to_numpy(model, batch):
    return loss(model, batch) * float(batch[1].numpy().std())

def pad(examples):
    texts = pad_sequence([x for x, _ in examples], batch_first=True)
    return texts, torch.stack([y for _, y in examples])

def texts():
    lengths = [5, 12, 300, 7] * 50
    return [(torch.zeros(n, dtype=torch.long), torch.zeros(())) for n in lengths]

def embed(model, batch):
    return (model(batch[0]).relu().mean((1, 2)) - batch[1]).square().mean()

needs_cuda = lambda: task(loss=on_cuda)
built_on_cuda = lambda: task(model=lambda: model().cuda())
reads_values = lambda: task(loss=branches)
numpy_loss = lambda: task(loss=to_numpy)
fixed_batch = lambda: task(collate=lambda examples: data[:4])
small_data = lambda: task(recipe=recipe.replace(batch_size=64))
raises = lambda: task(loss=lambda model, batch: loss(model, batch) if len(batch[0]) < 5 else [][1])
varied = lambda: task(
    train_data=texts(), collate=pad, model=lambda: torch.nn.Embedding(9, 256), loss=embed
)
large = lambda: task(
    model=lambda: torch.nn.Linear(64, 4096), train_data=TensorDataset(torch.ones(20000, 64)),
    loss=lambda model, batch: model(batch[0]).square().mean(),
)
make_task = task
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory") / "own_tasks.py"
    path.write_text(TASKS, encoding="utf-8")
    return path


def line_of(text: str) -> int:
    return next(i for i, line in enumerate(TASKS.splitlines(), 1) if text in line)


def document(task: str, *options: str) -> dict[str, Any]:
    called = run_cli("memory", task, *options, "--json")
    assert called.code == 0, called.out
    return called.document


@pytest.mark.parametrize(
    ("name", "found", "need", "hint"),
    [
        ("needs_cuda", "own_tasks.py:{x.cuda()}", "the device of its inputs", "cuda:a100-40gb"),
        ("built_on_cuda", "own_tasks.py:{model().cuda()}", "the device of its inputs", ".to(x.device)"),
        ("fixed_batch", "batches of 2 and of 64 examples are the same", "all the examples", "collate"),
        ("small_data", "batch_size 64 with 40", "no larger than the data", "Recipe.batch_size"),
        ("raises", "raised IndexError", "a step that runs", "in Python"),
    ],
)
def test_a_step_that_cannot_be_predicted_is_refused_at_its_line(
    tasks: Path, name: str, found: str, need: str, hint: str
) -> None:
    called = run_cli("memory", f"{tasks}:{name}")
    text = found.partition("{")[2].rstrip("}")
    if text:
        found = f"own_tasks.py:{line_of(text)}"
    assert_three_parts(called, code=2, found=found, need=need, hint=hint)


def test_code_that_needs_cuda_is_predicted_for_an_accelerator_that_is_not_here(tasks: Path) -> None:
    found = document(f"{tasks}:needs_cuda", "--device", "cuda:a100-40gb", "--batch", "2")
    assert found["predictions"][0]["peak_bytes"] > 0


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        (
            "reads_values",
            "a tensor's value was read (aten._local_scalar_dense) in forward",
            "value > 1",
        ),
        ("numpy_loss", "no trace under fake tensors", ".numpy()"),
    ],
)
def test_what_depends_on_values_is_measured_and_named_with_its_line(
    tasks: Path, name: str, text: str, line: str
) -> None:
    called = run_cli("memory", f"{tasks}:{name}", "--batch", "2,32")
    assert called.code == 0
    assert f"Note: {text} at {tasks}:{line_of(line)}: " in called.out
    plain = document(f"{tasks}:task", "--batch", "32")["predictions"][0]["peak_bytes"]
    shown = document(f"{tasks}:{name}", "--batch", "32")
    assert shown["evidence"] == "measured"
    found = shown["predictions"][0]
    assert found["low_bytes"] <= found["peak_bytes"] <= found["high_bytes"]
    assert abs(found["peak_bytes"] - plain) <= 64  # a scalar more


@pytest.mark.parametrize("device", ["cpu", "cuda:a100-40gb"])
def test_a_limit_below_the_fixed_part_says_the_missing_bytes_and_what_would_save_them(
    tasks: Path, device: str
) -> None:
    called = run_cli("memory", f"{tasks}:task", "--limit", "2KiB", "--device", device)
    assert_three_parts(
        called, code=3, found="one example needs", need="bytes more", hint="raise the limit"
    )
    assert any(word in called.err for word in ("context's", "sharding", "for-loop"))


@pytest.mark.parametrize("device", ["cpu", "cuda:a100-40gb"])
def test_the_worst_batch_of_padded_texts_is_the_one_that_counts(tasks: Path, device: str) -> None:
    found = document(f"{tasks}:varied", "--batch", "16", "--device", device)
    assert found["worst_case"] == {"indices": [2], "key": "longest", "scanned": 200, "of": 200}
    activations = 4 * 16 * 300 * 256  # one tensor of the longest text, 16 times
    assert found["predictions"][0]["peak_bytes"] > 3 * activations


@pytest.mark.parametrize(
    ("options", "found", "hint"),
    [
        (("--pin-malloc",), "--pin-malloc", "--verify"),
        (("--verify", "--device", "cuda:t4"), "--verify", "leave it out"),
        (("--accumulation", "41"), "--accumulation 41 with 40", "--accumulation 1"),
        (("--checkpointing",), "no block", ""),
        (("--headroom", "-1"), "--headroom -1", "0.1"),
    ],
)
def test_an_option_without_effect_is_refused(
    tasks: Path, options: tuple[str, ...], found: str, hint: str
) -> None:
    called = run_cli("memory", f"{tasks}:task", *options)
    assert_three_parts(called, code=2, found=found, need="", hint=hint)


def test_precision_and_accumulation_change_the_step_that_is_predicted(tasks: Path) -> None:
    today = document(f"{tasks}:large", "--batch", "256")["predictions"][0]
    bf16 = document(f"{tasks}:large", "--batch", "256", "--precision", "bf16")["predictions"][0]
    accumulated = document(f"{tasks}:large", "--batch", "256", "--accumulation", "4")
    assert bf16["peak_bytes"] != today["peak_bytes"]
    assert accumulated["predictions"][0]["parts"]["inputs"] == 4 * today["parts"]["inputs"]
    assert accumulated["max_micro_batch_size"] == 20000 // 4


@linux
@pytest.mark.slow
def test_the_installed_command_prints_a_largest_size_that_ran_within_the_limit(tasks: Path) -> None:
    argv = [COMMAND, "memory", f"{tasks}:large", "--limit", "200MiB", "--headroom", "0.05", "--verify"]
    done = subprocess.run([*argv, "--json"], check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    run = found["verification"]
    assert (found["verified"], run["outcome"], found["limited_by"]) == (True, "fits", "memory")
    assert found["max_micro_batch_size"] == run["tried"][-1]["micro_batch_size"]
    assert 120 * MIB < run["resident_growth_bytes"] <= 200 * MIB
    assert 1 <= run["runs"] == len(run["tried"]) <= 2
    assert run["seconds"] > 0
    process = run["resident_bytes"] - run["resident_growth_bytes"]
    assert found["process_bytes"] == {"low": process, "high": process, "evidence": "measured"}


@linux
@pytest.mark.slow
def test_a_verified_size_that_data_ends_was_run_with_every_option(tasks: Path) -> None:
    options = ("--limit", "500MiB", "--verify", "--pin-malloc", "--accumulation", "2")
    called = run_cli("memory", f"{tasks}:varied", *options, "--precision", "bf16")
    assert called.code == 0, called.err
    assert "The largest micro-batch is 100, where the training data ends" in called.out
    assert "verified: over two steps resident memory grew by" in called.out
    assert "beside its steps the process itself held" in called.out


@linux
@pytest.mark.slow
def test_the_installed_command_trains_with_pinned_malloc(tasks: Path, tmp_path: Path) -> None:
    argv = [COMMAND, "train", f"{tasks}:task", "--run", str(tmp_path / "run"), "--max-updates", "2"]
    done = subprocess.run([*argv, "--pin-malloc", "--json"], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["updates"] == 2
