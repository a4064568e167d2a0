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
    "hoffer2017": Source(
        "Hoffer, Hubara, Soudry: Train longer, generalize better",
        "arXiv:1705.08741, Secs. 4 and 5",
        "remedies for a large batch: as many updates, ghost batch norm",
    ),
    "szegedy2016": Source(
        "Szegedy et al.: Rethinking the Inception Architecture for Computer Vision",
        "arXiv:1512.00567, Sec. 7",
        "label smoothing of 0.1",
    ),
    "shallue2019": Source(
        "Shallue et al.: Measuring the Effects of Data Parallelism on Neural Network Training",
        "arXiv:1811.03600",
        "no loss of accuracy from batch size where rate and steps are tuned",
    ),
    "wu2018": Source(
        "Wu, He: Group Normalization",
        "arXiv:1803.08494, Sec. 4.1",
        "error of BatchNorm against examples per group",
    ),
    "lin2017": Source(
        "Lin et al.: Focal Loss for Dense Object Detection",
        "arXiv:1708.02002, Sec. 3.3 and 4.1",
        "initial bias at the prior of rare positives",
    ),
    "cui2019": Source(
        "Cui et al.: Class-Balanced Loss Based on Effective Number of Samples",
        "arXiv:1901.05555, Eq. 2",
        "class weights by the effective number of examples",
    ),
    "menon2021": Source(
        "Menon et al.: Long-tail learning via logit adjustment",
        "arXiv:2007.07314, Eq. 10",
        "a loss that learns as if classes were equally frequent",
    ),
    "king2001": Source(
        "King, Zeng: Logistic Regression in Rare Events Data",
        "Political Analysis 9(2), 2001, Eq. 7",
        "probabilities after training on more positives than there are",
    ),
    "kish1965": Source(
        "Kish: Survey Sampling",
        "Wiley 1965, Sec. 5.4",
        "design effect of positives that come in clusters",
    ),
    "jaganathan2019": Source(
        "Jaganathan et al.: Predicting Splicing from Primary Sequence with Deep Learning",
        "Cell 176(3), 2019",
        "nets and top-k precision for splice sites",
    ),
    "merrill2025": Source(
        "Merrill et al.: Critical Batch Size Revisited",
        "arXiv:2505.23971, Sec. 3",
        "the critical batch size is small at first and grows",
    ),
    "steplaw2025": Source(
        "Li et al.: Predictable Scale (Step Law); Bi et al.: DeepSeek LLM",
        "arXiv:2503.04715; arXiv:2401.02954",
        "batch sizes of language models in tokens",
    ),
    "korthikanti2022": Source(
        "Korthikanti et al.: Reducing Activation Recomputation in Large Transformer Models",
        "arXiv:2205.05198, Sec. 4, Eq. 1",
        "activation bytes of a transformer layer",
    ),
    "sparse_law": Source(
        "rightbatch: gradient of rare positives",
        "docs/sparse.md",
        "expected positives, P(none) = (1 - p)^n for independent ones",
    ),
    "forgetting": Source(
        "rightbatch: distance moved in fine-tuning",
        "docs/advise.md",
        "weights move by rate times updates",
    ),
    "train_page": Source(
        "rightbatch training loop", "docs/train.md", "the exact gradient of an accumulated batch"
    ),
    "rate_trials": Source(
        "Learning rates tried on this task in short branches",
        "measurements.json, rate_tunings; after Merrill et al. 2025, arXiv:2505.23971, Sec. 3.1",
        "the planned learning rate, where trials were asked for",
    ),
    "practice": Source(
        "Common practice, without proof", "docs/advise.md", "where to begin when nothing is known"
    ),
    "definition": Source("By definition", "docs/plan.md", "counts that follow from other counts"),
    "johnson2020": Source(
        "Johnson et al.: AdaScale SGD",
        "arXiv:2007.05105, Sec. 3; the same as the ratio of arXiv:1812.06162, Eq. 2.6",
        "SGD's rate where the batch nears the noise scale",
    ),
    "li2024": Source(
        "Li et al.: Surge Phenomenon in Optimal Learning Rate and Batch Size Scaling",
        "arXiv:2405.14578, Eq. 2",
        "Adam's best rate falls again above a batch size of its own",
    ),
    "ma2021": Source(
        "Ma, Yarats: On the adequacy of untuned warmup for adaptive optimization",
        "arXiv:1910.04209, Sec. 5",
        "Adam's warmup of 2 / (1 - beta2) updates",
    ),
    "patarasuk2009": Source(
        "Patarasuk, Yuan: Bandwidth optimal all-reduce algorithms for clusters of workstations",
        "J. Parallel Distrib. Comput. 69(2), 2009",
        "bytes that an all-reduce over R devices moves",
    ),
    "williams2009": Source(
        "Williams, Waterman, Patterson: Roofline, an Insightful Visual Performance Model",
        "Communications of the ACM 52(4), 2009",
        "step times on a device that is not here, from what a step computes and moves",
    ),
    "batch_norm_window": Source(
        "rightbatch: examples that BatchNorm's running statistics remember",
        "docs/plan.md",
        "BatchNorm momentum, moved once for each micro-batch",
    ),
    "smith2018": Source(
        "Smith, Kindermans, Ying, Le: Don't Decay the Learning Rate, Increase the Batch Size",
        "arXiv:1711.00489, Sec. 3",
        "with SGD a batch that grows in place of a rate that falls",
    ),
    "meterez2025": Source(
        "Meterez et al.: Seesaw",
        "arXiv:2510.14717",
        "a rate that would halve falls by sqrt(2) while the batch doubles",
    ),
    "devarakonda2017": Source(
        "Devarakonda et al.: AdaBatch", "arXiv:1712.02029", "a batch that doubles during training"
    ),
    "gray2024": Source(
        "Gray et al.: Normalization Layer Per-Example Gradients",
        "arXiv:2411.00999",
        "a batch that grows linearly during training",
    ),
    "default": Source(
        "No rule is known to apply; today's value is kept", "docs/plan.md", "unknown optimizers"
    ),
}
