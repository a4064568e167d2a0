"""Terms with denominators of their own: any split gives the gradient of the one big batch."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from rightbatch.core.errors import InvalidInputError, InvalidTaskError
from rightbatch.tasks.task import Loss
from rightbatch.train.accumulate import accumulate

IGNORED = -100
Batch = tuple[Tensor, Tensor, Tensor]


def terms(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """Cross-entropy over visible tokens, an auxiliary error over weighted examples, a plain mean."""
    x, y, weight = batch
    logits = model(x)
    tokens = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=IGNORED, reduction="sum")
    means = logits.mean(dim=(1, 2))
    return {
        "tokens": Loss(tokens, (y != IGNORED).sum()),
        "aux": Loss(0.3 * (weight * (means - 1).square()).sum(), weight.sum()),
        "penalty": 0.1 * means.square().mean(),
    }


def net(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(dropout), nn.Linear(6, 5)).double()


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def draw(sizes: list[int], shares: list[float], weighted: list[bool], seed: int) -> list[Batch]:
    """Micro-batches, each with its own share of masked tokens and with weights or none."""
    torch.manual_seed(seed)
    pieces = []
    for size, share, has_weight in zip(sizes, shares, weighted, strict=False):
        y = torch.randint(0, 5, (size, 4))
        weight = torch.rand(size, dtype=torch.float64) * has_weight
        visible = y.masked_fill(torch.rand(y.shape) < share, IGNORED)
        pieces.append((torch.randn(size, 4, 3, dtype=torch.float64), visible, weight))
    return pieces


@settings(deadline=None, max_examples=300)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    shares=st.lists(st.sampled_from([0.0, 0.5, 0.9, 1.0]), min_size=6, max_size=6),
    weighted=st.lists(st.booleans(), min_size=6, max_size=6),
    seed=st.integers(0, 10_000),
)
def test_any_split_of_several_terms_gives_the_full_batch_gradient(
    sizes: list[int], shares: list[float], weighted: list[bool], seed: int
) -> None:
    pieces = draw(sizes, shares, weighted, seed)
    model = net()
    big = terms(model, tuple(map(torch.cat, zip(*pieces, strict=True))))
    objective = big["penalty"]
    for name in ("tokens", "aux"):
        objective = objective + big[name].total / max(float(big[name].count), 1e-300)
    expected = torch.cat([
        g.flatten() for g in torch.autograd.grad(objective, list(model.parameters()))
    ])

    told = accumulate(model, terms, pieces)

    assert float((flat_gradient(model) - expected).norm() / expected.norm()) <= 1e-12
    assert told.mean == pytest.approx(objective.item(), rel=1e-12)
    assert told.norm == pytest.approx(float(expected.norm()), rel=1e-12)
    assert told.terms["penalty"] == pytest.approx(big["penalty"].item(), rel=1e-12)


def random_mask(model: nn.Module, batch: Batch) -> dict[str, Loss]:
    """Chooses its own targets with every call, as masked language models do."""
    x, y, weight = batch
    return terms(model, (x, y.masked_fill(torch.rand(y.shape) < 0.5, IGNORED), weight))


def test_random_choices_of_the_loss_are_the_same_when_it_is_counted_and_when_it_is_summed() -> None:
    pieces = draw([3, 2, 4], [0.0] * 3, [True] * 3, seed=1)
    model = net(dropout=0.5)
    torch.manual_seed(7)
    accumulate(model, random_mask, pieces)
    drawn = torch.rand(())
    torch.manual_seed(7)
    for batch in pieces:
        random_mask(model, batch)
    assert drawn == torch.rand(())  # as if every micro-batch had been run once


def test_counting_leaves_running_statistics_as_one_forward_would() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.BatchNorm1d(4)).double()
    accumulate(model, terms, draw([3, 2, 4], [0.2] * 3, [True] * 3, seed=1))
    assert int(model[2].num_batches_tracked) == 3


def test_a_count_that_changes_from_call_to_call_is_refused() -> None:
    calls = iter(range(100))

    def unsteady(model: nn.Module, batch: Batch) -> dict[str, Loss]:
        return {**terms(model, batch), "more": Loss(model(batch[0]).sum(), next(calls))}

    message = r"term 'more' of the loss counted 3 targets, then 7; need a count that is the same"
    with pytest.raises(InvalidTaskError, match=message):
        accumulate(net(), unsteady, draw([2, 2, 2], [0.0] * 3, [True] * 3, seed=0))


def test_terms_that_come_and_go_are_refused() -> None:
    def moody(model: nn.Module, batch: Batch) -> dict[str, Any]:
        found = terms(model, batch)
        return found if len(batch[0]) > 1 else {"tokens": found["tokens"]}

    with pytest.raises(InvalidTaskError, match=r"the terms tokens after tokens, aux, penalty"):
        accumulate(net(), moody, draw([2, 1], [0.0] * 2, [True] * 2, seed=0))


def test_a_window_without_a_target_in_any_term_is_refused() -> None:
    def masked(model: nn.Module, batch: Batch) -> dict[str, Any]:
        found = terms(model, batch)
        return {name: found[name] for name in ("tokens", "aux")}

    with pytest.raises(InvalidInputError, match="0 counted targets in an update of 4 examples"):
        accumulate(net(), masked, draw([2, 2], [1.0] * 2, [False] * 2, seed=0))


def test_an_empty_dictionary_is_refused() -> None:
    with pytest.raises(InvalidTaskError, match="loss returned an empty dictionary; need a term"):
        accumulate(net(), lambda model, batch: {}, draw([2], [0.0], [True], seed=0))


def test_a_term_without_a_target_in_the_whole_window_contributes_nothing() -> None:
    def with_idle(model: nn.Module, batch: Batch) -> dict[str, Any]:
        found = terms(model, batch)
        return {"tokens": found["tokens"], "idle": Loss(model(batch[0]).sum(), 0)}

    pieces = draw([3, 2], [0.0] * 2, [True] * 2, seed=4)
    model = net()
    told = accumulate(model, with_idle, pieces)
    found = flat_gradient(model)
    alone = accumulate(model, lambda model, batch: terms(model, batch)["tokens"], pieces)
    torch.testing.assert_close(found, flat_gradient(model), rtol=1e-12, atol=1e-14)
    assert told.mean == pytest.approx(alone.mean, rel=1e-12)
