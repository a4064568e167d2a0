"""Where each formula comes from: a key, the work, and what rightbatch relies on it for."""

from __future__ import annotations

from typing import NamedTuple


class Source(NamedTuple):
    """A work and the part of it that a number rests on."""

    title: str
    where: str
    """arXiv number, address or page of these docs."""
    used_for: str


SOURCES: dict[str, Source] = {
    "measured": Source(
        "Measured on this task and machine", "measurements.json", "times, bytes, gradients"
    ),
    "recipe": Source(
        "The task's recipe of today", "the task file", "constants that batch size does not move"
    ),
    "memory_law": Source(
        "rightbatch memory law: the upper envelope of aligned allocation streams",
        "docs/memory.md",
        "peak bytes at batch sizes that were not run",
    ),
    "mccandlish2018": Source(
        "McCandlish, Kaplan, Amodei, OpenAI Dota Team: An Empirical Model of Large-Batch Training",
        "arXiv:1812.06162, Eqs. 2.9-2.12, A.1-A.2",
        "noise scale, unbiased estimators, S = S_min (1 + B_crit/B)",
    ),
    "goyal2017": Source(
        "Goyal et al.: Accurate, Large Minibatch SGD",
        "arXiv:1706.02677, Sec. 2.1-2.2",
        "linear scaling of SGD's rate, gradual warmup over 5 of 90 epochs",
    ),
    "malladi2022": Source(
        "Malladi et al.: On the SDEs and Scaling Rules for Adaptive Gradient Algorithms",
        "arXiv:2205.10287",
        "square-root scaling of Adam's rate, betas",
    ),
    "wang2024": Source(
        "Wang, Aitchison: How to set AdamW's weight decay as you scale model and dataset size",
        "arXiv:2405.13698",
        "weight decay as a time constant B/(lr wd N)",
    ),
    "busbridge2023": Source(
        "Busbridge et al.: How to Scale Your EMA",
        "arXiv:2307.13813",
        "EMA decay to the power of the batch ratio",
    ),
    "marek2025": Source(
        "Marek et al.: Small Batch Size Training for Language Models",
        "arXiv:2507.07101",
        "beta2 kept at a fixed half-life in examples",
    ),
    "noise_calibration": Source(
        "rightbatch calibration of noise scales to critical batch sizes of sweeps",
        "docs/noise.md",
        "factor and spread between a noise scale and the critical batch size",
    ),
    "default": Source(
        "No rule is known to apply; today's value is kept", "docs/plan.md", "unknown optimizers"
    ),
}
