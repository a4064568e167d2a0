"""The built-in tasks ``splice`` and ``splice-small``: splice sites of the fly, 0.14 % of all bases.

Loci of Drosophila's chromosome 2R are cut into windows of 5001 bases with context on both sides; half
of the training windows lie around a site. Validation reads every base of other loci once. Probabilities
are corrected to the share of sites on whole loci before they are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from rightbatch.core.recipe import Recipe, Target
from rightbatch.sparse.correct import Share, correct_logits
from rightbatch.sparse.losses import cross_entropy
from rightbatch.sparse.metrics import average_precision, calibration, top_k_precision
from rightbatch.sparse.priors import count_classes, prior_bias_
from rightbatch.sparse.statistics import law_of_windows
from rightbatch.sparse.windows import LabelledSequences, RandomWindows, TiledWindows
from rightbatch.tasks.builtin.fly_genes import CLASSES, UNKNOWN, load_loci
from rightbatch.tasks.builtin.splice_net import SpliceNet, build_large, build_small
from rightbatch.tasks.task import Loss, Task

WINDOW = 5001
Batch = tuple[Tensor, Tensor]
PerPosition = Callable[..., Loss]
"""A loss of ``sparse.losses``: ``(logits, targets, part=...) -> Loss``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpliceOptions:
    """What the study of this task varies."""

    centred: float = 0.5
    """Share of training windows around a site."""
    jitter: int = WINDOW // 4
    per_position: PerPosition = cross_entropy
    prior_bias: bool = True
    """Whether the head starts at the share of each class in the windows drawn."""
    num_windows: int = 3200
    """Of an epoch."""
    seed: int = 0
    """Of the windows drawn."""


def splice_task(
    name: str,
    build: Callable[[], SpliceNet],
    recipe: Recipe,
    target: Target | None = None,
    options: SpliceOptions | None = None,
) -> Task:
    """The splice task with another net, recipe, loss or sampling.

    Raises:
        MissingDataError: the package with the loci is not installed.
    """
    chosen = options or SpliceOptions()
    context = build().context
    train = RandomWindows(
        load_sequences("train"),
        window=WINDOW,
        num_windows=chosen.num_windows,
        context=context,
        centred=chosen.centred,
        jitter=chosen.jitter,
        seed=chosen.seed,
    )
    sampled = law_of_windows(train).class_shares
    true = count_classes(train.sequences.labels, len(CLASSES)).prior
    return Task(
        name=name,
        model=partial(_build_at_prior, build, sampled if chosen.prior_bias else None),
        train_data=train,
        valid_data=TiledWindows(load_sequences("test"), window=WINDOW, context=context),
        loss=partial(_loss, chosen.per_position, "all"),
        positive_loss=partial(_loss, chosen.per_position, "positives"),
        evaluate=partial(evaluate_sites, sampled=sampled, true=true),
        recipe=recipe,
        target=target,
    )


def load_sequences(split: str) -> LabelledSequences:
    """The loci of ``train`` or ``test`` as ragged sequences.

    Raises:
        MissingDataError: the package with the loci is not installed.
    """
    loci = load_loci(split)
    return LabelledSequences(
        inputs=tuple(locus.bases for locus in loci),
        labels=tuple(locus.labels for locus in loci),
        padding=UNKNOWN,
    )


def evaluate_sites(
    model: nn.Module, batches: Iterable[Batch], *, sampled: Share, true: Share
) -> dict[str, float]:
    """Average precision and top-k of both kinds of site, and how calibrated they are.

    Args:
        model: logits [B, 3, L] from codes.
        batches: of codes and labels.
        sampled: share of each class in what the model was trained on.
        true: share of each class where it is used.

    Returns:
        ``average_precision`` is the mean over both kinds; ``probability_ratio`` the mean probability
        of a site over the share of sites, after correction, and ``_uncorrected`` before it. nan
        where the batches hold no site of a kind.
    """
    raw: list[Tensor] = []
    corrected: list[Tensor] = []
    labels: list[Tensor] = []
    for codes, targets in batches:
        logits = model(codes).float()
        kept = targets >= 0
        for sink, z in (
            (raw, logits),
            (corrected, correct_logits(logits, sampled=sampled, true=true)),
        ):
            sink.append(z.softmax(1).movedim(1, 2)[kept].cpu())
        labels.append(targets[kept].cpu())
    before, after = torch.cat(raw).numpy(), torch.cat(corrected).numpy()
    truth = torch.cat(labels).numpy()
    precisions: list[float] = []
    metrics: dict[str, float] = {}
    for label, kind in enumerate(CLASSES[1:], 1):
        here = truth == label
        found = here.any() and not here.all()
        score = average_precision(after[:, label], here) if found else np.nan
        precisions.append(score)
        metrics[f"average_precision_{kind}"] = score
        metrics[f"top_k_{kind}"] = top_k_precision(after[:, label], here) if found else np.nan
    sites = truth > 0
    if not sites.any() or sites.all():
        return {"average_precision": np.nan, **metrics}
    curves = [calibration(np.clip(1 - p[:, 0], 0, 1), sites) for p in (before, after)]
    return {
        "average_precision": float(np.mean(precisions)),
        **metrics,
        "probability_ratio": curves[1].ratio,
        "probability_ratio_uncorrected": curves[0].ratio,
        "calibration_error": curves[1].error,
        "calibration_error_uncorrected": curves[0].error,
    }


def splice_small() -> Task:
    """A net of 27,923 parameters, 400 updates of 8 windows."""
    recipe = Recipe(optimizer="adam", lr=2e-3, batch_size=8, steps=400, sampler="sequential")
    target = Target("average_precision", 0.65)
    return splice_task("splice-small", build_small, recipe, target)


def splice() -> Task:
    """A net of 367,235 parameters, 400 updates of 16 windows."""
    recipe = Recipe(optimizer="adamw", lr=1e-3, batch_size=16, steps=400, sampler="sequential")
    options = SpliceOptions(num_windows=6400)
    target = Target("average_precision", 0.65)
    return splice_task("splice", build_large, recipe, target, options)


def _build_at_prior(build: Callable[[], SpliceNet], prior: tuple[float, ...] | None) -> nn.Module:
    model = build()
    if prior is not None:
        prior_bias_(model.head, prior)
    return model


def _loss(per_position: PerPosition, part: str, model: nn.Module, batch: Batch) -> Loss:
    codes, targets = batch
    return cast(Any, per_position)(model(codes), targets, part=part)
