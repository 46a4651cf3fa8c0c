"""Networks for super-resolution and denoising: SRResNet, EDSR, DnCNN, U-Net.

Written for the rows of ``lwdna.recipes``; ``docs/recipes.md`` says which details the published
costs settle. Images are (N, C, H, W), float.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, for channels in [0, 1]
_RGB_RANGE = 255.0


def srresnet(blocks: int = 16, width: int = 64) -> SRResNet:
    """SRResNet for x4: 16 blocks of 64 channels."""
    return SRResNet(blocks, width)


def edsr(blocks: int = 8, width: int = 128, scale: int = 4) -> EDSR:
    """EDSR, x4 or x2; by default in the size the paper trains: 8 blocks of 128 channels."""
    return EDSR(blocks, width, scale)


def dncnn(blocks: int = 15, width: int = 64) -> DnCNN:
    """DnCNN for grey images: 17 convolutions of 64 channels."""
    return DnCNN(blocks, width)


def unet(width: int = 32, levels: int = 5) -> UNet:
    """U-Net for grey images: 32 channels at full size, doubled at each of the 4 halvings."""
    return UNet(width, levels)


class ResidualBlock(nn.Module):
    """``x + conv(activation(conv(x)))`` at constant width, with or without batch norm."""

    def __init__(self, width: int, activation: nn.Module, *, norm: bool) -> None:
        super().__init__()
        self.conv1 = _conv(width, width, bias=not norm)
        self.norm1 = nn.BatchNorm2d(width) if norm else nn.Identity()
        self.activation = activation
        self.conv2 = _conv(width, width, bias=not norm)
        self.norm2 = nn.BatchNorm2d(width) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.norm1(self.conv1(x)))
        return x + self.norm2(self.conv2(y))


class SRResNet(nn.Module):
    """Source: Ledig et al., CVPR 2017, with DHP's 3x3 tail (Li et al., ECCV 2020)."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(3, width, 9, padding=4), nn.PReLU())
        self.body = nn.Sequential(
            *(ResidualBlock(width, nn.PReLU(), norm=True) for _ in range(blocks)),
            _conv(width, width, bias=False),
            nn.BatchNorm2d(width),
        )
        self.upsample = _upsample(width, 4)
        self.tail = _conv(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        out: Tensor = self.tail(self.upsample(x + self.body(x)))
        return out


class EDSR(nn.Module):
    """Images in [0, 255]; the data set's mean colour is taken off and put back.

    Source: Lim et al., CVPR Workshops 2017.
    """

    mean: Tensor

    def __init__(self, blocks: int, width: int, scale: int) -> None:
        super().__init__()
        self.register_buffer("mean", _RGB_RANGE * torch.tensor(_RGB_MEAN).view(1, 3, 1, 1))
        self.head = _conv(3, width)
        self.body = nn.Sequential(
            *(ResidualBlock(width, nn.ReLU(), norm=False) for _ in range(blocks)),
            _conv(width, width),
        )
        self.upsample = _upsample(width, scale)
        self.tail = _conv(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x - self.mean)
        return self.tail(self.upsample(x + self.body(x))) + self.mean


class DnCNN(nn.Module):
    """Source: Zhang et al., TIP 2017: the network gives the noise's negative."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(1, width), nn.ReLU()]
        for _ in range(blocks):
            layers += [_conv(width, width, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, _conv(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class UNet(nn.Module):
    """Height and width must be divisible by ``2 ** (levels - 1)``.

    Source: Ronneberger et al., MICCAI 2015, with padding, transposed convolutions and functional
    ReLUs, as in DHP (Li et al., ECCV 2020).
    """

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.down = nn.ModuleList(_Pair(a, b) for a, b in pairwise([1, *widths]))
        upwards = list(pairwise(reversed(widths)))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in upwards)
        self.up = nn.ModuleList(_Pair(2 * b, b) for _, b in upwards)
        self.tail = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, pair in enumerate(self.down):
            x = pair(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for grow, pair in zip(self.grow, self.up, strict=True):
            x = pair(torch.cat([grow(x), skips.pop()], dim=1))
        out: Tensor = self.tail(x)
        return out


class _Pair(nn.Module):
    """Two 3x3 convolutions, each with a ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs)
        self.conv2 = _conv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))))


def _conv(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


def _upsample(width: int, scale: int) -> nn.Sequential:
    if scale not in (2, 4):
        raise ValueError(f"scale={scale}: 2 or 4")
    layers = [m for _ in range(scale // 2) for m in (_conv(width, 4 * width), nn.PixelShuffle(2))]
    return nn.Sequential(*layers)
