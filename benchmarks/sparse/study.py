"""What each remedy for rare targets changes on real splice sites, at three batch sizes.

Every run sees the same number of windows of ``splice-small``; Adam's rate moves with the square root
of the batch and is not tuned to the remedy. Of each run: average precision and top-k of both kinds of
site on other loci, calibration, the noise scale of the positives' gradient before and after, and the
updates without a site, predicted and observed. Results are written after every run, and a run that is
in the result already is not repeated, so the study can be stopped and continued; seed 0 of every cell
comes first. ``summary.py`` turns the result into tables and verdicts.

    python benchmarks/sparse/study.py --batches 4,16,64 --seeds 3
    python benchmarks/sparse/study.py --batches 16 --seeds 1 --remedies plain,biased
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import RESULTS, environment
from rightbatch import Plan, train
from rightbatch.core.recipe import Recipe
from rightbatch.sparse.correct import Share, add_offsets, correct_logits, fit_offsets
from rightbatch.sparse.diagnose import measure_signal
from rightbatch.sparse.losses import cross_entropy, focal_loss
from rightbatch.sparse.priors import count_classes
from rightbatch.sparse.splice import SpliceOptions, evaluate_sites, load_sequences, splice_task
from rightbatch.sparse.statistics import law_of_windows
from rightbatch.sparse.windows import LabelledSequences, cut
from rightbatch.tasks.builtin.splice_net import SpliceNet, build_small
from rightbatch.tasks.task import Task

BATCH, RATE = 8, 2e-3  # the recipe that rates are moved from
MICRO_BATCH = 8
SIGNAL_WINDOWS = 64


def remedies() -> dict[str, dict[str, Any]]:
    """What each one changes of plain cross-entropy on plainly drawn windows."""
    counts = count_classes(sequences("train").labels, 3)
    weights = counts.inverse_frequency_weights()
    effective = counts.effective_number_weights(0.9999)
    focal = {"per_position": partial(focal_loss, gamma=2.0)}
    biased: dict[str, Any] = {"centred": 0.5}
    return {
        "plain": {},
        "biased+prior-bias": biased | {"prior_bias": True},
        "prior-bias": {"prior_bias": True},
        "biased": biased,
        "focal": focal,
        "weights": {"per_position": partial(cross_entropy, weights=weights)},
        "biased+prior-bias+focal": biased | {"prior_bias": True} | focal,
        "effective-number": {"per_position": partial(cross_entropy, weights=effective)},
    }


@cache
def sequences(split: str) -> LabelledSequences:
    return load_sequences(split)


def task_of(changes: dict[str, Any], batch: int, seed: int, windows: int) -> Task:
    options = SpliceOptions(
        **({"centred": 0.0, "prior_bias": False, "num_windows": windows, "seed": seed} | changes)
    )
    rate = RATE * (batch / BATCH) ** 0.5
    recipe = Recipe(
        optimizer="adam", lr=rate, batch_size=batch, steps=windows // batch, sampler="sequential"
    )
    task = splice_task("splice-small", build_small, recipe, options=options)
    return replace(task, valid_data=None, evaluate=None)  # judged once, at the end, below


class Judged(NamedTuple):
    """Logits [N, 3] and labels [N] of every base of some loci, and the locus of each."""

    logits: torch.Tensor
    labels: torch.Tensor
    locus: np.ndarray[Any, Any]


def judge(model: nn.Module, loci: LabelledSequences) -> Judged:
    """Every base once: each locus in one piece, as tiles with their context would have it."""
    assert isinstance(model, SpliceNet)
    logits: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    owner: list[np.ndarray[Any, Any]] = []
    model.eval()
    with torch.no_grad():
        for index, known in enumerate(loci.labels):
            length = len(known)
            codes, targets = cut(loci, index, 0, length, model.context)
            logits.append(model(codes[None])[0].T)
            labels.append(targets)
            owner.append(np.full(length, index))
    model.train()
    return Judged(torch.cat(logits), torch.cat(labels), np.concatenate(owner))


def ratio(judged: Judged, logits: torch.Tensor) -> dict[str, float]:
    """Mean probability of a site over the share of sites, with a 90 % interval over loci."""
    p = 1 - logits.double().softmax(1)[:, 0].numpy()
    _, owner = np.unique(judged.locus, return_inverse=True)
    sums = np.array([np.bincount(owner, x) for x in (p, (judged.labels > 0).double().numpy())])
    draws = np.random.default_rng(0).integers(sums.shape[1], size=(2000, sums.shape[1]))
    again = sums[:, draws].sum(axis=2)
    low, high = np.quantile(again[0] / again[1], (0.05, 0.95))
    value = sums[0].sum() / sums[1].sum()
    return {"value": round(float(value), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def calibrated(test: Judged, train: Judged, sampled: Share, true: Share) -> dict[str, Any]:
    """Ratios on training and on test loci: as trained, corrected, and with offsets fitted."""
    shares = np.bincount(train.labels.numpy(), minlength=3) / len(train.labels)
    offsets = fit_offsets(train.logits, shares.tolist())
    views = {
        "uncorrected": lambda z: z,
        "corrected": lambda z: correct_logits(z, sampled=sampled, true=true),
        "recalibrated": lambda z: add_offsets(z, offsets),
    }
    ratios = {
        f"{where}_{name}": ratio(judged, view(judged.logits))
        for where, judged in (("train", train), ("test", test))
        for name, view in views.items()
    }
    return {"offsets": [round(x, 4) for x in offsets], **ratios}


def one_run(name: str, batch: int, seed: int, windows: int) -> dict[str, Any]:
    start = time.perf_counter()
    task = task_of(remedies()[name], batch, seed, windows)
    micro = min(batch, MICRO_BATCH)
    plan = Plan.from_recipe(task.recipe, micro_batch_size=micro, accumulation_steps=batch // micro)
    with tempfile.TemporaryDirectory() as folder:
        run = train(task, plan, Path(folder) / "run", seed=seed)
        if run.outcome.can_resume:
            raise SystemExit(f"{name} {batch} {seed}: {run.message}")  # a part of a run is no result
        model = task.model()
        model.load_state_dict(run.final_state_dict())
    trained = time.perf_counter()
    loci = sequences("train")
    law = law_of_windows(task.train_data)
    sampled, now = law.class_shares, law.batch(batch)
    true = count_classes(loci.labels, 3).prior
    test, mine = judge(model, sequences("test")), judge(model, loci)
    metrics = evaluate_sites(
        nn.Identity(), [(test.logits.T[None], test.labels[None])], sampled=sampled, true=true
    )
    signal = measure_signal(task, [batch], model=model, num_examples=SIGNAL_WINDOWS, seed=seed)
    positives = np.array([int((task.train_data[i][1] > 0).sum()) for i in range(windows)])
    updates = positives.reshape(-1, batch).sum(axis=1)
    return {
        "remedy": name,
        "batch": batch,
        "seed": seed,
        "windows": windows,
        "learning_rate": task.recipe.lr,
        "outcome": run.outcome.value,
        "seconds": round(time.perf_counter() - start, 1),
        "training_seconds": round(trained - start, 1),
        "metrics": {key: round(value, 4) for key, value in metrics.items()},
        "calibration": calibrated(test, mine, sampled, true),
        "positive_fraction": round(law.positive_fraction, 6),
        "expected_positives": {"predicted": now.expected_positives, "observed": float(updates.mean())},
        "positives_sd": {"predicted": now.positives_sd, "observed": float(updates.std(ddof=1))},
        "probability_none": {
            "predicted": now.probability_none,
            "if_independent": now.probability_none_if_independent,
            "observed": float((updates == 0).mean()),
        },
        "windows_without": {
            "predicted": law.mixed.none,
            "observed": float((positives == 0).mean()),
        },
        "gradients": [gradient.model_dump(mode="json") for gradient in signal.gradients],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", default="4,16,64")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--remedies", default=",".join(remedies()))
    parser.add_argument("--windows", type=int, default=1920, help="of a run, over all its updates")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULTS / "sparse_study.json")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    batches = [int(size) for size in given.batches.split(",")]
    if bad := [s for s in batches if given.windows % s or (s > MICRO_BATCH and s % MICRO_BATCH)]:
        need = f"divisors of --windows {given.windows}, multiples of {MICRO_BATCH} above it"
        parser.error(f"batches {bad}: need {need}")
    runs: list[dict[str, Any]] = []
    if given.result.is_file():
        runs = json.loads(given.result.read_text(encoding="utf-8"))["runs"]
    done = {(run["remedy"], run["batch"], run["seed"], run["windows"]) for run in runs}
    for seed in range(given.seeds):
        for batch in sorted(batches, key=lambda size: abs(size - 16)):  # the middle one first
            for name in given.remedies.split(","):
                if (name, batch, seed, given.windows) in done:
                    continue
                runs.append(one_run(name, batch, seed, given.windows))
                result = {"benchmark": "sparse_study", "environment": environment(), "runs": runs}
                partial_file = given.result.with_suffix(".part")
                partial_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
                partial_file.replace(given.result)  # whole or not at all
                print(name, batch, seed, runs[-1]["metrics"], f"{runs[-1]['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
