"""Probabilities of a model that was trained on more positives than there are, brought back.

Sampling that keeps positives and negatives as they are and only changes how many there are shifts
every log-odds by one constant (King and Zeng 2001, Eq. 7; Saerens et al. 2002, Eq. 2.4). Windows
chosen by what they hold also bring more of the neighbourhood of positives; the correction is then
an approximation, and calibration on plainly sampled data says how good.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from rightbatch.sparse.priors import check_prior

Share = float | Sequence[float]


def correct_logits(logits: Tensor, *, sampled: Share, true: Share) -> Tensor:
    """Logits under the true prior: z + log-odds(true) - log-odds(sampled).

    Args:
        logits: binary ones of any shape where the priors are numbers; else [B, C, ...].
        sampled: share of positives, or of each class, in what was trained on.
        true: the same where the model is used.

    Raises:
        InvalidInputError: a prior of 0, 1 or another length.
    """
    if isinstance(true, (int, float)) and isinstance(sampled, (int, float)):
        return logits + _shift(sampled, true, 1)[0]
    shift = logits.new_tensor(_shift(sampled, true, logits.shape[1]))
    return logits + shift.reshape(1, -1, *(1,) * (logits.dim() - 2))


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
        InvalidInputError: a prior of 0, 1 or another length.
    """
    if isinstance(true, (int, float)) and isinstance(sampled, (int, float)):
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
        num_logits = 1 if isinstance(true, (int, float)) else len(true)
        _shift(sampled, true, num_logits)  # refuse now rather than at the first forward
        self.model, self.sampled, self.true = model, sampled, true

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Corrected logits, of the shape the model gives them."""
        return correct_logits(self.model(*inputs, **named), sampled=self.sampled, true=self.true)


def _shift(sampled: Share, true: Share, num_logits: int) -> list[float]:
    """What is added to each logit."""
    pairs = zip(
        check_prior(true, num_logits).log_odds, check_prior(sampled, num_logits).log_odds, strict=True
    )
    return [wanted - had for wanted, had in pairs]
