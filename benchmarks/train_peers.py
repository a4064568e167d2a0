"""The last update of an epoch and the schedule on two processes: rightbatch, Lightning, Accelerate.

    python benchmarks/train_peers.py

Needs pytorch-lightning and accelerate beside rightbatch. Each trains one float64 linear model under
torchrun, two epochs of 44 examples in updates of 16 and micro-batches of 2: the last update of an
epoch has 12 examples. An optimizer that writes down gradient and rate and leaves the weights alone
shows what each would have stepped by; the reference is the gradient of those 12 in one batch.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

NUM_EXAMPLES, GLOBAL, MICRO, EPOCHS = 44, 16, 2, 2
UPDATES = EPOCHS * 3
TOOLS = {"rightbatch": "rightbatch", "lightning": "pytorch-lightning", "accelerate": "accelerate"}

generator = torch.Generator().manual_seed(0)
X = torch.randn(NUM_EXAMPLES, 4, dtype=torch.float64, generator=generator)
Y = torch.randn(NUM_EXAMPLES, 1, dtype=torch.float64, generator=generator)
DATA = TensorDataset(X, Y)


def build() -> nn.Module:
    model = nn.Linear(4, 1).double()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    return model


def mean_loss(model: Any, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


class Witness(torch.optim.SGD):
    """Writes down the rate and gradient of every update, and changes nothing."""

    rates: list[float] = []
    gradients: list[Tensor] = []

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        (group,) = self.param_groups
        self.rates.append(float(group["lr"]))
        self.gradients.append(torch.cat([p.grad.flatten().clone() for p in group["params"]]))
        return loss


def falling(optimizer: Any) -> Any:
    """To 0 over the updates of the run: each scheduler step takes off one sixth of the rate."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / UPDATES))


def by_rightbatch(count: int) -> None:
    import rightbatch as rb
    from rightbatch.train.distributed import process_group

    recipe = rb.Recipe(
        optimizer=Witness,
        lr=1.0,
        batch_size=GLOBAL,
        epochs=EPOCHS,
        schedule="linear",
        sampler="sequential",
    )
    task = rb.Task(
        name="line", model=build, train_data=DATA, valid_data=None, loss=mean_loss, recipe=recipe
    )
    plan = rb.Plan.from_recipe(recipe, micro_batch_size=MICRO, accumulation_steps=GLOBAL // MICRO)
    with process_group("cpu"):
        rb.train(task, plan, sys.argv[3])


def by_lightning(count: int) -> None:
    import pytorch_lightning as pl

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = build()

        def training_step(self, batch: Any, index: int) -> Tensor:
            return mean_loss(self.model, batch)

        def configure_optimizers(self) -> Any:
            optimizer = Witness(self.parameters(), lr=1.0)
            schedule = {"scheduler": falling(optimizer), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": schedule}

    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=count,
        strategy="ddp" if count > 1 else "auto",
        accumulate_grad_batches=GLOBAL // MICRO // count,
        **dict.fromkeys(quiet, False),
    ).fit(Module(), DataLoader(DATA, batch_size=MICRO))


def by_accelerate(count: int) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=GLOBAL // MICRO // count)
    plain = build()
    optimizer = Witness(plain.parameters(), lr=1.0)
    model, optimizer, loader, scheduler = accelerator.prepare(
        plain, optimizer, DataLoader(DATA, batch_size=MICRO), falling(optimizer)
    )
    for _ in range(EPOCHS):
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(mean_loss(model, batch))
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
    if count > 1:
        torch.distributed.destroy_process_group()


def work(tool: str) -> None:
    """Train in one of the processes; the first tells what it saw."""
    torch.set_num_threads(1)
    {"rightbatch": by_rightbatch, "lightning": by_lightning, "accelerate": by_accelerate}[tool](
        int(os.environ["WORLD_SIZE"])
    )
    if os.environ["RANK"] != "0":
        return
    model, last = build(), slice(NUM_EXAMPLES // GLOBAL * GLOBAL, None)
    mean_loss(model, (X[last], Y[last])).backward()
    wanted = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    errors = [float((g - wanted).norm() / wanted.norm()) for g in Witness.gradients[2::3]]
    found = {"updates": len(Witness.rates), "error": max(errors), "rates": Witness.rates}
    Path(sys.argv[3], "found.json").write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    from common import save

    rows: list[dict[str, Any]] = []
    for count in (1, 2):
        for tool, package in TOOLS.items():
            with tempfile.TemporaryDirectory() as folder:
                launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
                subprocess.run(
                    [sys.executable, "-m", *launch, __file__, "worker", tool, folder],
                    check=True,
                    capture_output=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
                )
                found = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
            row = {"tool": tool, "version": version(package), "processes": count}
            rates = [round(rate, 4) for rate in found.pop("rates")]
            rows.append(row | found | {"rates": rates})
    save("train_peers", {"rows": rows})


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(sys.argv[2])
    else:
        main()
