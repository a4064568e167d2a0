"""Predicted peaks against the allocator's log of a real step that torch's own profiler records."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import pytest
import torch
from memory_zoo import ZOO
from torch.profiler import ProfilerActivity, profile

import rightbatch as rb
from rightbatch.fit.memory_model import fit_memory_model
from rightbatch.measure.memory import measure_memory
from rightbatch.tasks.build import build_optimizer, collate, compute_loss
from rightbatch.tasks.step import precision_context

SIZES = (1, 5, 32, 200)
# Rows move between experts as weights do, so streams differ from size to size.
DATA_DEPENDENT = {"experts"}
# oneDNN rounds the workspace of an LSTM up to whole pages.
TOLERANCE = {"lstm": 0.005}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def true_peak_bytes(task: rb.Task, size: int) -> int:
    """Two steps under the profiler, which starts before the model is built."""
    recipe, n = task.recipe, task.num_train_examples
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as session:
        torch.manual_seed(0)
        model = task.model().train()
        optimizer = build_optimizer(recipe, model, recipe.lr)
        average = [p.detach().clone() for p in model.parameters()] if recipe.ema_decay else []
        batch = collate(task, (i % n for i in range(size)))
        for _ in range(2):
            with precision_context(recipe.precision, "cpu"):
                loss = compute_loss(task.loss, model, batch, size)
            (loss.total / size).backward()
            del loss
            if recipe.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            with torch.no_grad():
                for mean, parameter in zip(average, model.parameters(), strict=False):
                    mean.lerp_(parameter, 0.01)
            optimizer.zero_grad()
    results = session.profiler
    assert results is not None
    assert results.kineto_results is not None
    events = [e for e in results.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_predicted_peak_is_the_profilers(name: str) -> None:
    task = ZOO[name]
    model = fit_memory_model(measure_memory(task))
    for size in SIZES:
        truth = true_peak_bytes(task, size)
        assert model.low_bytes(size) <= truth <= model.high_bytes(size)
        if name not in DATA_DEPENDENT:
            assert model.peak_bytes(size) == pytest.approx(truth, rel=TOLERANCE.get(name, 1e-4))


@pytest.mark.parametrize("name", ["mlp", "transformer", "autocast", "contrastive", "gather", "foreach"])
def test_fake_traces_alone_meet_steps_without_scratch(name: str) -> None:
    task = ZOO[name]
    model = fit_memory_model([t for t in measure_memory(task, memory_bytes=1) if t.source == "fake"])
    assert model.evidence == "derived"
    assert model.low_bytes(1) <= true_peak_bytes(task, 1) <= model.high_bytes(1)
    for size in SIZES[1:]:
        assert model.peak_bytes(size) == pytest.approx(true_peak_bytes(task, size), rel=1e-4)
