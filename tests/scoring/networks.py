"""Small networks, one per way of sharing a latent vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.graph import ChannelGraph


def conv(c_in: int, c_out: int, k: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, k, padding=k // 2, groups=groups, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(),
    )


class Net(nn.Module):
    """Three convolutions and a classifier; subclasses join them in their own way."""

    def __init__(self, widths: tuple[int, int, int] = (8, 8, 8), join: int | None = None) -> None:
        super().__init__()
        a, b, c = widths
        self.one, self.two, self.three = conv(3, a), self.middle(a, b), conv(join or b, c)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(c, 5)

    def middle(self, a: int, b: int) -> nn.Module:
        return conv(a, b)

    def mix(self, x: Tensor, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = self.three(self.mix(x, self.two(x)))
        return self.fc(self.drop(x.mean((2, 3))))


class Residual(Net):
    def mix(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Concatenated(Net):
    def __init__(self) -> None:
        super().__init__((6, 8, 8), join=14)

    def mix(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y], 1)


class Depthwise(Net):
    def middle(self, a: int, b: int) -> nn.Module:
        return conv(a, b, groups=a)


class Grouped(Net):
    def middle(self, a: int, b: int) -> nn.Module:
        return conv(a, b, groups=4)


NETWORKS = [Net, Residual, Concatenated, Depthwise, Grouped]


def analysed(
    model: nn.Module, size: int = 8, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, ChannelGraph]:
    """The captured network and its channel graph."""
    example = torch.zeros(2, 3, size, size, dtype=dtype)
    gm = capture(model.to(dtype), example)
    return gm, analyse(gm, example)
