"""Probabilities brought back to the true prior."""

import numpy as np
import pytest
import torch
from torch import nn

from rightbatch.core.errors import InvalidInputError
from rightbatch.sparse.correct import (
    PriorCorrected,
    Recalibrated,
    add_offsets,
    correct_logits,
    correct_probabilities,
    fit_offsets,
)


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
        ("half", 0.1, "prior 'half'; need a number or several"),
    ],
)
def test_priors_that_no_correction_has_are_refused(
    sampled: float | tuple[float, ...], true: float | tuple[float, ...], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        PriorCorrected(nn.Identity(), sampled=sampled, true=true)


def test_a_prior_may_come_from_numpy_or_torch() -> None:
    logits = torch.zeros(2, 3)
    expected = correct_logits(logits, sampled=(0.5, 0.25, 0.25), true=(0.25, 0.5, 0.25))
    given = torch.tensor([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    assert correct_logits(logits, sampled=given[0], true=given[1]).equal(expected)  # type: ignore[arg-type]
    one = correct_logits(logits, sampled=np.float32(0.5), true=0.25)  # type: ignore[arg-type]
    assert one.equal(correct_logits(logits, sampled=0.5, true=0.25))


@pytest.mark.parametrize("shares", [0.001, 0.3, (0.9, 0.09, 0.01), (0.2, 0.5, 0.3)])
def test_fitted_offsets_bring_the_mean_to_the_true_shares(shares: float | tuple[float, ...]) -> None:
    g = torch.Generator().manual_seed(0)
    if isinstance(shares, float):
        logits = 3 * torch.randn(50, 40, generator=g) - 2
        mean = add_offsets(logits.double(), fit_offsets(logits, shares)).sigmoid().mean()
        assert float(mean) == pytest.approx(shares, rel=1e-8)
    else:
        logits = 3 * torch.randn(50, 3, 40, generator=g)
        offsets = fit_offsets(logits, shares)
        assert offsets[0] == 0
        mean = add_offsets(logits.double(), offsets).softmax(1).mean((0, 2))
        assert mean.tolist() == pytest.approx(list(shares), rel=1e-8)


def test_two_classes_have_the_offset_of_the_binary_form() -> None:
    z = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pair = torch.stack([torch.zeros_like(z), z], 1)
    assert fit_offsets(pair, (0.98, 0.02))[1] == pytest.approx(fit_offsets(z, 0.02)[0], abs=1e-7)


def test_fitting_undoes_a_shift_that_a_prior_explains() -> None:
    g = torch.Generator().manual_seed(1)
    y = torch.rand(400_000, generator=g, dtype=torch.float64) < 0.01
    x = torch.randn(len(y), generator=g, dtype=torch.float64) + 2 * y
    right = 2 * x - 2 + torch.tensor(0.01 / 0.99, dtype=torch.float64).log()
    [offset] = fit_offsets(right + 3, float(y.double().mean()))
    assert offset == pytest.approx(-3, abs=0.05)


def test_offsets_are_found_where_every_probability_is_saturated() -> None:
    z = torch.cat([torch.full((50,), 100.0), torch.full((50,), -100.0)])
    [offset] = fit_offsets(z, 0.25)
    assert float((z.double() + offset).sigmoid().mean()) == pytest.approx(0.25)


def test_a_recalibrated_model_adds_its_offsets() -> None:
    logits = torch.zeros(2, 3, 4)
    found = Recalibrated(nn.Identity(), (0.0, -1.0, 2.0))(logits)
    assert found[1, :, 3].tolist() == [0, -1, 2]
    assert Recalibrated(nn.Identity(), (0.5,))(torch.zeros(2, 4)).unique().tolist() == [0.5]


def test_values_that_are_no_probabilities_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"values from -2 to 0\.5; need probabilities"):
        correct_probabilities(torch.tensor([-2.0, 0.5]), sampled=0.5, true=0.1)


def test_what_has_no_offsets_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="prior 0; need a number above 0"):
        fit_offsets(torch.zeros(4), 0.0)
    with pytest.raises(InvalidInputError, match=r"prior 0\.5, 0\.5; need 3"):
        fit_offsets(torch.zeros(4, 3), (0.5, 0.5))
    with pytest.raises(InvalidInputError, match=r"prior 0\.5, 0\.5; need a number"):
        fit_offsets(torch.zeros(4), (0.5, 0.5))
    with pytest.raises(InvalidInputError, match="4 logits, 1 of them not finite"):
        fit_offsets(torch.tensor([0.0, 1.0, float("nan"), 2.0]), 0.1)
    with pytest.raises(InvalidInputError, match="0 logits"):
        fit_offsets(torch.zeros(0), 0.1)
    with pytest.raises(InvalidInputError, match=r"2 offsets for logits \[5, 3\]"):
        add_offsets(torch.zeros(5, 3), (0.0, 1.0))
