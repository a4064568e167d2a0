"""Probabilities of a model that was trained on more positives than there are, brought back.

Sampling that keeps positives and negatives as they are and only changes how many there are shifts
every log-odds by one constant (King and Zeng 2001, Eq. 7; Saerens et al. 2002, Eq. 2.4). Windows
chosen by what they hold also bring more of the neighbourhood of positives; the correction is then
an approximation, and calibration on plainly sampled data says how good. ``fit_offsets`` takes the
constant from such data instead: it needs no reason for the shift, only the true shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rightbatch.core.errors import InvalidInputError
from rightbatch.sparse.priors import check_prior, read_prior

Share = float | Sequence[float]
_EXACT = 1e-9  # relative error of a mean probability, at which fitting ends


def correct_logits(logits: Tensor, *, sampled: Share, true: Share) -> Tensor:
    """Logits under the true prior: z + log-odds(true) - log-odds(sampled).

    Args:
        logits: binary ones of any shape where the priors are numbers; else [B, C, ...].
        sampled: share of positives, or of each class, in what was trained on.
        true: the same where the model is used.

    Raises:
        InvalidInputError: a prior of 0, 1 or another length.
    """
    binary = len(read_prior(true)) == len(read_prior(sampled)) == 1
    return add_offsets(logits, _shift(sampled, true, 1 if binary else _num_classes(logits)))


def fit_offsets(logits: Tensor, true: Share) -> tuple[float, ...]:
    """What to add to logits so that their mean probabilities are the true shares, exactly.

    Of all constants the likeliest: the score equation of an intercept is sum p = sum y, and it has
    one solution. In the binary form the ranking stays as it is.

    Args:
        logits: of targets drawn as the model will meet them, and not trained on: never of windows
            picked for their positives. Binary ones of any shape where ``true`` is a number; else
            [N, C, ...]. Leave out what does not count: ``logits.movedim(1, -1)[labels >= 0]``.
        true: share of positives, or of each class, among these very targets.

    Returns:
        One offset in the binary form, else one for each class, 0 for the first.

    >>> logits = torch.tensor([-3.0, -1.0, 0.0, 2.0])
    >>> [offset] = fit_offsets(logits, 0.25)
    >>> round(float((logits + offset).sigmoid().mean()), 6)
    0.25

    Raises:
        InvalidInputError: a prior of 0, 1 or another length, no logits, or one that is not finite.
    """
    binary = len(read_prior(true)) == 1
    prior = check_prior(true, 1 if binary else _num_classes(logits))
    if logits.numel() == 0 or not bool(logits.isfinite().all()):
        found = f"{logits.numel()} logits, {int((~logits.isfinite()).sum())} of them not finite"
        raise InvalidInputError(found, need="finite ones", hint="look for a diverged run")
    z = logits.detach().double()
    if binary:
        z = torch.stack([torch.zeros_like(z), z], -1).reshape(-1, 2)
    else:
        z = z.movedim(1, -1).reshape(-1, z.shape[1])
    values = (1 - prior.values[0], prior.values[0]) if binary else prior.values
    shares = z.new_tensor(values)
    offsets = _match(z, shares / shares.sum()).tolist()
    return tuple(offsets[1:]) if binary else tuple(offsets)


def add_offsets(logits: Tensor, offsets: Sequence[float]) -> Tensor:
    """Logits with a constant added: one to all of them, or one for each class of [B, C, ...].

    Raises:
        InvalidInputError: neither one offset nor one for each class.
    """
    if len(offsets) == 1:
        return logits + offsets[0]
    if logits.dim() < 2 or logits.shape[1] != len(offsets):
        found = f"{len(offsets)} offsets for logits {list(logits.shape)}"
        hint = "take them from fit_offsets of the same model"
        raise InvalidInputError(found, need="one, or one for each class", hint=hint)
    return logits + logits.new_tensor(offsets).reshape(1, -1, *(1,) * (logits.dim() - 2))


def correct_probabilities(probabilities: Tensor, *, sampled: Share, true: Share) -> Tensor:
    """Probabilities under the true prior, for models that return no logits.

    Args:
        probabilities: of the positives, any shape, where the priors are numbers; else [B, C, ...],
            adding to 1 over C.
        sampled: as in ``correct_logits``.
        true: as in ``correct_logits``.

    >>> import torch
    >>> value = torch.tensor(0.5, dtype=torch.float64)
    >>> round(float(correct_probabilities(value, sampled=0.5, true=0.01)), 12)
    0.01

    Raises:
        InvalidInputError: a prior of 0, 1 or another length, or a value outside 0 to 1.
    """
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        found = f"values from {float(probabilities.min()):g} to {float(probabilities.max()):g}"
        raise InvalidInputError(found, need="probabilities", hint="for logits: correct_logits")
    if len(read_prior(true)) == len(read_prior(sampled)) == 1:
        return correct_logits(probabilities.logit(), sampled=sampled, true=true).sigmoid()
    return correct_logits(probabilities.log(), sampled=sampled, true=true).softmax(1)


class PriorCorrected(nn.Module):
    """A model whose logits are corrected to the true prior; for use after training, not during."""

    def __init__(self, model: nn.Module, *, sampled: Share, true: Share) -> None:
        """Wrap a model; its parameters are shared, not copied.

        Raises:
            InvalidInputError: a prior of 0, 1 or another length than the other.
        """
        super().__init__()
        _shift(sampled, true, len(read_prior(true)))  # refuse now rather than at the first forward
        self.model, self.sampled, self.true = model, sampled, true

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Corrected logits, of the shape the model gives them."""
        return correct_logits(self.model(*inputs, **named), sampled=self.sampled, true=self.true)


class Recalibrated(nn.Module):
    """A model with the offsets of ``fit_offsets`` added to its logits; for use after training."""

    def __init__(self, model: nn.Module, offsets: Sequence[float]) -> None:
        """Wrap a model; its parameters are shared, not copied."""
        super().__init__()
        self.model, self.offsets = model, tuple(offsets)

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Shifted logits, of the shape the model gives them."""
        return add_offsets(self.model(*inputs, **named), self.offsets)


def _match(z: Tensor, shares: Tensor) -> Tensor:
    """Offsets [C], the first 0, that bring mean softmax(z + offsets) to ``shares``; z is [N, C].

    Newton's method on the concave likelihood, each step halved until it gains.
    """

    def likelihood(offsets: Tensor) -> Tensor:
        return offsets @ shares - (z + offsets).logsumexp(1).mean()

    offsets = torch.zeros_like(shares)
    while True:
        p = (z + offsets).softmax(1)
        mean = p.mean(0)
        if bool(((shares - mean).abs() <= _EXACT * shares).all()):
            return offsets
        hessian = mean.diag() - p.T @ p / len(p)
        ridge = 1e-12 * torch.eye(len(shares) - 1, dtype=z.dtype, device=z.device)
        step = torch.zeros_like(offsets)
        step[1:] = torch.linalg.solve(hessian[1:, 1:] + ridge, (shares - mean)[1:])
        before = likelihood(offsets)
        while not likelihood(offsets + step) > before:
            step = step / 2
            if not bool((offsets + step != offsets).any()):
                return offsets  # as near as float64 comes
        offsets = offsets + step


def _num_classes(logits: Tensor) -> int:
    return logits.shape[1] if logits.dim() > 1 else 1


def _shift(sampled: Share, true: Share, num_logits: int) -> list[float]:
    """What is added to each logit."""
    pairs = zip(
        check_prior(true, num_logits).log_odds, check_prior(sampled, num_logits).log_odds, strict=True
    )
    return [wanted - had for wanted, had in pairs]
