"""A task of your own: breast-cancer table, logistic regression, 20 lines."""

import torch
from sklearn.datasets import load_breast_cancer
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import TensorDataset

import rightbatch as rb


def loss(model, batch):
    x, y = batch
    return rb.Loss(binary_cross_entropy_with_logits(model(x)[:, 0], y, reduction="sum"), len(y))


def evaluate(model, batches):
    hits = torch.cat([(model(x)[:, 0] > 0) == (y > 0.5) for x, y in batches])
    return {"accuracy": hits.float().mean().item()}


def make_task():
    x, y = (torch.tensor(a, dtype=torch.float32) for a in load_breast_cancer(return_X_y=True))
    x = (x - x.mean(0)) / x.std(0)
    return rb.Task(
        name="breast-cancer",
        model=lambda: torch.nn.Sequential(
            torch.nn.Linear(30, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)
        ),
        train_data=TensorDataset(x[:450], y[:450]),
        valid_data=TensorDataset(x[450:], y[450:]),
        loss=loss,
        evaluate=evaluate,
        recipe=rb.Recipe(optimizer="adam", lr=1e-3, batch_size=16, epochs=20),
        target=rb.Target("accuracy", 0.97),
    )
