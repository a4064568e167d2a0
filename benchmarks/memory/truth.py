"""What torch's own profiler says that a task's steps hold, written apart from the package's tracer."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import rightbatch as rb
from rightbatch.tasks.build import build_optimizer, collate, compute_loss
from rightbatch.tasks.step import precision_context


def true_peak_bytes(task: rb.Task, size: int) -> int:
    """Highest sum of what the CPU allocator hands out over two steps of ``size`` examples.

    The profiler starts before the model is built, so that every block is seen, and each block that
    it reports counts: parameters, state, batch, activations, temporaries, scratch inside kernels.
    """
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
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
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
