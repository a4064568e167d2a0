"""A checkpoint is whole or not there, whenever the process dies; and reading one runs nothing of it."""

import json
import multiprocessing
import os
import pickle
import random
import resource
import signal
import struct
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from rightbatch.core.errors import InvalidInputError, RightBatchError
from rightbatch.core.plan import Plan
from rightbatch.core.run import Run
from rightbatch.train import checkpoint
from rightbatch.train.checkpoint import Checkpoints
from rightbatch.train.loop import Saving, train

EVERY = Saving(seconds=0.0)


def plan() -> Plan:
    return Plan.from_recipe(tiny.task().recipe.replace(optimizer="adamw", epochs=4.0))


def run(folder: Path, **how: Any) -> Run:
    return train(tiny.task(), plan(), folder, saving=EVERY, **how)


def final(folder: Path) -> bytes:
    return (folder / "checkpoints" / "final.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return final(folder)


def forked(work: Callable[[], Any]) -> Any:
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    return process


def goes_on(folder: Path, whole: bytes) -> None:
    """The newest checkpoint loads, and the run ends as if nothing had happened."""
    Checkpoints(folder / "checkpoints", 2).load()
    if not (folder / "start.json").exists():  # it died before it began
        run(folder)
    else:
        run(folder, resume=True)
    assert final(folder) == whole
    assert list(folder.rglob(".*")) == []  # what the dead process was writing is gone


@pytest.mark.parametrize("seed", range(8))
def test_a_run_killed_at_a_random_moment_goes_on_to_the_same_bits(
    tmp_path: Path, whole: bytes, seed: int
) -> None:
    process = forked(lambda: run(tmp_path))
    time.sleep(random.Random(seed).uniform(0.02, 0.3))
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    goes_on(tmp_path, whole)


@pytest.mark.parametrize("call", range(-8, 9))
def test_a_run_that_dies_at_any_step_of_a_save_goes_on_to_the_same_bits(
    tmp_path: Path, whole: bytes, call: int
) -> None:
    """Dies before a write, flush or rename of the first two checkpoints, which take eight of them."""

    def work() -> None:
        count = -14  # the folder's own three files take two each, a checkpoint eight

        def dying(original: Any) -> Any:
            def act(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                if count == call:
                    os._exit(9)
                count += 1
                return original(*args, **kwargs)

            return act

        checkpoint.save_file = dying(checkpoint.save_file)  # type: ignore[attr-defined]
        checkpoint.write_record = dying(checkpoint.write_record)  # type: ignore[attr-defined]
        os.fsync = dying(os.fsync)  # type: ignore[assignment]
        os.replace = dying(os.replace)  # type: ignore[assignment]
        run(tmp_path)

    process = forked(work)
    process.join()
    assert process.exitcode == 9
    goes_on(tmp_path, whole)


@pytest.mark.parametrize("limit", [100, 700, 1500, 2500, 3000, 6000, 9000, 12000, 20000])
def test_a_full_disk_is_an_error_that_loses_nothing(tmp_path: Path, whole: bytes, limit: int) -> None:
    """As ``ulimit -f`` makes it: no file of the process may grow beyond the limit."""
    messages: Any = multiprocessing.get_context("fork").SimpleQueue()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            run(tmp_path)
            messages.put("")
        except RightBatchError as error:
            messages.put(str(error))

    process = forked(work)
    process.join()
    message = messages.get()
    assert process.exitcode == 0
    assert message == "" or "cannot write" in message
    assert list(tmp_path.rglob(".*")) == []  # nothing half written stays
    if message == "":
        assert final(tmp_path) == whole
    else:
        goes_on(tmp_path, whole)


def test_what_a_dead_process_was_writing_is_deleted_and_nothing_else(saved: Path) -> None:
    folder = saved.parent
    names = [".update-000000009.safetensors", ".tmpjoFXIM", ".update-000000009.json.x8_3kd0q"]
    names.append("update-000000009.safetensors")  # without its manifest
    left = [*(saved / name for name in names), folder / ".metrics.jsonl.a1b2c3d4"]
    kept = [folder / ".gitignore", saved / ".keep"]
    for path in (*left, *kept):
        path.touch()
    run(folder, resume=True, max_updates=4)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A run stopped after three updates; the folder of its checkpoints."""
    train(tiny.task(), plan(), tmp_path, 0, 3, saving=EVERY)
    return tmp_path / "checkpoints"


def newest(folder: Path) -> Path:
    return folder / "update-000000003.safetensors"


def rehash(folder: Path) -> None:
    """Make the manifest vouch for what is there, as somebody who means harm would."""
    path = newest(folder).with_suffix(".json")
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"sha256": checkpoint._hash(newest(folder))}))


class Canary:
    """Leaves a file behind if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def header(text: str, body: bytes = b"", size: int | None = None) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw + body


def entry(name: str, shape: list[int], offsets: list[int], dtype: str = "F32") -> str:
    return json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}})


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "pickle": lambda canary: pickle.dumps(Canary(canary)),
    "empty": lambda canary: b"",
    "huge header": lambda canary: struct.pack("<Q", 2**62) + b"{}",
    "long header": lambda canary: header("{}", size=200_000_000),
    "overlapping": lambda canary: header(
        json.dumps({
            name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in ("a", "b")
        }),
        b"\0" * 4,
    ),
    "huge shape": lambda canary: header(entry("model.weight", [2**40, 2**20], [0, 4]), b"\0" * 4),
    "offsets beyond the file": lambda canary: header(entry("a", [4], [0, 16]), b"\0" * 4),
    "gap": lambda canary: header(entry("a", [1], [64, 68]), b"\0" * 68),
    "nested": lambda canary: header("[" * 100_000),
    "no json": lambda canary: header("\xff{"),
    "unknown type": lambda canary: header(entry("a", [1], [0, 4], "X9"), b"\0" * 4),
    "names that climb": lambda canary: header(entry("../../canary", [1], [0, 4]), b"\0" * 4),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_hostile_tensors_are_refused_quickly_and_run_nothing(
    tmp_path: Path, saved: Path, kind: str
) -> None:
    canary = tmp_path / "canary"
    newest(saved).write_bytes(HOSTILE[kind](canary))
    rehash(saved)
    before = time.perf_counter()
    with pytest.raises(InvalidInputError, match=r"is damaged|need the same names in both"):
        run(tmp_path, resume=True)
    assert time.perf_counter() - before < 3  # a second of it on an idle machine
    assert not canary.exists()


def test_a_torch_checkpoint_in_its_place_is_refused(tmp_path: Path, saved: Path) -> None:
    canary = tmp_path / "canary"
    torch.save(Canary(canary), newest(saved))
    rehash(saved)
    with pytest.raises(InvalidInputError, match="is damaged"):
        run(tmp_path, resume=True)
    assert not canary.exists()


def test_tensors_that_are_not_those_of_the_manifest_are_refused_with_a_way_on(
    tmp_path: Path, saved: Path, whole: bytes
) -> None:
    raw = bytearray(newest(saved).read_bytes())
    raw[-1] ^= 1
    newest(saved).write_bytes(raw)
    message = r"its SHA-256 is not the one.*\n  hint: delete update-000000003\.json and update-"
    with pytest.raises(InvalidInputError, match=message):
        run(tmp_path, resume=True)
    for path in saved.glob("update-000000003*"):
        path.unlink()
    run(tmp_path, resume=True)
    assert final(tmp_path) == whole


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.weight", lambda t: t[:, :2].contiguous(), r"weight 'weight' is float32 \[1, 2\]; need"),
        ("model.weight", lambda t: t.double(), r"weight 'weight' is float64 \[1, 3\]; need float32"),
        (
            "optimizer.1",
            lambda t: torch.zeros(7),
            r"state 'exp_avg' of parameter 0 has shape \[7\]; need \[1, 3\]",
        ),
        ("random.0.torch", lambda t: t[:10].contiguous(), r"random state that cannot be used"),
        ("random.0.numpy", lambda t: t[:10].contiguous(), r"random state that cannot be used"),
    ],
)
def test_tensors_of_another_shape_are_refused(
    tmp_path: Path, saved: Path, name: str, change: Any, message: str
) -> None:
    tensors, texts = checkpoint.read_tensors(newest(saved))
    save_file(tensors | {name: change(tensors[name])}, newest(saved), metadata=texts)
    rehash(saved)
    with pytest.raises(InvalidInputError, match=message):
        run(tmp_path, resume=True)


@pytest.mark.parametrize(
    "text",
    [
        '{"tensor": "nowhere"}',
        '{"dict": [["state"]]}',
        '{"exec": "import os"}',
        "[" * 100_000,
        '{"dict": [["state", {"dict": []}], ["param_groups", {"list": []}]]}',
        "3",
    ],
)
def test_a_hostile_optimizer_text_is_refused(tmp_path: Path, saved: Path, text: str) -> None:
    tensors, texts = checkpoint.read_tensors(newest(saved))
    save_file(tensors, newest(saved), metadata=texts | {"optimizer": text})
    rehash(saved)
    with pytest.raises(InvalidInputError, match=r"state that cannot be read|does not fit"):
        run(tmp_path, resume=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is no JSON"),
        ("[" * 100_000, r"nested too deeply|is no JSON"),
        ('{"schema_version": 99}', r"has schema_version 99; need schema_version 1"),
        ('{"schema_version": 1, "examples": "many"}', r"is damaged"),
        ('{"schema_version": 1, "path": "../../etc/passwd"}', r"is damaged"),
    ],
)
def test_a_hostile_manifest_is_refused(tmp_path: Path, saved: Path, text: str, message: str) -> None:
    newest(saved).with_suffix(".json").write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        run(tmp_path, resume=True)


def test_a_manifest_without_tensors_is_refused(tmp_path: Path, saved: Path) -> None:
    newest(saved).unlink()
    with pytest.raises(InvalidInputError, match=r"update-000000003\.safetensors is damaged: its SHA"):
        run(tmp_path, resume=True)


def test_the_best_weights_are_those_of_the_best_evaluation(tmp_path: Path) -> None:
    values = cycle([3.0, 4.0, 1.0, 2.0])
    task = tiny.task(evaluate=lambda model, batches: {"mse": next(values)})
    made = train(task, plan(), tmp_path, saving=Saving(seconds=0.0, keep=100))
    best = min(made.evaluations, key=lambda made: made.metrics["mse"])
    assert best.updates == 12
    tensors, _ = checkpoint.read_tensors(
        tmp_path / "checkpoints" / f"update-{best.updates:09}.safetensors"
    )
    kept = load_file(tmp_path / "checkpoints" / "best.safetensors")
    torch.testing.assert_close(kept["weight"], tensors["model.weight"], rtol=0, atol=0)
