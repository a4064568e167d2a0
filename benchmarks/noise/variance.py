"""Does the mean gradient change with batch size, or only the noise around it?

A perceptron on handwritten digits, at initialisation and after training. For B = 1 to 1024, batches
drawn with replacement: the norm of the mean of all batch gradients (a larger batch is not a larger
step), and the mean squared distance of one batch's gradient from the true one, times B, which is
tr(Sigma) at every B if the variance is 1/B. Every gradient is the mean of its examples' own in
float64, which is checked against an ordinary backward.

    python benchmarks/noise/variance.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nets import NETS, adamw, mean_loss
from truth import example_gradients

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import ratio_interval, save

SIZES = tuple(2**k for k in range(11))
EXAMPLES_DRAWN, FEWEST_BATCHES, PARTS, STEPS = 2**16, 64, 8, (0, 200)


def at_size(each: np.ndarray, size: int, rng: np.random.Generator) -> dict[str, Any]:
    """Both quantities over those of the whole data, each with an interval over parts of the draws."""
    truth = each.mean(axis=0)
    trace = float((each**2).sum(axis=1).mean() - truth @ truth)
    per_part = max(EXAMPLES_DRAWN // PARTS // size, FEWEST_BATCHES)
    norms: list[float] = []
    variances: list[float] = []
    lengths: list[float] = []
    for _ in range(PARTS):
        # How often each example is in a batch, so that one product gives all batch means.
        counts = rng.multinomial(size, np.full(len(each), 1 / len(each)), size=per_part)
        batches = (counts / size) @ each
        half = len(batches) // 2  # the product of two independent means has no bias from noise
        square = batches[:half].mean(axis=0) @ batches[half:].mean(axis=0)
        norms.append(float(np.sqrt(square / (truth @ truth))))
        variances.append(float(((batches - truth) ** 2).sum(axis=1).mean() * size / trace))
        lengths.append(float(np.linalg.norm(batches, axis=1).mean() / np.linalg.norm(truth)))
    return {
        "batch_size": size,
        "batches": PARTS * per_part,
        "norm_of_mean_over_true": ratio_interval(norms),
        "variance_times_batch_over_trace": ratio_interval(variances),
        "mean_of_norms_over_true": round(float(np.mean(lengths)), 3),
    }


def main() -> None:
    torch.set_num_threads(1)
    net = NETS["mlp"]
    torch.manual_seed(0)
    model, (x, y) = net.model(), net.data(512)
    optimizer, generator = adamw(model), torch.Generator().manual_seed(0)
    states: list[dict[str, Any]] = []
    for steps in range(max(STEPS) + 1):
        if steps in STEPS:
            each = example_gradients(net, model, x, y).numpy()
            rng = np.random.default_rng(steps)
            rows = [at_size(each, size, rng) for size in SIZES]
            variances = [r["variance_times_batch_over_trace"]["value"] / r["batch_size"] for r in rows]
            slope = np.polyfit(np.log(SIZES), np.log(variances), 1)[0]
            states.append({
                "step": steps,
                "exponent_of_variance": round(float(slope), 4),
                "sizes": rows,
            })
        which = torch.randint(len(x), (net.batch_size,), generator=generator)
        optimizer.zero_grad()
        mean_loss(net, model, x[which], y[which]).backward()
        if steps in STEPS:
            ours = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            error = float(np.abs(ours.numpy() - each[which.numpy()].mean(axis=0)).max())
            states[-1]["largest_difference_from_a_backward"] = error
        optimizer.step()
    save("noise_variance", {"net": "mlp", "examples": len(x), "states": states})


if __name__ == "__main__":
    main()
