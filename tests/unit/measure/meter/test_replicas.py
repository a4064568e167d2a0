"""Two processes that average their gradients: what each had before is measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import rightbatch as rb

BATCH = 16
UPDATES = 3


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH * 2, 4, generator=generator), torch.arange(BATCH * 2) % 3


def run_rank(rank: int, folder: str, accumulate: int, reduction: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    model = DistributedDataParallel(net())
    x, y = (t[rank::2] for t in data())
    with rb.NoiseMeter(model, period="auto" if accumulate == 1 else 1, reduction=reduction) as meter:  # type: ignore[arg-type]
        for _ in range(UPDATES):
            model.zero_grad()
            for k, rows in enumerate(torch.arange(BATCH).chunk(accumulate)):
                loss = F.cross_entropy(model(x[rows]), y[rows], reduction=reduction)
                loss = loss / (accumulate if reduction == "mean" else 1)
                if k + 1 < accumulate:
                    with model.no_sync():
                        loss.backward()
                else:
                    loss.backward()
            meter.update()
    samples: list[dict[str, Any]] = [s.model_dump() for s in meter.samples]
    Path(folder, f"{rank}.json").write_text(json.dumps([samples, meter.period]), encoding="utf-8")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
@pytest.mark.parametrize(("accumulate", "reduction"), [(1, "mean"), (2, "mean"), (2, "sum")])
def test_replicas_give_what_micro_batches_of_one_process_give(
    tmp_path: Path, accumulate: int, reduction: str
) -> None:
    arguments = (str(tmp_path), accumulate, reduction)
    torch.multiprocessing.start_processes(run_rank, arguments, nprocs=2, start_method="fork")
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    sample = ranks[0][0][0]
    model, (x, y) = net(), data()
    with rb.NoiseMeter(model, period=1) as meter:
        for rank in (0, 1):
            for rows in torch.arange(BATCH).chunk(accumulate):
                part = F.cross_entropy(model(x[rank::2][rows]), y[rank::2][rows])
                (part / (2 * accumulate)).backward()
        meter.update()
    expected = meter.samples[0]
    assert sample["source"] == "replicas"
    assert sample["num_small_batches"] == 2 * accumulate
    assert sample["big_batch_size"] == sample["examples_seen"] == 2 * BATCH
    assert sample["small_sq_norm"] == pytest.approx(expected.small_sq_norm, rel=1e-5)
    assert sample["big_sq_norm"] == pytest.approx(expected.big_sq_norm, rel=1e-5)
