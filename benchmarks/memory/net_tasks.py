"""The nets as tasks: ``net_tasks.py:mlp``, ``:residual``, ``:transformer``."""

from __future__ import annotations

from typing import Any

import nets

import rightbatch as rb


def _task(name: str, **recipe: Any) -> rb.Task:
    net = nets.NETS[name]
    return rb.Task(
        name=name,
        model=net.build,
        train_data=net.data(),
        valid_data=None,
        loss=nets.loss,
        recipe=rb.Recipe(batch_size=8, epochs=1, **recipe),
    )


def mlp() -> rb.Task:
    return _task("mlp", optimizer="adamw", lr=1e-3)


def residual() -> rb.Task:
    return _task("residual", optimizer="sgd", lr=0.01, momentum=0.9)


def transformer() -> rb.Task:
    return _task("transformer", optimizer="adamw", lr=1e-3)
