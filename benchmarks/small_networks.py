"""Small networks of the image-restoration kinds: residual super-resolution, DnCNN, U-Net.

Source: the structures of SRResNet (Ledig et al., CVPR 2017), EDSR (Lim et al., CVPRW 2017), DnCNN
(Zhang et al., TIP 2017) and U-Net (Ronneberger et al., MICCAI 2015), at fewer blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class Residual(nn.Module):
    """x + conv(act(conv(x))), with batch norms or without."""

    def __init__(self, n: int, *, norm: bool) -> None:
        super().__init__()
        parts: list[nn.Module] = [conv(n, n), nn.PReLU() if norm else nn.ReLU(), conv(n, n)]
        if norm:
            parts = [parts[0], nn.BatchNorm2d(n), parts[1], parts[2], nn.BatchNorm2d(n)]
        self.body = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


class SuperResolution(nn.Module):
    """Residual blocks between a head and two pixel shuffles (×4)."""

    def __init__(self, n: int, blocks: int, *, norm: bool) -> None:
        super().__init__()
        self.head = conv(3, n)
        self.body = nn.Sequential(*(Residual(n, norm=norm) for _ in range(blocks)), conv(n, n))
        steps = (conv(n, 4 * n), nn.PixelShuffle(2), conv(n, 4 * n), nn.PixelShuffle(2))
        self.tail = nn.Sequential(*steps, conv(n, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        out: Tensor = self.tail(x + self.body(x))
        return out


def srresnet() -> nn.Module:
    return SuperResolution(64, 4, norm=True)


def edsr() -> nn.Module:
    return SuperResolution(128, 4, norm=False)


def dncnn() -> nn.Module:
    inner = [(conv(64, 64, bias=False), nn.BatchNorm2d(64), nn.ReLU()) for _ in range(6)]
    return nn.Sequential(
        conv(1, 64), nn.ReLU(), *(part for block in inner for part in block), conv(64, 1)
    )


class UNet(nn.Module):
    """Two resolutions down, two up by transposed convolutions, skips by concatenation."""

    def __init__(self, n: int = 32) -> None:
        super().__init__()
        self.down = nn.ModuleList(self._pair(i, o) for i, o in ((1, n), (n, 2 * n), (2 * n, 4 * n)))
        self.lift = nn.ModuleList(nn.ConvTranspose2d(2 * o, o, 2, 2) for o in (2 * n, n))
        self.up = nn.ModuleList(self._pair(2 * o, o) for o in (2 * n, n))
        self.pool, self.out = nn.MaxPool2d(2), nn.Conv2d(n, 1, 1)

    @staticmethod
    def _pair(i: int, o: int) -> nn.Sequential:
        return nn.Sequential(conv(i, o), nn.ReLU(), conv(o, o), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down[0](x)
        middle = self.down[1](self.pool(fine))
        x = self.down[2](self.pool(middle))
        for skip, lift, up in zip((middle, fine), self.lift, self.up, strict=True):
            x = up(torch.cat([skip, lift(x)], 1))
        out: Tensor = self.out(x)
        return out
