"""Constructors for the tests of files: small networks with what makes saving hard."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.toy_detector import Detector


class Hard(nn.Module):
    """Tied weights, buffers of all kinds, a constant of forward, an LSTM, dropout, attention."""

    def __init__(self, width: int = 16, drop: float = 0.1, act: str = "relu") -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, 24, 3, padding=1)
        self.again = nn.Conv2d(width, 24, 3, padding=1)
        self.again.weight = self.body.weight
        self.act = {"relu": nn.ReLU(), "silu": nn.SiLU()}[act]
        self.drop = nn.Dropout(drop)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 24), persistent=False)
        self.register_buffer("steps", torch.arange(3))
        self.fixed = torch.rand(()) + 0.5  # an attribute that is no buffer
        self.rows = nn.LSTM(24, 10, batch_first=True)
        self.fc = nn.Linear(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.stem(x)))
        x = self.body(x) + self.again(F.avg_pool2d(x, 3, 1, 1))
        x = x * self.scale[:, None, None] * self.fixed + torch.tensor([[[0.25]]])
        out, _ = self.rows(self.drop(x).mean(3).transpose(1, 2))
        return self.fc(out[:, -1]) * self.steps[-1]


class Plain(nn.Module):
    """A residual network: milliseconds to capture."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, 16, 1)
        self.outer = nn.Conv2d(16, width, 1)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = x + self.outer(F.relu(self.inner(x)))
        return self.fc(x.mean((2, 3)))


def hard(**arguments: float | str) -> nn.Module:
    return Hard(**arguments)


def plain(width: int = 12) -> nn.Module:
    return Plain(width)


def detector() -> nn.Module:
    return Detector()


def number() -> int:
    return 3
