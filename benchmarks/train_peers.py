"""The last update of an epoch and the schedule on two processes: rightbatch, Lightning, Accelerate.

    python benchmarks/train_peers.py

Needs pytorch-lightning and accelerate beside rightbatch. Each trains one float64 linear model under
torchrun, two epochs of 44 examples in updates of 16 and micro-batches of 2: the last update of an
epoch has 12 examples. An optimizer that writes down gradient and rate and leaves the weights alone
shows what each would have stepped by; the reference is the gradient of the same 12 in one batch.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

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


seen: list[Any] = []  # micro-batches since the last update


def mean_loss(model: Any, batch: Any) -> Tensor:
    seen.append(batch)
    return (model(batch[0]) - batch[1]).square().mean()


class Witness(torch.optim.SGD):
    """Writes down rate, gradient and micro-batches of every update, and changes nothing."""

    updates: ClassVar[list[tuple[float, Tensor, list[Any]]]] = []

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        (group,) = self.param_groups
        gradient = torch.cat([p.grad.flatten().clone() for p in group["params"]])
        self.updates.append((float(group["lr"]), gradient, seen.copy()))
        seen.clear()
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
    """Train in one of the processes, and leave what its optimizer saw."""
    torch.set_num_threads(1)
    train = {"rightbatch": by_rightbatch, "lightning": by_lightning, "accelerate": by_accelerate}
    train[tool](int(os.environ["WORLD_SIZE"]))
    torch.save(Witness.updates, Path(sys.argv[3], f"{os.environ['RANK']}.pt"))


def compare(ranks: list[list[Any]]) -> dict[str, Any]:
    """Gradients of the short updates against one batch of all that the processes put into them."""
    errors: list[float] = []
    for update in range(2, UPDATES, 3):
        batches = [batch for rank in ranks for batch in rank[update][2]]
        model = build()
        mean_loss(model, tuple(map(torch.cat, zip(*batches, strict=True)))).backward()
        wanted = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        errors += [float((rank[update][1] - wanted).norm() / wanted.norm()) for rank in ranks]
    rates = [round(rate, 4) for rate, _, _ in ranks[0]]
    return {"updates": len(rates), "gradient_error": max(errors), "rates": rates}


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
                ranks = [torch.load(Path(folder, f"{rank}.pt")) for rank in range(count)]
            row = {"tool": tool, "version": version(package), "processes": count}
            rows.append(row | compare(ranks))
    save("train_peers", {"examples": NUM_EXAMPLES, "global": GLOBAL, "micro": MICRO, "rows": rows})


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(sys.argv[2])
    else:
        main()
