"""One search by another tool, in one capped process; prints its answer as JSON.

python largest_batch_peer.py TOOL NET LIMIT_BYTES

with TOOL one of "lightning power", "lightning binsearch", accelerate, batch-finder.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import resource
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nets
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

warnings.filterwarnings("ignore")
FIRST_SIZE = 2  # Lightning's own default
# Accelerate only shrinks, so it starts well above the answer.
LARGEST_SIZE = 16384
runs: list[int] = []
refusals: list[int] = []


def cap(limit_bytes: int) -> None:
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 2**20)
    libc.mallopt(-1, 128 * 2**10)
    status = Path("/proc/self/status").read_text()
    data = next(int(line.split()[1]) * 1024 for line in status.splitlines() if "VmData" in line)
    resource.setrlimit(resource.RLIMIT_DATA, (data + limit_bytes, resource.RLIM_INFINITY))


def counted(step: Callable[[Any], Any], batch: Any) -> Any:
    """Run one training step, noting its size and whether memory ran out."""
    size = len(batch[0])
    if not runs or runs[-1] != size:
        runs.append(size)
    try:
        return step(batch)
    except (RuntimeError, MemoryError):
        refusals.append(size)
        raise


def two_steps(net: nets.Net, size: int) -> None:
    model = net.build()
    optimizer = net.optimizer(model.parameters())
    data = net.data()
    batch = next(iter(DataLoader(data, batch_size=min(size, len(data)))))
    for _ in range(2):
        nets.loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()


def by_lightning(net: nets.Net, mode: str, limit_bytes: int) -> int | None:
    import pytorch_lightning as pl
    from pytorch_lightning.tuner import Tuner

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    data = net.data()

    class Data(pl.LightningDataModule):
        def __init__(self) -> None:
            super().__init__()
            self.batch_size = FIRST_SIZE

        def train_dataloader(self) -> Any:
            return DataLoader(data, batch_size=self.batch_size)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = net.build()

        def training_step(self, batch: Any, _: int) -> Any:
            return counted(lambda b: nets.loss(self.net, b), batch)

        def configure_optimizers(self) -> Any:
            return net.optimizer(self.parameters())

    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    two_steps(net, 2)
    cap(limit_bytes)
    return Tuner(trainer).scale_batch_size(
        Module(), datamodule=Data(), mode=mode, init_val=FIRST_SIZE, max_trials=25
    )


def by_accelerate(net: nets.Net, limit_bytes: int) -> int | None:
    from accelerate.utils import find_executable_batch_size

    def train(batch_size: int) -> int:
        counted(lambda _: two_steps(net, batch_size), [range(batch_size)])
        return batch_size

    two_steps(net, 2)
    cap(limit_bytes)
    return find_executable_batch_size(train, starting_batch_size=LARGEST_SIZE)()


class Noted(nn.Module):
    """Writes down the size of every forward, in whichever process it runs."""

    def __init__(self, body: nn.Module, log: Path) -> None:
        super().__init__()
        self.body, self.log = body, log

    def forward(self, x: Tensor) -> Tensor:
        with self.log.open("a", encoding="ascii") as log:
            log.write(f"{len(x)}\n")
        return self.body(x)


def noted_net() -> nn.Module:
    """What batch-finder builds in its children, told by the environment."""
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 2**20)
    return Noted(nets.NETS[os.environ["NET"]].build(), Path(os.environ["NOTES"]))


def by_batch_finder(name: str, net: nets.Net, limit_bytes: int) -> int | None:
    """As documented, with subprocesses; it makes its own inputs and takes no optimizer."""
    from batch_finder import find_max_minibatch

    x = net.data()[0][0]
    sizes = ", ".join(str(size) for size in x.shape)
    kind = ", int" if x.dtype == torch.int64 else ""
    notes = Path("notes").resolve()
    os.environ |= {"NET": name, "NOTES": str(notes)}
    two_steps(net, 2)
    cap(limit_bytes)
    with contextlib.redirect_stdout(sys.stderr):  # the answer alone goes to stdout
        size = find_max_minibatch(
            noted_net,
            device=torch.device("cpu"),
            input_shapes={"x": f"(b, {sizes}){kind}", "#constraints": "b=-1"},
        )
    runs.extend(int(line) for line in notes.read_text(encoding="ascii").split())
    refusals.extend(tried for tried in runs if size is None or tried > size)
    return size


def main() -> None:
    tool, name, limit_bytes = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    net, ended = nets.NETS[name], "returned"
    size: int | None = None
    with tempfile.TemporaryDirectory() as folder:  # Lightning writes a checkpoint where it stands
        os.chdir(folder)
        try:
            if tool == "batch-finder":
                size = by_batch_finder(name, net, limit_bytes)
            elif tool == "accelerate":
                size = by_accelerate(net, limit_bytes)
            else:
                size = by_lightning(net, tool.split()[1], limit_bytes)
        except Exception as error:
            ended = f"{type(error).__name__}: {error}"[:200]
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    result = {"size": size, "ended": ended, "real_runs": len(runs), "out_of_memory": len(refusals)}
    print(json.dumps(result | {"largest_size_run": max(runs, default=None)}))


if __name__ == "__main__":
    main()
