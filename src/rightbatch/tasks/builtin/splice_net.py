"""A dilated residual net over a sequence of bases, after SpliceAI (Jaganathan et al. 2019)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_BASES, NUM_CLASSES = 4, 3


class DilatedBlock(nn.Module):
    """Two dilated convolutions beside a shortcut; it starts as the identity.

    Without normalisation every example has a gradient of its own; the last convolution starts at
    zero, so that depth does no harm at first (De and Smith 2020).
    """

    def __init__(self, channels: int, width: int, dilation: int) -> None:
        super().__init__()
        same = dilation * (width // 2)
        self.conv1 = nn.Conv1d(channels, channels, width, padding=same, dilation=dilation)
        self.conv2 = nn.Conv1d(channels, channels, width, padding=same, dilation=dilation)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, L] to the same shape."""
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class SpliceNet(nn.Module):
    """Logits of none, acceptor and donor for every position but the context at both ends."""

    def __init__(self, channels: int, width: int, dilations: tuple[int, ...]) -> None:
        """Stack one block for each dilation, with a skip to the head after every four."""
        super().__init__()
        self.context = sum((width - 1) * dilation for dilation in dilations) + width // 2
        self.stem = nn.Conv1d(NUM_BASES, channels, width, padding=width // 2)
        groups = [dilations[first : first + 4] for first in range(0, len(dilations), 4)]
        self.groups = nn.ModuleList(
            nn.Sequential(*(DilatedBlock(channels, width, d) for d in group)) for group in groups
        )
        self.skips = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in groups)
        self.head = nn.Conv1d(channels, NUM_CLASSES, 1)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits [B, 3, L - 2 context] from codes int64 [B, L]; a code of 4 is no known base."""
        bases = torch.arange(NUM_BASES, device=codes.device).unsqueeze(1)
        x = self.stem((codes.unsqueeze(1) == bases).to(self.stem.weight.dtype))
        summed = torch.zeros_like(x)
        for group, skip in zip(self.groups, self.skips, strict=True):
            x = group(x)
            summed = summed + skip(x)
        return cast(Tensor, self.head(summed[..., self.context : summed.shape[-1] - self.context]))


def build_small() -> SpliceNet:
    """Four blocks of 16 channels."""
    return SpliceNet(channels=16, width=13, dilations=(1, 1, 4, 4))


def build_large() -> SpliceNet:
    """Sixteen blocks of 32 channels: 367,235 parameters."""
    return SpliceNet(channels=32, width=11, dilations=(1, 2, 4, 8) * 4)
