"""A small pre-norm transformer encoder, shared by the tasks that attend."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Transformer(nn.Module):
    """Learned positions, ``depth`` pre-norm layers and a last LayerNorm: [B, T, D] to [B, T, D]."""

    mask: Tensor | None

    def __init__(self, width: int, depth: int, heads: int, length: int, *, causal: bool) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(length, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, depth, norm=nn.LayerNorm(width), enable_nested_tensor=False
        )
        # Layers are copies of one another until their weights are drawn again.
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        mask = nn.Transformer.generate_square_subsequent_mask(length) if causal else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Encode tokens [B, T, D]; where the mask is causal, each sees itself and those before it."""
        return self.layers(x + self.positions, mask=self.mask, is_causal=self.mask is not None)
