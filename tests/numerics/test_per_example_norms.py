"""Hooks in an ordinary backward give the norms that ``vmap(grad)`` gives, to rounding."""

import pytest
import torch
from torch import Tensor, nn

from per_example_zoo import KNOWN, OTHERS, N, Recurrent, Tied, forward_loss, reference
from rightbatch.measure.meter.layers import is_known, squared_norms
from rightbatch.measure.meter.per_example import PerExampleNorms
from rightbatch.measure.meter.sketch import sketches

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

ALL = KNOWN | OTHERS


def squares_by_hooks(
    model: nn.Module, x: Tensor, *, exact: bool = True, seed: int = 0
) -> dict[nn.Parameter, Tensor]:
    """Of N c_i, so of the examples' own gradients; checked against the whole gradient too."""
    norms = PerExampleNorms(model, exact=exact, seed=seed)
    norms.arm()
    norms.num_examples, norms.check = len(x), {}
    model.zero_grad()
    forward_loss(model, x).backward()
    whole = {p: p.grad for p in model.parameters() if p.grad is not None}
    found = norms.finish(set(whole), whole)
    assert norms.check is not None
    for p in found:
        torch.testing.assert_close(norms.check[p], whole[p])
    return {p: s[0] * len(x) ** 2 for p, s in found.items()}


def make(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return ALL[name].build().double(), ALL[name].inputs()


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_has_the_norms_of_vmap_grad(name: str) -> None:
    model, x = make(name)
    truth = reference(model, x)
    found = squares_by_hooks(model, x)
    for parameter_name, p in model.named_parameters():
        expected = truth[parameter_name].flatten(1).square().sum(1)
        torch.testing.assert_close(found[p], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", KNOWN)
def test_the_cheap_way_is_unbiased(name: str) -> None:
    model, x = make(name)
    truth = sum(float(g.square().sum()) for g in reference(model, x).values())
    draws = torch.tensor([
        sum(float(s.sum()) for s in squares_by_hooks(model, x, exact=False, seed=seed).values())
        for seed in range(60)
    ])
    assert abs(draws.mean() - truth) <= 4 * draws.std() / 60**0.5 + 1e-5 * truth


@pytest.mark.parametrize("name", [n for n in KNOWN if n.startswith(("conv", "linear, long"))])
def test_a_sketch_varies_by_no_more_than_hutchinsons_bound(name: str) -> None:
    model, x = make(name)
    layer = next(m for m in model.modules() if is_known(m))
    with torch.no_grad():
        d = torch.randn_like(layer(x))
    exact = squared_norms(layer, x, d)["weight"]
    draws = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)

        def signs(p: nn.Parameter, entries: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randint(0, 2, (N, entries), generator=generator).mul(2).sub(1).double()

        draws.append(sketches(layer, x, d, signs)["weight"].square().sum(1))
    spread = torch.stack(draws).var(0)
    assert bool((spread <= 1.5 * 2 * exact**2).all())


def test_a_depthwise_convolution_is_exact_even_as_a_sketch() -> None:
    model, x = make("conv2d depthwise")
    exact, cheap = squares_by_hooks(model, x), squares_by_hooks(model, x, exact=False)
    for p in exact:
        torch.testing.assert_close(cheap[p], exact[p])


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_layers_are_right_on_average(kind: type[nn.RNNBase], batch_first: bool) -> None:
    """Their norms come from the spread between groups: exact in expectation over batches."""
    torch.manual_seed(0)
    model = Recurrent(kind, batch_first=batch_first).double()
    pool = torch.randn(40, 5, 3, dtype=torch.float64)
    truth = {n: g.flatten(1).square().sum(1).mean() for n, g in _looped(model, pool).items()}
    draws: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for _ in range(30):
        x = pool[torch.randint(len(pool), (24,))]
        found = squares_by_hooks(model, x)
        for name, p in model.named_parameters():
            draws[name].append(found[p].mean())
    for name, values in draws.items():
        stacked = torch.stack(values)
        assert abs(stacked.mean() - truth[name]) <= 4 * stacked.std() / 30**0.5


def _looped(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Recurrent kernels cannot be vectorised: one example after the other."""
    rows: dict[str, list[Tensor]] = {name: [] for name, _ in model.named_parameters()}
    for k in range(len(x)):
        gradients = torch.autograd.grad(forward_loss(model, x[k : k + 1]), list(model.parameters()))
        for name, g in zip(rows, gradients, strict=True):
            rows[name].append(g)
    return {name: torch.stack(parts) for name, parts in rows.items()}


def test_a_weight_used_behind_a_modules_back_fails_the_check() -> None:
    torch.manual_seed(0)
    model, x = Tied(functional=True).double(), torch.randint(11, (N, 6))
    with pytest.raises(AssertionError, match="not close"):
        squares_by_hooks(model, x)


def test_weighted_norms_are_those_of_the_weighted_gradients() -> None:
    for name in ("linear, long sequence", "tied", "conv2d groups", "scaled", "positions, parameter"):
        model, x = make(name)
        weights = {p: torch.rand_like(p) for p in model.parameters()}
        norms = PerExampleNorms(model, exact=True)
        norms.arm()
        norms.num_examples, norms.weights = N, weights
        forward_loss(model, x).backward()
        whole = {p: p.grad for p in model.parameters() if p.grad is not None}
        found = norms.finish(set(whole), whole)
        for parameter_name, g in reference(model, x).items():
            p = dict(model.named_parameters())[parameter_name]
            expected = (g.square() * weights[p]).flatten(1).sum(1)
            torch.testing.assert_close(found[p][1] * N**2, expected, rtol=1e-10, atol=1e-12)
