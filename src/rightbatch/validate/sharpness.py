"""Curvature of the training loss at a solution: eigenvalues, trace and SAM sharpness.

Notation: H is the Hessian [D, D] of the mean loss over a fixed subset of the training examples, in
evaluation mode, so that BatchNorm and dropout make no noise. Only products H v are computed, by
differentiating the gradient (Pearlmutter 1994).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rightbatch.core.errors import InvalidTaskError
from rightbatch.tasks.build import build_model, collate, compute_loss, to_device
from rightbatch.tasks.order import fixed_sample
from rightbatch.tasks.task import Task

SUBSET = 512
"""Training examples that the loss is taken over; the same ones for every solution."""
SAMPLES = 100
"""Of a trace. With fewer, two standard errors hold too little where one eigenvalue leads."""
RHO = 0.05
"""Radius of SAM sharpness (Foret et al. 2021, arXiv:2010.01412, Sec. 3.1)."""

Product = Callable[[Tensor], Tensor]
Products = Callable[[Sequence[Tensor]], Sequence[Tensor]]
_AT_ONCE = 10
"""Vectors of a trace that share a graph: more save little and cost memory."""


class Eigenvalues(NamedTuple):
    """Largest eigenvalues, descending, and how well each is known."""

    values: tuple[float, ...]
    residuals: tuple[float, ...]
    """|H v - value v| for each: an eigenvalue lies within this distance."""


class Trace(NamedTuple):
    """Hutchinson's estimate of a trace and its standard error."""

    value: float
    standard_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curvature:
    """The mean loss over a subset as a function of all trainable weights, and its derivatives."""

    task: Task
    model: nn.Module
    batches: tuple[tuple[Any, int], ...]
    """Batches on the device with their numbers of examples."""

    @classmethod
    def at(
        cls,
        task: Task,
        model: nn.Module,
        *,
        device: str = "cpu",
        num_examples: int = SUBSET,
        micro_batch_size: int = 128,
        double: bool = False,
    ) -> Curvature:
        """The loss around a model's weights, which are copied and left as they are.

        Args:
            task: gives data and loss.
            model: whose weights are looked at.
            device: of the model.
            num_examples: of the training data, drawn once and for all.
            micro_batch_size: examples per pass.
            double: compute in float64.
        """
        model = copy.deepcopy(model).eval()
        if double:
            model = model.double()
        total = task.num_train_examples
        chosen = fixed_sample(total, num_examples)
        parts = [chosen[i : i + micro_batch_size] for i in range(0, len(chosen), micro_batch_size)]
        batches = [(to_device(collate(task, part), device), len(part)) for part in parts]
        if double:
            batches = [(_double(batch), size) for batch, size in batches]
        return cls(task=task, model=model, batches=tuple(batches))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Trainable weights, in the model's order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def loss(self) -> float:
        """Mean loss per target."""
        with torch.no_grad():
            terms = [self._term(batch, size) for batch, size in self.batches]
        return float(sum(total for total, _ in terms)) / sum(count for _, count in terms)

    def gradient(self) -> Tensor:
        """Of the mean loss, [D]."""

        def once(total: Tensor) -> list[Tensor]:
            return [_flat(torch.autograd.grad(total, self.parameters, materialize_grads=True))]

        return self._mean(once)[0]

    def product(self, vector: Tensor) -> Tensor:
        """H v for a vector [D].

        Raises:
            InvalidTaskError: the loss cannot be differentiated twice.
        """
        return self.products([vector])[0]

    def products(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """H v for each of some vectors [D], which share the gradient's graph of every batch.

        Raises:
            InvalidTaskError: the loss cannot be differentiated twice.
        """

        def twice(total: Tensor) -> list[Tensor]:
            gradient = torch.autograd.grad(
                total, self.parameters, create_graph=True, materialize_grads=True
            )
            return [self._image(gradient, vector) for vector in vectors]

        try:
            return self._mean(twice)
        except RuntimeError as error:
            found = (
                f"the Hessian of the loss raised {type(error).__name__}: {str(error).splitlines()[0]}"
            )
            hint = "leave out --sharpness"
            need = "a loss that can be differentiated twice"
            raise InvalidTaskError(found, need=need, hint=hint) from error

    def _image(self, gradient: Sequence[Tensor], vector: Tensor) -> Tensor:
        """The derivative of gradient times vector; where nothing depends on the weights, it is 0."""
        pieces = zip(gradient, _split(vector, self.parameters), strict=True)
        curved = [(slope, piece) for slope, piece in pieces if slope.requires_grad]
        if not curved:
            return torch.zeros_like(vector)
        slopes, along = zip(*curved, strict=True)
        return _flat(
            torch.autograd.grad(
                slopes, self.parameters, along, retain_graph=True, materialize_grads=True
            )
        )

    def _mean(self, derive: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
        """What is derived from each batch's total loss, summed over the batches, per target."""
        summed: list[Tensor] = []
        count = 0.0
        for batch, size in self.batches:
            total, targets = self._term(batch, size)
            derived = derive(total)
            summed = [a + b for a, b in zip(summed, derived, strict=True)] if summed else [*derived]
            count += targets
        return [one / count for one in summed]

    def _term(self, batch: Any, size: int) -> tuple[Tensor, float]:
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            loss = compute_loss(self.task.loss, self.model, batch, size)
        return loss.total, float(loss.count)


def top_eigenvalues(
    product: Product, like: Tensor, *, count: int = 1, iterations: int = 60, seed: int = 0
) -> Eigenvalues:
    """Largest eigenvalues of a symmetric matrix by Lanczos, orthogonalised anew at every step.

    Args:
        product: ``v -> H v``.
        like: a vector [D] that gives size, precision and device.
        count: how many eigenvalues.
        iterations: products at most; it stops early once the residuals are rounding errors.
        seed: of the first vector.
    """
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(like.numel(), generator=generator, dtype=torch.float64).to(like)
    basis = [vector / vector.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    values, residuals = np.zeros(0), np.zeros(0)
    for _ in range(min(iterations, like.numel())):
        image = product(basis[-1])
        diagonal.append(float(image @ basis[-1]))
        for _ in range(2):  # once leaves rounding errors that grow into ghost eigenvalues
            for other in basis:
                image = image - (image @ other) * other
        beside.append(float(image.norm()))
        values, vectors = np.linalg.eigh(_tridiagonal(diagonal, beside[:-1]))
        residuals = np.abs(beside[-1] * vectors[-1])  # Parlett 1980, Theorem 4.5.1
        tiny = 8 * torch.finfo(like.dtype).eps * float(np.abs(values).max())
        if beside[-1] <= tiny or (len(values) >= count and residuals[-count:].max() <= tiny):
            break
        basis.append(image / beside[-1])
    top = slice(None, -count - 1, -1)
    return Eigenvalues(tuple(values[top].tolist()), tuple(residuals[top].tolist()))


def estimate_trace(products: Products, like: Tensor, *, samples: int = SAMPLES, seed: int = 0) -> Trace:
    """Trace by Hutchinson's estimator: the mean of z'Hz over random signs z.

    Unbiased; the variance of a sample is 2 (|H|_F^2 - sum of H_ii^2) (Hutchinson 1990).

    Args:
        products: ``[v, ...] -> [H v, ...]``.
        like: a vector [D] that gives size, precision and device.
        samples: at least 2.
        seed: of the signs.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[float] = []
    for start in range(0, samples, _AT_ONCE):
        drawn = [
            (2 * torch.randint(2, (like.numel(),), generator=generator) - 1).to(like)
            for _ in range(min(_AT_ONCE, samples - start))
        ]
        found += [float(z @ image) for z, image in zip(drawn, products(drawn), strict=True)]
    return Trace(float(np.mean(found)), float(np.std(found, ddof=1)) / math.sqrt(samples))


def sam_sharpness(curvature: Curvature, rho: float = RHO, *, adaptive: bool = False) -> float:
    """Rise of the loss after a step of length ``rho`` up the gradient.

    Args:
        curvature: the loss around the weights, which are put back.
        rho: length of the step.
        adaptive: measure length in units of each weight: T = |w| and the step rho T^2 g / |T g|, which
            a rescaling of weights leaves as it is (Kwon et al. 2021, arXiv:2102.11600, Eq. 6).
    """
    before, gradient = curvature.loss(), curvature.gradient()
    weights = _flat([p.detach() for p in curvature.parameters])
    scale = weights.abs() if adaptive else torch.ones_like(weights)
    norm = (scale * gradient).norm()
    if float(norm) == 0:
        return 0.0
    step = rho * scale**2 * gradient / norm
    _set(curvature.parameters, weights + step)
    after = curvature.loss()
    _set(curvature.parameters, weights)
    return after - before


def check_sharpness(task: Task, *, device: str = "cpu") -> None:
    """Refuse a task whose Hessian cannot be had, at fresh weights and before anything is trained.

    Raises:
        InvalidTaskError: the loss cannot be differentiated twice.
    """
    curvature = Curvature.at(task, build_model(task, device), device=device)
    curvature.product(_flat([p.detach() for p in curvature.parameters]))


def inspect_sharpness(task: Task, model: nn.Module, *, device: str = "cpu") -> dict[str, float]:
    """Largest eigenvalue, trace and SAM sharpness at a solution, each beside what it depends on."""
    curvature = Curvature.at(task, model, device=device)
    like = _flat([p.detach() for p in curvature.parameters])
    top = top_eigenvalues(curvature.product, like, iterations=40)
    trace = estimate_trace(curvature.products, like)
    return {
        "largest_eigenvalue": top.values[0],
        "largest_eigenvalue_residual": top.residuals[0],
        "trace": trace.value,
        "trace_standard_error": trace.standard_error,
        "sam": sam_sharpness(curvature),
        "adaptive_sam": sam_sharpness(curvature, adaptive=True),
        "rho": RHO,
        "examples": float(sum(size for _, size in curvature.batches)),
    }


def _tridiagonal(diagonal: Sequence[float], beside: Sequence[float]) -> np.ndarray:
    return np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)


def _flat(pieces: Sequence[Tensor]) -> Tensor:
    return torch.cat([piece.reshape(-1) for piece in pieces])


def _split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Cut a flat vector into tensors shaped like others."""
    pieces = torch.split(vector, [p.numel() for p in like])
    return [piece.view_as(p) for piece, p in zip(pieces, like, strict=True)]


def _set(parameters: Sequence[nn.Parameter], values: Tensor) -> None:
    with torch.no_grad():
        for parameter, piece in zip(parameters, _split(values, parameters), strict=True):
            parameter.copy_(piece)


def _double(batch: Any) -> Any:
    """Floating-point tensors of a batch in float64, wherever they stand in it."""
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, dict):
        return {key: _double(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_double(value) for value in batch)
    return batch
