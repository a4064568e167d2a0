"""Do the laws of positives hold? Counts of windows drawn, and gradients of batches of many sizes.

counts     updates without a site and the spread of their number, over 100,000 windows each, against
           ``law_of_windows``
gradients  the positives' part of the gradient at initialisation and after 100 updates: its length
           and its relative error at every batch, from gradients of 512 single windows, against
           sqrt(B+ / B) with B+ from ``measure_signal`` on 64 other windows

    python benchmarks/sparse/laws.py --seeds 3
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from study import MICRO_BATCH, SIGNAL_WINDOWS, remedies, task_of

from common import save
from rightbatch import Plan, train
from rightbatch.sparse.diagnose import measure_signal
from rightbatch.sparse.splice import WINDOW, load_sequences
from rightbatch.sparse.statistics import law_of_windows
from rightbatch.sparse.windows import LabelledSequences, RandomWindows
from rightbatch.tasks.build import build_model, collate
from rightbatch.tasks.task import Loss, Task

BATCHES = (1, 4, 16, 64)
NUM_COUNTED, NUM_GRADIENTS, UPDATES = 102_400, 512, 100


def count(loci: LabelledSequences, centred: float) -> list[dict[str, Any]]:
    """Positives per update, predicted and observed, read off the places of windows."""
    windows = RandomWindows(
        loci, window=WINDOW, num_windows=NUM_COUNTED, centred=centred, jitter=WINDOW // 4
    )
    sums = [np.concatenate([[0], np.cumsum(labels > 0)]) for labels in loci.labels]
    positives = np.empty(NUM_COUNTED)
    for index in range(NUM_COUNTED):
        sequence, start, _ = windows.place(index)
        total, last = sums[sequence], len(sums[sequence]) - 1
        positives[index] = total[min(start + WINDOW, last)] - total[max(start, 0)]
    law, rows = law_of_windows(windows), []
    for batch in BATCHES:
        updates, law_now = positives.reshape(-1, batch).sum(axis=1), law.batch(batch)
        none = float((updates == 0).mean())
        rows.append({
            "centred": centred,
            "batch": batch,
            "updates": len(updates),
            "positives": {"predicted": law_now.expected_positives, "observed": float(updates.mean())},
            "sd": {"predicted": law_now.positives_sd, "observed": float(updates.std(ddof=1))},
            "none": {
                "predicted": law_now.probability_none,
                "if_independent": law_now.probability_none_if_independent,
                "observed": none,
                "standard_error": (none * (1 - none) / len(updates)) ** 0.5,
            },
        })
    return rows


def window_gradients(task: Task, model: nn.Module, part: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the summed loss of each window [N, parameters], and its counted targets [N]."""
    vectors: list[torch.Tensor] = []
    counts: list[int] = []
    for index in range(NUM_GRADIENTS):
        batch = collate(task, [index])
        model.zero_grad(set_to_none=True)
        whole = task.loss(model, batch)
        assert isinstance(whole, Loss)
        counts.append(int(whole.count))
        loss = part(model, batch)
        loss.total.backward()
        vectors.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    return torch.stack(vectors).double(), torch.tensor(counts).double()


def errors(task: Task, model: nn.Module, seed: int) -> dict[str, Any]:
    """Length and relative error of the positives' gradient at every batch, both without bias."""
    vectors, counts = window_gradients(task, model, task.positive_loss)
    signal = measure_signal(task, BATCHES, model=model, num_examples=SIGNAL_WINDOWS, seed=seed + 100)
    rows: list[dict[str, Any]] = []
    for batch, update in zip(BATCHES, signal.updates, strict=True):
        sums = vectors.reshape(-1, batch, vectors.shape[1]).sum(1)
        grouped = sums / counts.reshape(-1, batch).sum(1, keepdim=True)
        spread = float(grouped.var(0).sum())
        squared = float(grouped.mean(0).square().sum()) - spread / len(grouped)
        assert update.relative_error is not None
        rows.append({
            "batch": batch,
            "groups": len(grouped),
            "length": squared**0.5,
            "relative_error": (spread / squared) ** 0.5,
            "predicted": update.relative_error.model_dump(mode="json"),
            "positives": update.expected_positives,
        })
    now = signal.gradients[-1]
    return {"noise_scale": now.noise_scale, "mass_share": now.mass_share, "rows": rows}


def gradients(name: str, seed: int) -> list[dict[str, Any]]:
    """At initialisation, and after some updates."""
    task = task_of(remedies()[name], 16, seed, 3200)
    fresh = build_model(task, "cpu", seed)
    plan = Plan.from_recipe(
        task.recipe, micro_batch_size=MICRO_BATCH, accumulation_steps=16 // MICRO_BATCH
    )
    with tempfile.TemporaryDirectory() as folder:
        run = train(task, plan, Path(folder) / "run", seed=seed, max_updates=UPDATES)
        trained = task.model()
        trained.load_state_dict(run.final_state_dict())
    other = task_of(remedies()[name], 16, seed + 50, 3200)  # windows that were not trained on
    return [
        {"remedy": name, "seed": seed, "updates": done, **errors(other, model, seed)}
        for done, model in ((0, fresh), (UPDATES, trained))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--remedies", default="prior-bias,biased+prior-bias")
    given = parser.parse_args()
    torch.set_num_threads(1)
    loci = load_sequences("train")
    counts = [row for centred in (0.0, 0.5) for row in count(loci, centred)]
    found: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        for name in given.remedies.split(","):
            found += gradients(name, seed)
            save("sparse_laws", {"counts": counts, "gradients": found})


if __name__ == "__main__":
    main()
