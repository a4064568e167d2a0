"""Largest Hessian eigenvalue and trace: against the whole Hessian in float64, and against curvlinops.

Four small nets on 256 digits, at their initial weights and after 50 updates of Adam. The whole Hessian
is ``torch.func.hessian`` of the same mean loss, which shares no code with ours. With ``--peers`` the
same eigenvalue (scipy's Lanczos) and the same number of Hutchinson samples are asked of curvlinops; CPU
seconds of one thread, in turn. Its trace takes all samples in one product, ours ten from one graph.

    python benchmarks/validate/curvature.py [--peers SITE_PACKAGES] [--repeats 200] [--rounds 5]
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import ratio_interval, save
from rightbatch.tasks.build import build_model
from rightbatch.tasks.load import load_task
from rightbatch.tasks.task import Task
from rightbatch.validate.sharpness import SAMPLES, Curvature, estimate_trace, top_eigenvalues

EXAMPLES = 256


class Attention(nn.Module):
    """One layer of attention over the eight rows of a digit."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, 8, 8)
        return self.head((rows + self.mix(rows, rows, rows, need_weights=False)[0]).mean(1))


def convolution() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(-1, (1, 8, 8)),
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.GELU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


NETS: dict[str, Callable[[], nn.Module]] = {
    "logistic": lambda: nn.Linear(64, 10),
    "mlp": lambda: nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10)),
    "convolution": convolution,
    "attention": Attention,
}


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x.reshape(len(x), 64)), y)


def tasks() -> dict[str, Task]:
    digits = load_task("digits")
    return {n: replace(digits, name=n, model=m, loss=loss, evaluate=None) for n, m in NETS.items()}


def trained(task: Task, updates: int) -> nn.Module:
    model = build_model(task)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    examples = [task.train_data[i] for i in range(512)]
    x = torch.stack([torch.as_tensor(example[0]) for example in examples])
    y = torch.tensor([int(example[1]) for example in examples])
    for _ in range(updates):
        optimizer.zero_grad()
        loss(model, (x, y)).backward()
        optimizer.step()
    return model.eval()


def dense(at: Curvature) -> np.ndarray:
    """The whole Hessian of the mean loss, [D, D] in float64."""
    names, values = zip(*at.model.named_parameters(), strict=True)
    sizes = [value.numel() for value in values]

    x = torch.cat([batch[0].reshape(-1, 64) for batch, _ in at.batches])
    y = torch.cat([batch[1] for batch, _ in at.batches])

    def mean_loss(flat: Tensor) -> Tensor:
        parts = [p.view_as(v) for p, v in zip(flat.split(sizes), values, strict=True)]
        return F.cross_entropy(functional_call(at.model, dict(zip(names, parts, strict=True)), (x,)), y)

    with sdpa_kernel(SDPBackend.MATH):
        return hessian(mean_loss)(torch.cat([v.detach().reshape(-1) for v in values])).numpy()


def against_dense(at: Curvature, like: Tensor, repeats: int) -> dict[str, Any]:
    whole = dense(at)
    largest, trace = float(np.linalg.eigvalsh(whole)[-1]), float(np.trace(whole))
    found = top_eigenvalues(at.product, like)
    table = torch.as_tensor(whole)
    inside = 0
    for seed in range(repeats):
        one = estimate_trace(lambda vs: [table @ v for v in vs], like, seed=seed)
        inside += abs(one.value - trace) <= 2 * one.standard_error
    ours = estimate_trace(at.products, like)
    same = estimate_trace(lambda vs: [table @ v for v in vs], like)
    return {
        "parameters": len(like),
        "largest_eigenvalue": largest,
        "relative_error": abs(found.values[0] - largest) / abs(largest),
        "trace": trace,
        "trace_from_our_products_and_from_the_matrix": abs(ours.value - same.value) / abs(trace),
        "traces_within_two_standard_errors": inside / repeats,
    }


def against_peer(at: Curvature, like: Tensor, rounds: int) -> dict[str, Any]:
    """Values of curvlinops, and its CPU seconds over ours."""
    from curvlinops import HessianLinearOperator, hutchinson_trace
    from scipy.sparse.linalg import eigsh

    data = [(x.reshape(len(x), 64), y) for (x, y), _ in at.batches]
    count = 0

    def operator() -> Any:
        parameters = [p for p in at.model.parameters() if p.requires_grad]
        return HessianLinearOperator(
            at.model, nn.CrossEntropyLoss(), parameters, data, check_deterministic=False
        )

    def their_eigenvalue() -> float:
        start = np.random.default_rng(0).standard_normal(len(like))
        matrix = operator().to_scipy()
        return float(eigsh(matrix, k=1, which="LA", v0=start, tol=1e-6, return_eigenvectors=False)[0])

    def our_eigenvalue() -> float:
        return top_eigenvalues(at.product, like).values[0]

    def their_trace() -> float:
        torch.manual_seed(count)
        return float(hutchinson_trace(operator(), num_matvecs=SAMPLES, distribution="rademacher"))

    def our_trace() -> float:
        return estimate_trace(at.products, like).value

    rows: dict[str, Any] = {}
    one = operator()
    for name, ours, theirs in (
        ("eigenvalue", our_eigenvalue, their_eigenvalue),
        ("trace", our_trace, their_trace),
        ("product", lambda: at.product(like), lambda: one @ like),
    ):
        ratios: list[float] = []
        a = b = None
        for turn in range(rounds + 1):
            count = turn
            if turn % 2:
                before, a = timed(ours)
                after, b = timed(theirs)
            else:
                after, b = timed(theirs)
                before, a = timed(ours)
            if turn:  # the first warms up
                ratios.append(after / before)
        rows[name] = {"seconds_over_ours": ratio_interval(ratios)}
        if isinstance(a, Tensor):
            rows[name]["relative_difference"] = float((a - b).norm() / a.norm())
        else:
            rows[name] |= {"ours": a, "theirs": b, "relative_difference": abs(a - b) / abs(a)}
    return rows


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    found = run()
    return time.process_time() - began, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="a folder to import curvlinops from")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.peers:
        sys.path.append(options.peers)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for name, task in tasks().items():
        for updates in (0, 50):
            at = Curvature.at(task, trained(task, updates), num_examples=EXAMPLES, double=True)
            like = torch.cat([p.detach().reshape(-1) for p in at.parameters])
            row = against_dense(at, like, options.repeats)
            if options.peers:
                with sdpa_kernel(SDPBackend.MATH):  # ours asks for it by itself
                    row["curvlinops"] = against_peer(at, like, options.rounds)
            rows[f"{name}, {updates} updates"] = row
            print(name, updates, row, file=sys.stderr, flush=True)
    save("validate_curvature", {"examples": EXAMPLES, "samples": SAMPLES, "rows": rows})


if __name__ == "__main__":
    main()
