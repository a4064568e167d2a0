from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import rightbatch as rb
from rightbatch.core.errors import InvalidInputError, MeasurementError
from rightbatch.core.samples import GradientSample

torch.set_num_threads(1)
GENERATOR = torch.Generator().manual_seed(0)
X, Y = torch.randn(64, 8, generator=GENERATOR), torch.randint(3, (64,), generator=GENERATOR)


class Net(nn.Module):
    """A block used twice, checkpointed on request, with dropout on request."""

    def __init__(self, *, reentrant: bool | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.again, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.norm, self.drop, self.reentrant = nn.LayerNorm(16), nn.Dropout(dropout), reentrant

    def block(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.again(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        for _ in range(2):
            if self.reentrant is None:
                x = self.block(x)
            else:
                x = checkpoint(self.block, x, use_reentrant=self.reentrant)
        return self.last(self.drop(x))


def loop(
    model: nn.Module,
    meter: rb.NoiseMeter | None,
    *,
    updates: int = 4,
    batch: int = 16,
    accumulate: int = 1,
    scaler: Any = None,
    unscale: bool = False,
    autocast: bool = False,
    reduction: str = "mean",
) -> list[Tensor]:
    """Adam for some updates; every output and gradient on the way, and the final random state."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    seen: list[Tensor] = []
    for _ in range(updates):
        optimizer.zero_grad()
        for _ in range(accumulate):
            rows = torch.randint(64, (batch,))
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                output = model(X[rows])
                loss = F.cross_entropy(output, Y[rows], reduction=reduction)
            loss = loss / (accumulate if reduction == "mean" else 1)
            (scaler.scale(loss) if scaler else loss).backward()
            seen.append(output.detach().clone())
        if unscale:
            scaler.unscale_(optimizer)
        if meter is not None:
            meter.update(scaler=scaler)
        seen += [p.grad.clone() for p in model.parameters() if p.grad is not None]
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
    return [*seen, torch.get_rng_state()]


def measured(model: nn.Module, **options: Any) -> tuple[GradientSample, ...]:
    with rb.NoiseMeter(model, period=1, reduction=options.get("reduction", "mean")) as meter:
        loop(model, meter, **options)
    assert not meter.skipped
    return meter.samples


def norms(samples: tuple[GradientSample, ...]) -> Tensor:
    return torch.tensor([[s.small_sq_norm, s.big_sq_norm] for s in samples])


class Slope(nn.Module):
    """The gradient of the mean of its output is the mean of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.line(x)


def test_gradients_of_one_and_three_give_a_noise_scale_of_one_quarter() -> None:
    model = Slope()
    generator = torch.Generator().manual_seed(0)
    with rb.NoiseMeter(model, period=1) as meter:
        for _ in range(100):
            x = 1.0 + 2.0 * torch.randint(2, (8, 1), generator=generator)
            model.zero_grad()
            model(x).mean().backward()
            meter.update()
    estimate = meter.estimate()
    assert estimate.source == "per-example"
    assert estimate.grad_sq_norm == pytest.approx(4.0, rel=0.05)
    assert estimate.trace_covariance == pytest.approx(1.0, rel=0.05)
    assert estimate.low < 0.25 < (estimate.high or 0)


def test_every_batch_of_two_gives_the_pair_by_hand() -> None:
    model = Slope()
    with rb.NoiseMeter(model, period=1) as meter:
        for pair in ((1.0, 1.0), (1.0, 3.0), (3.0, 3.0)):
            model.zero_grad()
            model(torch.tensor(pair).unsqueeze(1)).mean().backward()
            meter.update()
    pairs = [(s.small_sq_norm, s.big_sq_norm) for s in meter.samples]
    assert pairs == [(1.0, 1.0), (5.0, 4.0), (9.0, 9.0)]
    assert [s.examples_seen for s in meter.samples] == [2, 4, 6]


@pytest.mark.parametrize("reentrant", [None, False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_is_the_same_to_the_bit_with_and_without_a_meter(
    reentrant: bool | None, dropout: float, accumulate: int
) -> None:
    plain, metered = (Net(reentrant=reentrant, dropout=dropout) for _ in range(2))
    with rb.NoiseMeter(metered, torch.optim.Adam(metered.parameters()), period=1) as meter:
        with_meter = loop(metered, meter, accumulate=accumulate)
    without = loop(plain, None, accumulate=accumulate)
    assert all(torch.equal(a, b) for a, b in zip(with_meter, without, strict=True))
    assert len(meter.samples) == 4


def test_no_hook_is_left_behind() -> None:
    model = Net()
    hooks = [len(getattr(m, name)) for m in model.modules() for name in _HOOK_TABLES]
    with rb.NoiseMeter(model, period=1) as meter:
        loop(model, meter)
    assert [len(getattr(m, name)) for m in model.modules() for name in _HOOK_TABLES] == hooks
    assert all(not p._backward_hooks for p in model.parameters())
    assert all(not p._post_accumulate_grad_hooks for p in model.parameters())


_HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def test_between_measured_updates_only_the_counter_of_examples_is_installed() -> None:
    model = Net()
    with rb.NoiseMeter(model, period=10) as meter:
        loop(model, meter, updates=2)
        assert sum(len(getattr(m, name)) for m in model.modules() for name in _HOOK_TABLES) == 1
        assert all(not p._backward_hooks for p in model.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_norm(reentrant: bool) -> None:
    torch.testing.assert_close(norms(measured(Net(reentrant=reentrant))), norms(measured(Net())))


def test_autocast_measures_nearly_the_same() -> None:
    torch.testing.assert_close(
        norms(measured(Net(), autocast=True)), norms(measured(Net())), rtol=0.05, atol=0.02
    )


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("unscale", [False, True])
def test_the_loss_scale_is_divided_out(accumulate: int, unscale: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled = measured(Net(), scaler=scaler, unscale=unscale, accumulate=accumulate)
    torch.testing.assert_close(norms(scaled), norms(measured(Net(), accumulate=accumulate)))


def test_overflowing_gradients_are_skipped_and_counted() -> None:
    model = Net()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with rb.NoiseMeter(model, period=1) as meter:
        loop(model, meter, scaler=scaler, updates=3)
    assert meter.skipped == {"gradients that are not finite": 3}
    with pytest.raises(MeasurementError, match=r"0 measured update.*3 skipped: gradients that are not"):
        meter.estimate()


def test_a_summed_loss_gives_the_norms_of_the_mean() -> None:
    for accumulate in (1, 2):
        mean = norms(measured(Net(), accumulate=accumulate, updates=1))
        total = norms(measured(Net(), accumulate=accumulate, updates=1, reduction="sum"))
        torch.testing.assert_close(mean, total)


def test_accumulation_is_measured_by_its_micro_batches() -> None:
    samples = measured(Net(), accumulate=4, batch=8)
    assert {(s.source, s.small_batch_size, s.big_batch_size) for s in samples} == {
        ("micro-batches", 8, 32)
    }
    assert samples[0].num_small_batches == 4


def test_micro_batches_and_examples_agree_on_average() -> None:
    model = Net()
    for p in model.parameters():
        p.grad = None
    found: dict[int, list[Tensor]] = {}
    torch.manual_seed(3)
    for accumulate in (1, 4):
        with rb.NoiseMeter(model, period=1) as meter:
            for _ in range(100):
                model.zero_grad()
                for rows in torch.randint(64, (32,)).chunk(accumulate):
                    (F.cross_entropy(model(X[rows]), Y[rows]) / accumulate).backward()
                meter.update()
        found[accumulate] = [_moments(s) for s in meter.samples]
    one, four = (torch.stack(found[k]) for k in (1, 4))
    error = ((one.var(0) + four.var(0)) / 100).sqrt()
    assert bool(((one.mean(0) - four.mean(0)).abs() <= 4 * error).all())


def _moments(s: GradientSample) -> Tensor:
    b, big = s.small_batch_size, s.big_batch_size
    trace = (s.small_sq_norm - s.big_sq_norm) / (1 / b - 1 / big)
    return torch.tensor([trace, s.big_sq_norm - trace / big])


def test_adams_preconditioner_weights_both_norms() -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for accumulate in (1, 2):
        with rb.NoiseMeter(model, optimizer, period=1) as meter:
            for _ in range(5):
                optimizer.zero_grad()
                for rows in torch.randint(64, (16,)).chunk(accumulate):
                    (F.cross_entropy(model(X[rows]), Y[rows]) / accumulate).backward()
                expected = _weighted_square(model, optimizer)
                meter.update()
                optimizer.step()
        last = meter.samples[-1]
        assert last.preconditioned_big_sq_norm == pytest.approx(expected, rel=1e-4)
        assert (last.preconditioned_small_sq_norm or 0) > expected
        assert "preconditioned" in meter.estimate().source
        assert "preconditioned" not in meter.estimate(preconditioned=False).source


def test_measuring_a_weight_beside_layers_holds_no_graph() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(X.shape[1]))
            self.layer = nn.Linear(X.shape[1], 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x + self.shift)

    model = Shifted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of numbers taken from tensors with a graph
        with rb.NoiseMeter(model, period=1) as meter:
            F.cross_entropy(model(X[:16]), Y[:16] % 3).backward()
            meter.update()
    assert meter.samples[0].covered == 1.0


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_complex_weight_counts_as_the_pair_of_numbers_that_it_is(accumulate: int) -> None:
    class Spectral(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(X.shape[1] // 2 + 1, dtype=torch.cfloat))

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=x.shape[1])

    model = Spectral()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with rb.NoiseMeter(model, optimizer, period=1) as meter:
        for _ in range(5):
            optimizer.zero_grad()
            for rows in torch.arange(16).chunk(accumulate):
                (model(X[rows]).square().sum(1).mean() / accumulate).backward()
            meter.update()
            optimizer.step()
    last, gradient = meter.samples[-1], model.weight.grad
    assert gradient is not None
    assert last.big_sq_norm == pytest.approx(float(gradient.abs().square().sum()), rel=1e-5)
    assert last.small_sq_norm > last.big_sq_norm
    assert "preconditioned" in meter.estimate().source


def _weighted_square(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    total = 0.0
    for p in model.parameters():
        state = optimizer.state.get(p)
        if state:
            v = state["exp_avg_sq"] / (1 - 0.999 ** float(state["step"]))
            total += float((p.grad.square() / (v.sqrt() + 1e-8)).sum()) if p.grad is not None else 0.0
    return total


def test_batch_norm_is_refused_without_groups() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with (
        rb.NoiseMeter(model, period=1) as meter,
        pytest.raises(InvalidInputError, match="BatchNorm in training"),
    ):
        loop(model, meter)


def test_batch_norm_is_measured_by_groups_and_left_as_it_was() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 3))
    metered = copy.deepcopy(plain)
    after: list[list[Tensor]] = []
    with rb.NoiseMeter(metered, period=1) as meter:
        for model in (plain, metered):
            torch.manual_seed(1)
            for _ in range(4):
                rows = torch.randint(64, (16,))
                model.zero_grad()
                F.cross_entropy(model(X[rows]), Y[rows]).backward()
                if model is metered:
                    meter.update(groups=_losses(model, rows))
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            after.append([*model.state_dict().values(), *gradients, torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))
    assert {(s.source, s.small_batch_size, s.coupling) for s in meter.samples} == {
        ("groups", 8, "batch-norm")
    }


def _losses(model: nn.Module, rows: Tensor) -> Iterator[Tensor]:
    return (F.cross_entropy(model(X[part]), Y[part]) for part in rows.chunk(2))


def test_groups_give_what_micro_batches_give() -> None:
    model = nn.Sequential(
        nn.Linear(8, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)
    )
    rows = torch.arange(32)
    found = []
    for accumulate in (False, True):
        with rb.NoiseMeter(model, period=1) as meter:
            model.zero_grad()
            if accumulate:
                for loss in _losses(model, rows):
                    (loss / 2).backward()
                meter.update()
            else:
                F.cross_entropy(model(X[rows]), Y[rows]).backward()
                meter.update(groups=_losses(model, rows))
        found.append(norms(meter.samples))
    torch.testing.assert_close(*found)


class Centred(nn.Module):
    """Couples examples without any BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(torch.tanh(x - x.mean(0)))


class PositionsFirst(nn.Module):
    """Turns batch and positions around inside; both are equally long."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1) * torch.linspace(0.1, 2, len(x)).view(1, -1, 1)
        return self.last(torch.tanh(self.first(x.transpose(0, 1)))).mean(0)


class Functional(nn.Module):
    """Uses a layer's weight behind the layer's back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(F.linear(self.first(x), self.first.weight)))


@pytest.mark.parametrize("build", [Centred, PositionsFirst, Functional])
def test_rows_that_are_not_examples_are_found_out(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = build()
    with (
        rb.NoiseMeter(model, period=1) as meter,
        pytest.raises(InvalidInputError, match="confirmed for only"),
    ):
        loop(model, meter)


def test_a_small_uncovered_part_is_stated() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 3), _Shift())
    (sample, *_) = measured(model)
    assert sample.covered == pytest.approx(1 - 3 / (8 * 64 + 64 + 64 * 3 + 3 + 3))


class Experts(nn.Module):
    """All examples go to one of two experts; the other is called on none of them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.large, self.small, self.head = nn.Linear(8, 32), nn.Linear(8, 1), nn.Linear(32, 3)
        self.to_small = False

    def forward(self, x: Tensor) -> Tensor:
        none = x[:0]
        if self.to_small:
            return self.head(self.small(x).expand(-1, 32) + self.large(none).sum())
        return self.head(self.large(x) + self.small(none).sum())


def test_a_layer_that_is_called_on_nothing_adds_nothing() -> None:
    model = Experts()
    with rb.NoiseMeter(model, period=1) as meter:
        loop(model, meter)
        model.to_small = True
        loop(model, meter, updates=1)
    assert not meter.skipped
    covered = 1 - 9 / sum(p.numel() for p in model.parameters())
    assert [s.covered for s in meter.samples] == pytest.approx([covered] * 5)  # none saw the small
    plain = Experts()
    torch.testing.assert_close(
        norms(meter.samples[:4]), norms(measured(nn.Sequential(plain.large, plain.head)))
    )
    whole = sum(float(p.grad.square().sum()) for p in model.head.parameters() if p.grad is not None)
    assert meter.samples[4].big_sq_norm == pytest.approx(whole)


class _Shift(nn.Module):
    """Draws random numbers, so that it cannot be run again."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shift * torch.rand(len(x), 1)


def test_compiled_models_are_refused_by_name_and_measured_by_micro_batches() -> None:
    model = Net()
    compiled = torch.compile(model, backend="eager")
    with (
        rb.NoiseMeter(compiled, period=1) as meter,
        pytest.raises(InvalidInputError, match="a compiled model"),
    ):
        loop(compiled, meter)
    torch.testing.assert_close(
        norms(measured(torch.compile(Net(), backend="eager"), accumulate=2)),
        norms(measured(Net(), accumulate=2)),
    )


def test_hooks_of_others_on_the_same_layers_run_once_a_call() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.GRUCell(4, 4), nn.Linear(4, 3))
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for layer in model:
        layer.register_forward_hook(count)
    model[1].register_full_backward_hook(count)
    assert len(measured(model)) == 4
    assert calls == 4 * (3 + 1)


def test_sparse_gradients_are_measured_as_dense_ones() -> None:
    ids = torch.randint(20, (4, 16, 5), generator=torch.Generator().manual_seed(0))
    found = []
    for sparse in (True, False):
        for accumulate in (1, 2):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Embedding(20, 4, sparse=sparse), nn.Flatten(), nn.Linear(20, 1))
            with rb.NoiseMeter(model, period=1) as meter:
                for batch in ids:
                    model.zero_grad()
                    for part in batch.chunk(accumulate):
                        (model(part).square().mean() / accumulate).backward()
                    meter.update()
            found.append(norms(meter.samples))
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[3])


def test_batches_of_one_example_are_skipped_and_counted() -> None:
    model = Net()
    with rb.NoiseMeter(model, period=1) as meter:
        loop(model, meter, batch=1, updates=3)
    assert meter.skipped == {"a batch of one example": 3}


def test_a_zero_gradient_is_undecided_not_an_error() -> None:
    model = nn.Sequential(nn.Linear(8, 3), nn.Linear(3, 1))
    with rb.NoiseMeter(model, period=1) as meter:
        for _ in range(3):
            model.zero_grad()
            (model(X) * 0.0).mean().backward()
            meter.update()
    estimate = meter.estimate()
    assert not estimate.decided
    assert estimate.noise_scale is None


def test_unequal_micro_batches_are_weighed_by_their_examples() -> None:
    model = Slope()
    with rb.NoiseMeter(model, period=1, reduction="sum") as meter:
        for rows in (torch.arange(3.0), torch.arange(5.0)):
            model(rows.unsqueeze(1)).sum().backward()
        meter.update()
    (sample,) = meter.samples
    # Gradients of the parts' means are 1 and 2; of all eight examples' mean 13/8.
    assert (sample.small_batch_size, sample.big_batch_size) == (4, 8)
    assert sample.small_sq_norm == pytest.approx((3 * 1 + 5 * 4) / 8)
    assert sample.big_sq_norm == pytest.approx((13 / 8) ** 2)


def test_clipping_before_the_meter_looks_is_refused() -> None:
    model = Net()
    with rb.NoiseMeter(model, period=1) as meter:
        for part in torch.arange(32).chunk(2):
            (F.cross_entropy(model(X[part]), Y[part]) * 50).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        with pytest.raises(InvalidInputError, match=r"divided by .* between backward and update"):
            meter.update()


@pytest.mark.parametrize("first", [1, 4])
def test_updates_that_grow_by_accumulation_go_on_being_measured(first: int) -> None:
    torch.manual_seed(1)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with rb.NoiseMeter(model, optimizer, period=1) as meter:
        for update in range(first + 4):
            parts = torch.arange(32).chunk(2) if update >= first else [torch.arange(16)]
            optimizer.zero_grad()
            for rows in parts:
                (F.cross_entropy(model(X[rows]), Y[rows]) / len(parts)).backward()
            meter.update()
            optimizer.step()
    assert not meter.skipped
    sources = [(s.source, s.big_batch_size) for s in meter.samples]
    assert sources == [("per-example", 16)] * first + [("micro-batches", 32)] * 4


def test_clipping_does_not_matter_for_single_examples() -> None:
    plain = norms(measured(Net(), updates=1))
    model = Net()
    with rb.NoiseMeter(model, period=1) as meter:
        torch.manual_seed(1)
        rows = torch.randint(64, (16,))
        F.cross_entropy(model(X[rows]), Y[rows]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        meter.update()
    torch.testing.assert_close(norms(meter.samples), plain)


def test_validation_between_updates_is_not_counted() -> None:
    model = Net()
    with rb.NoiseMeter(model, period=1) as meter:
        for _ in range(3):
            model.zero_grad()
            F.cross_entropy(model(X[:16]), Y[:16]).backward()
            with torch.no_grad():
                model(X)
            meter.update()
    assert meter.examples_seen == 48
    assert {s.big_batch_size for s in meter.samples} == {16}


def test_a_forward_that_no_backward_follows_is_no_micro_batch() -> None:
    model, plain = Net(), Net()
    found = []
    for each, validates in ((model, True), (plain, False)):
        with rb.NoiseMeter(each, period=1) as meter:
            for update in range(4):
                each.zero_grad()
                if validates and not update % 2:
                    each(X)  # without no_grad
                F.cross_entropy(each(X[:16]), Y[:16]).backward()
                if validates and update % 2:
                    each(X)
                meter.update()
        assert not meter.skipped
        found.append(norms(meter.samples))
    torch.testing.assert_close(*found)


def test_such_a_forward_hides_nothing_from_the_check() -> None:
    model = Centred()
    with rb.NoiseMeter(model, period=1) as meter:
        model(X)
        F.cross_entropy(model(X[:16]), Y[:16]).backward()
        with pytest.raises(InvalidInputError, match="confirmed for only"):
            meter.update()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_parameters_that_are_unfrozen_midway_are_measured_too(accumulate: int) -> None:
    model, fresh = Net(), Net()
    model.first.requires_grad_(requires_grad=False)
    with rb.NoiseMeter(model, period=1) as meter:
        loop(model, meter, accumulate=accumulate, updates=2)
        model.first.requires_grad_()
        model.load_state_dict(fresh.state_dict())
        loop(model, meter, accumulate=accumulate, updates=4)
    assert meter.skipped == {"parameters that were frozen or unfrozen since the last update": 1}
    assert [s.covered for s in meter.samples] == [1.0] * 5
    expected = measured(fresh, accumulate=accumulate)
    torch.testing.assert_close(norms(meter.samples[2:]), norms(expected[1:]))


def test_a_sample_of_too_few_parameters_is_skipped() -> None:
    model = Sometimes()
    with rb.NoiseMeter(model, period=1) as meter:
        loop(model, meter, updates=2)
        model.shuffles = True
        loop(model, meter, updates=2)
    assert len(meter.samples) == 2
    assert meter.skipped == {"per-example gradients of too few parameters": 2}


class Sometimes(nn.Sequential):
    """Its first layer may be given rows that are no examples."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 8), nn.Linear(8, 3))
        self.shuffles = False

    def forward(self, x: Tensor) -> Tensor:
        rows = self[0](x[: len(x) - 3]).sum() if self.shuffles else self[0](x)
        return self[1](x + rows)


def test_the_state_goes_on_where_it_was_saved() -> None:
    model = Net()
    with rb.NoiseMeter(model, period=2) as meter:
        loop(model, meter, updates=7)
    saved = json.loads(json.dumps(meter.state_dict()))
    resumed = rb.NoiseMeter(model, period=2)
    resumed.load_state_dict(saved)
    assert resumed.estimate() == meter.estimate()
    assert resumed.state_dict() == meter.state_dict()
    with resumed:
        loop(model, resumed, updates=2)
    assert resumed.samples[-1].examples_seen == 16 * 9
    assert len(resumed.samples) == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rb.NoiseMeter(Net(), period=0), "period=0"),
        (lambda: rb.NoiseMeter(Net(), period="often"), "period='often'"),  # pyright: ignore
        (lambda: rb.NoiseMeter(Net(), reduction="none"), "reduction='none'"),  # pyright: ignore
        (lambda: rb.NoiseMeter(Net().requires_grad_(False)), "0 trainable parameters"),
        (lambda: rb.NoiseMeter(Net()).update(), "a detached meter|detached"),
        (lambda: rb.NoiseMeter(Net()).__enter__().update(), "no gradient since"),
        (lambda: rb.NoiseMeter(Net()).__enter__().update(examples=0), "examples=0"),
        (lambda: rb.NoiseMeter(Net()).__enter__().__enter__(), "attached already|is attached"),
        (lambda: rb.NoiseMeter(Net()).load_state_dict({"samples": []}), "a state with samples"),
    ],
)
def test_bad_input_is_refused_in_words(call: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        call()


def test_examples_that_are_not_rows_are_refused() -> None:
    model = Net()
    with rb.NoiseMeter(model, period=1) as meter:
        F.cross_entropy(model(X[:16]), Y[:16]).backward()
        with pytest.raises(InvalidInputError, match="examples=4 where the layers saw 16"):
            meter.update(examples=4)


def test_too_few_measured_updates_are_refused_with_their_number() -> None:
    model = Net()
    with rb.NoiseMeter(model, period=10) as meter:
        loop(model, meter, updates=5)
    with pytest.raises(MeasurementError, match=r"1 measured update\(s\) out of 5"):
        meter.estimate()


def test_the_automatic_period_keeps_the_overhead() -> None:
    model, now = Net(), [0.0]
    meter = rb.NoiseMeter(model, clock=lambda: now[0])
    measured_updates = 0
    with meter:
        for _ in range(300):
            due = len(meter.samples)
            model.zero_grad()
            F.cross_entropy(model(X[:16]), Y[:16]).backward()
            now[0] += 0.120 if meter._update.armed else 0.100
            meter.update()
            measured_updates += len(meter.samples) - due
    assert meter.period == 20
    assert measured_updates == pytest.approx(300 / 20, abs=3)


def test_batches_drawn_without_putting_back_give_the_moments_of_the_whole_data() -> None:
    model = nn.Linear(8, 3).double()
    x, y = X[:24].double(), Y[:24]
    single = [
        torch.cat([
            g.flatten()
            for g in torch.autograd.grad(F.cross_entropy(model(x[i]), y[i]), list(model.parameters()))
        ])
        for i in range(24)
    ]
    each = torch.stack(single)
    true_trace, true_square = float(each.var(0, correction=0).sum()), float(each.mean(0).square().sum())
    meter = rb.NoiseMeter(model, period=1, population=24)
    with meter:
        for seed in range(60):
            rows = torch.randperm(24, generator=torch.Generator().manual_seed(seed))[:16]
            model.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            meter.update()
    found = meter.estimate()
    assert found.trace_covariance == pytest.approx(true_trace, rel=0.03)
    assert found.grad_sq_norm == pytest.approx(true_square, rel=0.1)


def test_an_update_of_more_examples_than_there_are_is_refused() -> None:
    model = Net()
    with (
        rb.NoiseMeter(model, period=1, population=8) as meter,
        pytest.raises(InvalidInputError, match=r"an update of 16.*population=8"),
    ):
        loop(model, meter, updates=1)


def test_a_population_of_one_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"population=1.*at least 2"):
        rb.NoiseMeter(nn.Linear(2, 2), population=1)
