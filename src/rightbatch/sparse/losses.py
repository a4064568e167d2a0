"""Losses for rare targets, summed and counted so that every split of a batch gives one gradient.

Each loss takes logits and targets in one of two forms, and says which by their shapes:
    multi-class  logits [B, C, ...], targets [B, ...] with classes 0 .. C-1; class 0 is the background
    binary       logits and targets of one shape, targets 0 or 1; classes of their own give [B, C, L]
A position whose target is ``ignore_index`` counts for nothing.

``count`` is what the sum is divided by over the whole update: the counted ``targets``, the
``positives`` among them (Lin et al. 2017, Sec. 4.1), or the ``examples``. An update without a single
positive has no gradient per positive: training refuses it, so draw every batch with some.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rightbatch.core.errors import InvalidInputError
from rightbatch.sparse.priors import check_prior
from rightbatch.tasks.task import Loss

IGNORE_INDEX = -100
Normaliser = Literal["targets", "positives", "examples"]
Part = Literal["all", "positives"]


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    weights: Sequence[float] | None = None,
    ignore_index: int = IGNORE_INDEX,
    normaliser: Normaliser = "targets",
    part: Part = "all",
) -> Loss:
    """-w_y log p_y, summed: plain cross-entropy, or with one weight for each class.

    Args:
        logits: [B, C, ...], or the shape of ``targets``.
        targets: classes, or 0 and 1.
        weights: one for each class, ``(negatives, positives)`` in the binary form; None is 1 each.
        ignore_index: target of positions that do not count.
        normaliser: what ``count`` counts.
        part: ``positives`` sums and counts the positive targets alone, as ``Task.positive_loss`` does.

    Raises:
        InvalidInputError: shapes that fit neither form, a target outside the classes, or weights
            of another length, negative or not finite.
    """
    view = _look(logits, targets, ignore_index)
    return _reduce(-view.log_p * _per_class(weights, view, "weights"), view, normaliser, part)


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma: float = 2.0,
    alpha: float | Sequence[float] | None = None,
    ignore_index: int = IGNORE_INDEX,
    normaliser: Normaliser = "targets",
    part: Part = "all",
) -> Loss:
    """-alpha_y (1 - p_y)^gamma log p_y, summed (Lin et al. 2017, arXiv:1708.02002, Eq. 5).

    With respect to the logit its gradient is that of cross-entropy times ``focal_gradient_factor``.

    Args:
        logits: as in ``cross_entropy``.
        targets: as in ``cross_entropy``.
        gamma: 0 is cross-entropy; the paper's 2 by default.
        alpha: one factor for each class; one number ``a`` is ``(1 - a, a)`` in the binary form, the
            paper's 0.25. None is 1 each.
        ignore_index: target of positions that do not count.
        normaliser: what ``count`` counts; the paper divides by positives.
        part: as in ``cross_entropy``.

    Raises:
        InvalidInputError: gamma below 0, or as for ``cross_entropy``.
    """
    _check_gamma(gamma)
    view = _look(logits, targets, ignore_index)
    if isinstance(alpha, (int, float)):
        if not view.binary or not 0 <= alpha <= 1:
            found = f"alpha = {alpha} with {view.num_classes} classes"
            hint = "give one factor for each class"
            raise InvalidInputError(found, need="two classes and 0 <= alpha <= 1", hint=hint)
        alpha = (1 - alpha, alpha)
    # (1-p)^gamma through log(1-p): no 0^gamma, so no infinite slope at p = 1 where gamma < 1.
    modulation = torch.exp(gamma * view.log_not_p()) if gamma else 1.0
    return _reduce(-view.log_p * modulation * _per_class(alpha, view, "alpha"), view, normaliser, part)


def logit_adjusted_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    prior: float | Sequence[float],
    tau: float = 1.0,
    ignore_index: int = IGNORE_INDEX,
    normaliser: Normaliser = "targets",
    part: Part = "all",
) -> Loss:
    """Cross-entropy of logits + tau log prior (Menon et al. 2021, arXiv:2007.07314, Eq. 10).

    What is learned then ranks classes as if they were equally frequent; add tau log prior back to
    read probabilities.

    Args:
        logits: as in ``cross_entropy``.
        targets: as in ``cross_entropy``.
        prior: frequency of each class; of the positives in the binary form.
        tau: 1 is the Bayes-consistent choice.
        ignore_index: target of positions that do not count.
        normaliser: what ``count`` counts.
        part: as in ``cross_entropy``.

    Raises:
        InvalidInputError: a prior of 0, 1 or another length, a tau that is not finite, or as for
            ``cross_entropy``.
    """
    if not abs(tau) < float("inf"):
        raise InvalidInputError(f"tau = {tau}", need="a finite number", hint="use 1")
    offsets = check_prior(prior, 1 if logits.shape == targets.shape else logits.shape[1]).log_odds
    shape = (1, -1) + (1,) * (logits.dim() - 2) if len(offsets) > 1 else ()
    shift = tau * logits.new_tensor(offsets).reshape(shape)
    return cross_entropy(
        logits + shift, targets, ignore_index=ignore_index, normaliser=normaliser, part=part
    )


def focal_gradient_factor(p: float, gamma: float) -> float:
    """How focal loss scales the gradient of a target that has probability ``p`` (alpha 1).

    d FL / d CE = (1-p)^gamma [1 - gamma p log(p) / (1-p)], from differentiating Eq. 5 of Lin et
    al. 2017. It is not the factor (1-p)^gamma of the loss.

    >>> round(focal_gradient_factor(0.99, 2), 7), round(focal_gradient_factor(0.3, 2), 3)
    (0.000299, 0.996)

    Raises:
        InvalidInputError: gamma below 0, or p not between 0 and 1.
    """
    _check_gamma(gamma)
    if not 0 < p < 1:
        raise InvalidInputError(f"p = {p}", need="a probability above 0 and below 1", hint="change p")
    value = torch.tensor(p, dtype=torch.float64)
    return float((1 - value) ** gamma * (1 - gamma * p * value.log() / (1 - value)))


class _View(NamedTuple):
    """Logits and targets as every loss here reads them; all tensors have the targets' shape."""

    logits: Tensor
    """[B, C, ...], or signed so that large means right: [B, ...]."""
    labels: Tensor
    """Classes, 0 where ignored."""
    counted: Tensor
    """Whether the position counts."""
    log_p: Tensor
    """Log of the probability of the target; nan where the target is no class."""
    num_classes: int
    binary: bool

    def log_not_p(self) -> Tensor:
        """log(1 - p) of the target's probability, without cancellation near p = 1."""
        if self.binary:
            return F.logsigmoid(-self.logits)
        others = self.logits.scatter(1, self.labels.unsqueeze(1), -torch.inf)
        return others.logsumexp(1) - self.logits.logsumexp(1)


def _look(logits: Tensor, targets: Tensor, ignore_index: int) -> _View:
    binary = logits.shape == targets.shape
    if not binary and logits.shape[:1] + logits.shape[2:] != targets.shape:
        found = f"logits {list(logits.shape)} and targets {list(targets.shape)}"
        need = "targets [B, ...] for logits [B, C, ...], or one shape for both"
        raise InvalidInputError(found, need=need, hint="transpose the logits: x.transpose(1, 2)")
    num_classes = 2 if binary else logits.shape[1]
    if num_classes < 2:
        hint = "for one logit a position use logits[:, 0], and targets 0 or 1"
        raise InvalidInputError(f"logits {list(logits.shape)}", need="2 or more classes", hint=hint)
    if logits.dtype in {torch.bfloat16, torch.float16}:
        logits = logits.float()  # a sum over thousands of positions does not fit 8 bits
    counted = targets != ignore_index
    known = (targets >= 0) & (targets < num_classes) & (targets == targets.long())
    valid = known | ~counted
    _refuse_other_labels(targets, valid, num_classes)
    labels = torch.where(counted & known, targets, 0).long()
    if binary:
        logits = torch.where(labels == 1, logits, -logits)
        log_p = F.logsigmoid(logits)
    else:
        log_p = logits.log_softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
    return _View(logits, labels, counted, log_p.masked_fill(~valid, torch.nan), num_classes, binary)


def _refuse_other_labels(targets: Tensor, valid: Tensor, num_classes: int) -> None:
    """Look at the values where that costs nothing; elsewhere a wrong label makes the loss nan.

    Raises:
        InvalidInputError: a target is no class, such as 3 of 3 or nan.
    """
    # A traced tensor has no values, and looking at an accelerator's would wait for it.
    if type(targets) is not Tensor or targets.device.type != "cpu" or _is_vmapped(targets):
        return
    if not bool(valid.all()):
        wrong = sorted({f"{value:g}" for value in targets[~valid].tolist()})[:3]
        found = f"target {', '.join(wrong)} among {num_classes} classes"
        need = f"0 to {num_classes - 1}, or ignore_index where a position does not count"
        raise InvalidInputError(found, need=need, hint="count the labels: sparse.count_classes")


def _is_vmapped(tensor: Tensor) -> bool:
    return torch._C._functorch.is_batchedtensor(tensor)  # pyright: ignore


def _per_class(values: Sequence[float] | None, view: _View, name: str) -> Tensor | float:
    """One value for each class, looked up by target.

    Raises:
        InvalidInputError: another number of values than classes, or a value below 0 or not finite.
    """
    if values is None:
        return 1.0
    table = torch.as_tensor(values, dtype=view.log_p.dtype, device=view.log_p.device)
    known = [float(value) for value in values]
    if len(known) != view.num_classes or not all(0 <= value < float("inf") for value in known):
        found = f"{name} = {known} for {view.num_classes} classes"
        need = "one finite number of at least 0 for each class"
        raise InvalidInputError(found, need=need, hint="take them from sparse.count_classes")
    return table[view.labels]


def _reduce(losses: Tensor, view: _View, normaliser: Normaliser, part: Part) -> Loss:
    """Sum over what counts, and count what divides.

    Raises:
        InvalidInputError: no such normaliser or part.
    """
    positive = view.counted & (view.labels > 0)
    summed = positive if part == "positives" else view.counted
    total = losses.masked_fill(~summed, 0.0).sum()
    if part == "positives":
        return Loss(total, positive.sum())
    if part == "all" and normaliser == "targets":
        return Loss(total, view.counted.sum())
    if part == "all" and normaliser == "positives":
        return Loss(total, positive.sum())
    if part == "all" and normaliser == "examples":
        return Loss(total, len(view.labels))
    found, need = f"normaliser {normaliser!r}, part {part!r}", "targets, positives or examples"
    raise InvalidInputError(found, need=f"{need}; all or positives", hint="change the one that is not")


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma < float("inf"):
        raise InvalidInputError(f"gamma = {gamma}", need="0 or more", hint="use 2, or 0 for none")
