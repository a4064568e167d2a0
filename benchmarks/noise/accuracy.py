"""Is the estimate right? Against the gradients of every single example, along training.

For each net of ``nets.NETS`` at three points of AdamW training: the truth in float64, then
independent samples as the pilot takes them (one batch in 8 groups, float32). Asked for: the mean of
200 samples within 3 standard errors of the truth for |G|^2 and tr(Sigma); over windows of 50
samples the error of the noise scale and whether its 90 % interval holds the truth; and how often a
decided estimate is confidently wrong, its interval missing the truth by more than 1.5 times.

    python benchmarks/noise/accuracy.py [NET ...]

With names, the rows of the other nets stay as an earlier call left them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nets import NETS, Net, adamw, mean_loss
from truth import Truth, exact_truth, group_truth, task_of

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import RESULTS, save
from rightbatch.core.samples import GradientSample
from rightbatch.fit.noise_scale import estimate_noise_scale, moments
from rightbatch.measure.gradients import draw_examples, sample_gradients, split_evenly, undisturbed

EXAMPLES, STEPS = 512, (0, 60, 600)
SAMPLES, FOR_MEAN, WINDOW, GROUPS = 400, 200, 50, 8
CONFIDENTLY = 1.5
GROUPS_FOR_TRUTH = 3000


def train(net: Net, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    optimizer = adamw(model)
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        which = torch.randint(len(x), (net.batch_size,), generator=generator)
        optimizer.zero_grad()
        mean_loss(net, model, x[which], y[which]).backward()
        optimizer.step()


def take(net: Net, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> list[GradientSample]:
    task, generator = task_of(net, x, y), torch.Generator().manual_seed(3)
    with undisturbed(model):
        return [
            sample_gradients(
                task,
                model,
                split_evenly(draw_examples(len(x), net.batch_size, generator), GROUPS),
                examples_seen=0,
            )
            for _ in range(SAMPLES)
        ]


def judge(truth: Truth, samples: list[GradientSample], batch: int) -> dict[str, Any]:
    pairs = np.array([moments(s, s.small_sq_norm, s.big_sq_norm) for s in samples])[:FOR_MEAN]
    errors = np.hypot(pairs.std(axis=0, ddof=1) / np.sqrt(len(pairs)), truth.errors)
    z = (pairs.mean(axis=0) - [truth.grad_sq_norm, truth.trace_covariance]) / errors
    windows = [
        estimate_noise_scale(samples[start : start + WINDOW]) for start in range(0, SAMPLES, WINDOW)
    ]
    right = truth.noise_scale
    logs = [abs(np.log(w.noise_scale / right)) for w in windows if w.noise_scale]
    wrong = [
        w for w in windows if w.low > CONFIDENTLY * right or (w.high or np.inf) < right / CONFIDENTLY
    ]
    return {
        "truth": {
            "grad_sq_norm": truth.grad_sq_norm,
            "trace_covariance": truth.trace_covariance,
            "noise_scale": round(right, 2),
        },
        "batch_over_noise_scale": round(batch / right, 3),
        "z": {"grad_sq_norm": round(float(z[0]), 2), "trace_covariance": round(float(z[1]), 2)},
        "median_abs_log_error": round(float(np.median(logs)), 3) if logs else None,
        "decided": sum(w.decided for w in windows),
        "holding_the_truth": sum(w.low <= right <= (w.high or np.inf) for w in windows),
        "confidently_wrong": len(wrong),
        "windows": len(windows),
    }


def rows_of(name: str) -> list[dict[str, Any]]:
    net = NETS[name]
    torch.manual_seed(0)
    model = net.model()
    x, y = net.data(EXAMPLES)
    rows: list[dict[str, Any]] = []
    for before, steps in zip((0, *STEPS[:-1]), STEPS, strict=True):
        train(net, model, x, y, steps - before)
        if net.coupled:
            size = net.batch_size // GROUPS
            truth = group_truth(net, model, x, y, size=size, num_groups=GROUPS_FOR_TRUTH, seed=4)
        else:
            truth = exact_truth(net, model, x, y)
        found = judge(truth, take(net, model, x, y), net.batch_size)
        rows.append({"net": name, "step": steps} | found)
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    named = sys.argv[1:] or list(NETS)
    earlier = RESULTS / "noise_accuracy.json"
    kept = json.loads(earlier.read_text("utf-8"))["rows"] if earlier.exists() else []
    rows = [row for row in kept if row["net"] not in named]
    for name in named:
        rows += rows_of(name)
    rows.sort(key=lambda row: (list(NETS).index(row["net"]), row["step"]))
    measurable = [r for r in rows if r["batch_over_noise_scale"] >= 0.5]
    windows = sum(r["windows"] for r in rows)
    save(
        "noise_accuracy",
        {
            "settings": {"examples": EXAMPLES, "samples_for_mean": FOR_MEAN, "window": WINDOW},
            "largest_abs_z": max(abs(z) for r in rows for z in r["z"].values()),
            "largest_median_log_error_at_half_the_noise_scale": max(
                r["median_abs_log_error"] for r in measurable
            ),
            "coverage": round(sum(r["holding_the_truth"] for r in rows) / windows, 3),
            "confidently_wrong": sum(r["confidently_wrong"] for r in rows),
            "windows": windows,
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
