"""Built-in tasks with either optimizer, for sweeps: ``sweep_tasks.py:digits_sgd`` and the like.

Fashion-MNIST goes to 85 %, which half of its own recipe's run reaches, so that a sweep takes hours.
"""

from __future__ import annotations

from dataclasses import replace

import rightbatch as rb

ADAM = rb.Recipe(optimizer="adam", lr=1e-3, batch_size=32, epochs=3)
SGD = rb.Recipe(optimizer="sgd", lr=0.01, momentum=0.9, batch_size=32, epochs=3, weight_decay=5e-4)


def digits_sgd() -> rb.Task:
    recipe = rb.Recipe(optimizer="sgd", lr=0.05, momentum=0.9, batch_size=32, epochs=30)
    return replace(rb.load_task("digits"), name="digits-sgd", recipe=recipe)


def fashion_sgd() -> rb.Task:
    return _fashion("fashion-mnist-sgd", SGD)


def fashion_adam() -> rb.Task:
    return _fashion("fashion-mnist-adam", ADAM)


def _fashion(name: str, recipe: rb.Recipe) -> rb.Task:
    target = rb.Target("accuracy", 0.85)
    return replace(rb.load_task("fashion-mnist"), name=name, recipe=recipe, target=target)
