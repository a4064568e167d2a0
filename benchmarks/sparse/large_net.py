"""The net of 367,235 parameters of task ``splice``, trained as long as there is time for.

Updates of 16 windows at the recipe's rate until so many minutes of processor time are used, then judged
once on every base of the other loci.

    python benchmarks/sparse/large_net.py --minutes 25
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from study import judge, sequences

from common import save
from rightbatch import Plan, train
from rightbatch.sparse.priors import count_classes
from rightbatch.sparse.splice import evaluate_sites, splice
from rightbatch.sparse.statistics import law_of_windows
from rightbatch.train.record import Progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = replace(splice(), valid_data=None, evaluate=None, target=None)
    plan = Plan.from_recipe(task.recipe, micro_batch_size=1, accumulation_steps=16)
    losses: list[tuple[int, float]] = []

    def watch(progress: Progress) -> None:
        losses.append((progress.updates, progress.loss))
        if time.process_time() > 60 * given.minutes:
            signal.raise_signal(signal.SIGTERM)  # the run ends after this update, and saves

    with tempfile.TemporaryDirectory() as folder:
        run = train(task, plan, Path(folder) / "run", seed=given.seed, on_progress=watch)
        model = task.model()
        model.load_state_dict(run.final_state_dict())
    judged = judge(model, sequences("test"))
    metrics = evaluate_sites(
        nn.Identity(),
        [(judged.logits.T[None], judged.labels[None])],
        sampled=law_of_windows(task.train_data).class_shares,
        true=count_classes(sequences("train").labels, 3).prior,
    )
    save(
        "sparse_large_net",
        {
            "parameters": sum(p.numel() for p in model.parameters()),
            "updates": run.updates,
            "windows": run.examples,
            "outcome": run.outcome.value,
            "training_seconds": round(run.seconds),
            "losses": losses[:: max(len(losses) // 20, 1)],
            "metrics": {key: round(value, 4) for key, value in metrics.items()},
        },
    )


if __name__ == "__main__":
    main()
