"""Your own training loop with an exact update: five lines beside plain PyTorch.

    python examples/own_loop.py

Sequences of different lengths, a masked loss, batches of 64 in micro-batches of 16. With plain
accumulation every micro-batch would weigh the same, however many of its targets count; the last
update of an epoch, here of 40 sequences, would be scaled as if it were whole.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import rightbatch as rb

PADDING = -100


def make_data(num: int = 1000, length: int = 12) -> TensorDataset:
    """Next-symbol sequences whose ends are padding: [N, L] and [N, L]."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 8, (num, length), generator=generator)
    y = (x + x.roll(1, dims=1)) % 8
    ends = torch.randint(2, length + 1, (num, 1), generator=generator)
    return TensorDataset(x, y.masked_fill(torch.arange(length) >= ends, PADDING))


class Model(nn.Module):
    """Two embeddings and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.before, self.out = nn.Embedding(8, 32), nn.Embedding(8, 32), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, L, 8] from symbols [B, L]."""
        return self.out(torch.relu(self.now(x) + self.before(x.roll(1, dims=1))))


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> rb.Loss:  # 1
    """Summed cross-entropy, and how many targets it sums."""
    x, y = batch
    total = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=PADDING, reduction="sum")
    return rb.Loss(total, count=(y != PADDING).sum())  # 2


def main() -> None:
    """Train for five epochs."""
    torch.manual_seed(0)
    recipe = rb.Recipe(optimizer="adamw", lr=5e-3, batch_size=64, epochs=5)
    plan = rb.Plan.from_recipe(recipe, micro_batch_size=16, accumulation_steps=4)  # 3
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate)
    loader = DataLoader(make_data(), batch_size=plan.micro_batch_size, shuffle=True)
    for epoch in range(5):
        for window in rb.windows(loader, plan):  # 4: was `for batch in loader:`
            gradient = window.accumulate(model, loss)  # 5: was zero_grad, forward and backward
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {gradient.mean:.3f}")


if __name__ == "__main__":
    main()
