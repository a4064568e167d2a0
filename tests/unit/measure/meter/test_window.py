import pytest
import torch
from torch import Tensor

from rightbatch.core.errors import InvalidInputError
from rightbatch.measure.meter.window import (
    Pair,
    Reduction,
    examples_of_micro_batches,
    pair_of_micro_batches,
)


def moments(pair: Pair) -> tuple[float, float]:
    trace = (pair.small_sq_norm - pair.big_sq_norm) / (
        1 / pair.small_batch_size - 1 / pair.big_batch_size
    )
    return pair.big_sq_norm - trace / pair.big_batch_size, trace


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sizes", [[4, 4, 4], [2, 5, 9], [1, 16]])
def test_unequal_micro_batches_are_unbiased(reduction: Reduction, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    mean, repeats = torch.tensor([1.0, -0.5, 0.2]), 1500
    found: list[tuple[float, float]] = []
    for _ in range(repeats):
        parts: list[Tensor] = [
            (mean + torch.randn(size, 3, generator=generator, dtype=torch.float64)).sum(0)
            for size in sizes
        ]
        if reduction == "mean":
            parts = [p / size / len(sizes) for p, size in zip(parts, sizes, strict=True)]
        whole = torch.stack(parts).sum(0)
        squares = [float(p.square().sum()) for p in parts]
        found.append(
            moments(pair_of_micro_batches(sizes, squares, float(whole.square().sum()), reduction))
        )
    values = torch.tensor(found)
    error = values.std(0) / repeats**0.5
    truth = torch.tensor([float(mean.square().sum()), 3.0])
    assert bool(((values.mean(0) - truth).abs() <= 4 * error).all())


def test_weighing_by_examples_is_at_least_as_sharp() -> None:
    """Weights by examples are those of least squares."""
    generator = torch.Generator().manual_seed(0)
    sizes, found = [1, 16, 16, 16], {"mean": [], "sum": []}
    for _ in range(600):
        means = [torch.randn(size, 3, generator=generator).mean(0) for size in sizes]
        by_examples = [m * size for m, size in zip(means, sizes, strict=True)]
        alike = [m / len(sizes) for m in means]
        for reduction, parts in (("sum", by_examples), ("mean", alike)):
            squares = [float(p.square().sum()) for p in parts]
            whole = float(torch.stack(parts).sum(0).square().sum())
            found[reduction].append(moments(pair_of_micro_batches(sizes, squares, whole, reduction))[1])  # type: ignore[arg-type]
    spread = {name: torch.tensor(values).std() for name, values in found.items()}
    assert spread["sum"] < spread["mean"]


def test_a_number_of_examples_that_nobody_tells_is_asked_for() -> None:
    with pytest.raises(InvalidInputError, match="does not show how many examples"):
        examples_of_micro_batches([0, 8], 2, None)
