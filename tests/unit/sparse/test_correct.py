"""Probabilities brought back to the true prior."""

import pytest
import torch
from torch import nn

from rightbatch.core.errors import InvalidInputError
from rightbatch.sparse.correct import PriorCorrected, correct_logits, correct_probabilities


def test_bayes_rule_gives_the_same_classes() -> None:
    torch.manual_seed(0)
    likelihood = torch.rand(6, 3, 5, dtype=torch.float64)
    sampled, true = (0.5, 0.3, 0.2), (0.98, 0.015, 0.005)

    def posterior(prior: tuple[float, ...]) -> torch.Tensor:
        joint = likelihood * torch.tensor(prior, dtype=torch.float64).reshape(1, 3, 1)
        return joint / joint.sum(1, keepdim=True)

    found = correct_probabilities(posterior(sampled), sampled=sampled, true=true)
    torch.testing.assert_close(found, posterior(true), rtol=1e-12, atol=0)
    logits = correct_logits(posterior(sampled).log() + 7, sampled=sampled, true=true)
    torch.testing.assert_close(logits.softmax(1), posterior(true), rtol=1e-12, atol=0)


def test_a_model_fitted_to_drawn_positives_comes_back_to_the_true_prior() -> None:
    g = torch.Generator().manual_seed(0)
    true, sampled = 0.01, 0.3

    def draw(n: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        y = (torch.rand(n, generator=g) < share).double()
        return torch.randn(n, 1, generator=g, dtype=torch.float64) + 1.5 * y[:, None], y

    x, y = draw(20_000, sampled)
    model = nn.Linear(1, 1, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], y)
        loss.backward()
        return loss

    optimizer.step(closure)
    x, y = draw(200_000, true)
    raw = model(x).sigmoid().mean()
    corrected = PriorCorrected(model, sampled=sampled, true=true)(x).sigmoid().mean()
    assert float(raw.detach()) > 10 * true
    assert float(corrected.detach()) == pytest.approx(true, rel=0.05)


@pytest.mark.parametrize(
    ("sampled", "true", "message"),
    [
        (0.5, 0.0, "prior 0; need a number above 0"),
        (1.0, 0.5, "prior 1; need a number above 0"),
        ((0.5, 0.5), (0.9, 0.05, 0.05), "prior 0.5, 0.5; need 3"),
        (0.5, (0.9, 0.1), "prior 0.5; need 2"),
    ],
)
def test_priors_that_no_correction_has_are_refused(
    sampled: float | tuple[float, ...], true: float | tuple[float, ...], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        PriorCorrected(nn.Identity(), sampled=sampled, true=true)
