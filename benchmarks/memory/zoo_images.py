"""Convolution nets and a vision transformer at the sizes of their papers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_text import Block

MOBILENET = (
    # expansion, channels, repeats, stride
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias and batch norm."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """A basic block (He et al. 2015), or a bottleneck with ``expansion`` 4."""

    def __init__(self, inputs: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        outputs, relu = width * expansion, nn.ReLU(inplace=True)
        if expansion == 1:
            parts = (conv(inputs, width, 3, stride), relu, conv(width, width, 3))
        else:
            inner = conv(width, width, 3, stride)
            parts = (conv(inputs, width, 1), relu, inner, relu, conv(width, outputs, 1))
        self.body, self.relu = nn.Sequential(*parts), relu
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y += self.shortcut(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self, repeats: tuple[int, ...], expansion: int, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)
        )
        blocks: list[nn.Module] = []
        channels = 64
        for stage, count in enumerate(repeats):
            for i in range(count):
                stride = 2 if stage and i == 0 else 1
                blocks.append(Residual(channels, 64 << stage, stride, expansion))
                channels = (64 << stage) * expansion
        self.body, self.head = nn.Sequential(*blocks), nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def resnet18(classes: int = 1000) -> nn.Module:
    return ResNet((2, 2, 2, 2), 1, classes)


def resnet50() -> nn.Module:
    return ResNet((3, 4, 6, 3), 4)


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [conv(inputs, hidden, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        depthwise = conv(hidden, hidden, 3, stride, groups=hidden)
        self.body = nn.Sequential(*widen, depthwise, nn.ReLU6(inplace=True), conv(hidden, outputs, 1))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def mobilenet() -> nn.Module:
    """MobileNetV2."""
    parts: list[nn.Module] = [conv(3, 32, 3, 2), nn.ReLU6(inplace=True)]
    channels = 32
    for expansion, width, repeats, stride in MOBILENET:
        for i in range(repeats):
            parts.append(InvertedResidual(channels, width, expansion, stride if i == 0 else 1))
            channels = width
    parts += [conv(channels, 1280, 1), nn.ReLU6(inplace=True), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*parts, nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, 1000))


class UNet(nn.Module):
    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        sizes = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(self._pair(i, o) for i, o in zip([3, *sizes], sizes, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * o, o, 2, 2) for o in sizes[-2::-1])
        self.merge = nn.ModuleList(self._pair(2 * o, o) for o in sizes[-2::-1])
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for up, merge, skipped in zip(self.up, self.merge, kept[-2::-1], strict=True):
            x = merge(torch.cat([up(x), skipped], 1))
        return self.head(x)

    @staticmethod
    def _pair(inputs: int, outputs: int) -> nn.Module:
        parts: list[nn.Module] = []
        for channels in (inputs, outputs):
            parts += [nn.Conv2d(channels, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.SiLU()]
        return nn.Sequential(*parts)


class ViT(nn.Module):
    """ViT-S/16."""

    def __init__(self, side: int = 224, patch: int = 16, width: int = 384, layers: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, 6, causal=False) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Dilated(nn.Module):
    """SpliceAI-2k-like: eight dilated residual blocks of width 32 over DNA."""

    def __init__(self, width: int = 32, dilations: tuple[int, ...] = (1,) * 4 + (4,) * 4) -> None:
        super().__init__()
        self.stem, self.skip = nn.Conv1d(4, width, 1), nn.Conv1d(width, width, 1)
        self.blocks = nn.ModuleList(self._block(width, d) for d in dilations)
        self.sums = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in dilations[::4])
        self.head = nn.Conv1d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        total = self.skip(x)
        for i, block in enumerate(self.blocks):
            x = x + block(x)
            if i % 4 == 3:
                total = total + self.sums[i // 4](x)
        return self.head(total)

    @staticmethod
    def _block(width: int, dilation: int) -> nn.Module:
        parts: list[nn.Module] = []
        for _ in range(2):
            layer = nn.Conv1d(width, width, 11, dilation=dilation, padding="same")
            parts += [nn.BatchNorm1d(width), nn.ReLU(), layer]
        return nn.Sequential(*parts)
