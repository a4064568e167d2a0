"""How often does the 90 % interval of the noise scale hold the truth?

Static: 1000 simulations for each setting, Gaussian gradients with eigenvalues falling as 1/k, one
batch in 8 groups a step. Training: windows of 50 real updates of small nets, the parameters moving;
the truth of a window is the mean of tr(Sigma) over the mean of |G|^2, both from every example's
gradient at every update. The log-jackknife is given beside the Fieller interval that is used.

    python benchmarks/noise/coverage.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nets import NETS
from truth import example_gradients

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import save
from rightbatch.core.samples import GradientSample
from rightbatch.fit.intervals import jackknife, t_quantile
from rightbatch.fit.noise_scale import estimate_noise_scale, moments

CASES, GROUPS, DIMENSIONS, MICRO = 1000, 8, 40, 8
STEPS_IN_A_WINDOW = (10, 50)
NOISE_OVER_BATCH = (0.5, 2.0, 8.0)
WINDOW, WINDOWS, SEEDS, EXAMPLES = 50, 8, 4, 256
RUNS = (("mlp", "sgd", 0.1), ("mlp", "adam", 1e-3), ("cnn-groupnorm", "adam", 3e-3))


def sample(groups: np.ndarray) -> GradientSample:
    """From the mean gradients of a batch's groups, [GROUPS, D]."""
    return GradientSample(
        examples_seen=0,
        small_batch_size=MICRO,
        big_batch_size=MICRO * len(groups),
        small_sq_norm=float((groups**2).sum(axis=1).mean()),
        big_sq_norm=float((groups.mean(axis=0) ** 2).sum()),
        source="groups",
        num_small_batches=len(groups),
    )


def judge(samples: list[GradientSample], truth: float) -> dict[str, bool]:
    scale = estimate_noise_scale(samples)
    pairs = np.array([moments(s, s.small_sq_norm, s.big_sq_norm) for s in samples])

    def log_ratio(means: np.ndarray) -> float:
        return float(np.log(means[1] / means[0])) if means.min() > 0 else float("nan")

    value, error = jackknife(log_ratio, pairs)
    half = t_quantile(len(samples) - 1) * error
    return {
        "fieller": scale.low <= truth <= (scale.high or np.inf),
        "bounded": scale.high is not None,
        "jackknife_has_a_value": bool(np.isfinite(error)),
        "log_jackknife": bool(abs(value - np.log(truth)) <= half),
    }


def shares(found: list[dict[str, bool]]) -> dict[str, float]:
    means = {key: round(float(np.mean([row[key] for row in found])), 3) for key in found[0]}
    has = [row["log_jackknife"] for row in found if row["jackknife_has_a_value"]]
    return means | {"log_jackknife": round(float(np.mean(has)), 3) if has else float("nan")}


def static(steps: int, noise_over_batch: float, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    truth = noise_over_batch * MICRO * GROUPS
    eigenvalues = 1 / np.arange(1, DIMENSIONS + 1)
    spread = np.sqrt(eigenvalues * truth / eigenvalues.sum() / MICRO)
    mean = np.ones(DIMENSIONS) / np.sqrt(DIMENSIONS)
    found = [
        judge(
            [sample(mean + spread * g) for g in rng.standard_normal((steps, GROUPS, DIMENSIONS))], truth
        )
        for _ in range(CASES)
    ]
    return {"steps": steps, "noise_scale_over_batch": noise_over_batch, "cases": CASES} | shares(found)


def training(name: str, optimizer: str, rate: float) -> dict[str, Any]:
    net, batch = NETS[name], MICRO * GROUPS
    x, y = net.data(EXAMPLES)
    found: list[dict[str, bool]] = []
    for seed in range(SEEDS):
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        model = net.model()
        parameters = list(model.parameters())
        make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
        update = make(parameters, lr=rate)
        for _ in range(WINDOWS):
            samples: list[GradientSample] = []
            truths: list[tuple[float, float]] = []
            for _ in range(WINDOW):
                each = example_gradients(net, model, x, y).numpy()
                signal = float((each.mean(axis=0) ** 2).sum())
                truths.append((signal, float((each**2).sum(axis=1).mean()) - signal))
                groups = (
                    each[rng.integers(EXAMPLES, size=batch)].reshape(GROUPS, MICRO, -1).mean(axis=1)
                )
                samples.append(sample(groups))
                flat = torch.tensor(groups.mean(axis=0), dtype=torch.float32)
                set_gradients(parameters, flat)
                update.step()
            means = np.mean(truths, axis=0)
            found.append(judge(samples, means[1] / means[0]))
    return {"net": name, "optimizer": optimizer, "rate": rate, "windows": len(found)} | shares(found)


def set_gradients(parameters: list[torch.nn.Parameter], flat: torch.Tensor) -> None:
    start = 0
    for p in parameters:
        p.grad = flat[start : start + p.numel()].view_as(p).clone()
        start += p.numel()


def main() -> None:
    torch.set_num_threads(1)
    still = [
        static(steps, ratio, seed=100 * steps + round(10 * ratio))
        for steps in STEPS_IN_A_WINDOW
        for ratio in NOISE_OVER_BATCH
    ]
    moving = []
    for run in RUNS:
        moving.append(training(*run))
        print(moving[-1], file=sys.stderr, flush=True)
    windows = sum(row["windows"] for row in moving)
    save(
        "noise_coverage",
        {
            "nominal": 0.9,
            "static": still,
            "training": moving,
            "training_coverage": round(sum(r["fieller"] * r["windows"] for r in moving) / windows, 3),
            "training_windows": windows,
        },
    )


if __name__ == "__main__":
    main()
