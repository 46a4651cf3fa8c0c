"""Networks for the tests of export: code, names and tensors of every kind."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TABLE = np.linspace(0, 1, 8, dtype=np.float32)  # what tracing has to keep as a constant


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Leaves(nn.Module):
    """Layers whose arguments are kept in different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, (3, 1), padding="same", dilation=2, padding_mode="reflect"),
            nn.GroupNorm(4, 8, affine=False),
            nn.PReLU(8),
            nn.ConvTranspose2d(8, 6, 3, 2, output_padding=1, groups=2, bias=False),
            nn.InstanceNorm2d(6, track_running_stats=True),
            nn.Upsample(scale_factor=0.5, mode="bilinear", align_corners=True),
            nn.BatchNorm2d(6, momentum=None, eps=1e-3),
            nn.LeakyReLU(0.3),
            nn.Hardtanh(-math.inf, 2.0),
            nn.AdaptiveAvgPool2d((None, 4)),
            nn.MaxPool2d(2),
            nn.Dropout2d(0.4),
        )
        self.rnn = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True, dropout=0.2)
        self.gru = nn.GRU(10, 4, bias=False)
        self.cell = nn.LSTMCell(4, 3)
        self.norm = nn.LayerNorm((3,), bias=False)
        self.table = nn.Embedding(7, 3, padding_idx=0)
        self.mix = nn.Bilinear(3, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, (_, _) = self.rnn(self.layers(x).flatten(2).transpose(1, 2))
        x = self.norm(self.cell(self.gru(x)[0].mean(1))[0])
        out: Tensor = self.mix(x, self.table(torch.arange(2)))
        return out


class Values(nn.Module):
    """Arguments, results and operators of every kind."""

    def forward(self, x: Tensor, scale: float = 2.0, *, unused: int = 0) -> Any:
        y = x[:, 1:, ::2, ..., -1] * scale
        y = y.masked_fill(y < 0, -math.inf).clamp(max=3) ** 2
        z = torch.zeros(x.shape[0], 3, dtype=torch.float64, device=x.device)
        z[:, :2] = 1.5
        z[(0,)] += 1
        kept = z
        z = z + 1
        kept += z
        w = -x.to(memory_format=torch.channels_last)
        w -= 1
        a, b = torch.chunk(x.permute(0, 2, 3, 1), 2, dim=-1)
        size = (x.shape[-1] + 1) // 2 * 3
        pad = F.pad(w, [0, max(0, size - x.shape[3])], value=float("nan")).nan_to_num(0.0)
        return {
            "a b": [a, (b,)],
            "pair": Pair(y, ~(x > 0)),
            "more": (kept, z, w, pad, x.flatten(-2)[:, None], None, 1, "text"),
        }


UNCALLED = ("self", "]); import os #", "\ufb01")  # Python reads the last one as "fi"


class Named(nn.Module):
    """Modules and tensors with names that no code has."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", nn.ReLU())
        self.add_module("a b-c", nn.Conv2d(3, 3, 1))
        self.add_module("__hidden", nn.Conv2d(3, 3, 1))
        self.add_module("class", nn.Conv2d(3, 3, 1))
        for name in UNCALLED:  # torch.fx cannot call these
            self.add_module(name, nn.Sequential(OrderedDict({"if": nn.Conv2d(3, 3, 1)})))
        self.register_parameter("a-b", nn.Parameter(torch.rand(1)))
        self.register_buffer("a+b", torch.rand(1))
        self.torch = nn.Identity()
        self.blocks = nn.ModuleDict({"x": nn.Conv2d(3, 3, 1), "y z": nn.Conv2d(3, 3, 1)})

    def forward(self, input: Tensor) -> Tensor:
        x = input
        for name, module in self._modules.items():
            if name not in ("blocks", *UNCALLED):
                x = module(x)  # type: ignore[misc]
        x = self.blocks["y z"](self.blocks["x"](x))
        out: Tensor = x * getattr(self, "a-b") + getattr(self, "a+b")
        return out


class Shared(nn.Module):
    """One block called twice, one tensor under two names, a frozen layer, tables."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.same = self.block
        act = nn.ReLU()
        self.acts = nn.Sequential(act, nn.Conv2d(3, 3, 1), act)
        self.other = nn.Conv2d(3, 3, 1)
        self.other.weight = self.acts[1].weight
        self.other.bias.requires_grad_(False)  # type: ignore[union-attr]
        self.unused = nn.Linear(2, 2)
        self.fixed = nn.Parameter(torch.rand(8), requires_grad=False)
        self.register_buffer("noise", torch.randn(3, 8, 8), persistent=False)
        self.register_buffer("ones", torch.ones(3, 8, 8), persistent=False)
        self.register_buffer("few", torch.tensor([1.0, math.inf, 3.0]), persistent=False)
        self.register_buffer("kept", torch.randn(3, 8, 8))
        self.plain = torch.arange(300).reshape(3, 100)[:, None, :8]

    def forward(self, x: Tensor) -> Tensor:
        x = self.acts(self.same(self.block(x))) + self.fixed
        x = self.other(x) * self.noise + self.ones * self.kept
        x = x + torch.from_numpy(TABLE) + torch.tensor([0.1, 0.2]).repeat(4)
        return x.clamp(max=self.few[:, None, None]) + self.plain


class Mixed(nn.Module):
    """Does something else in each mode; a region of mixed precision in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.aux = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
        self.inner = Inner()

    def forward(self, x: Tensor) -> Any:
        x = F.dropout(self.conv(x), 0.5 if self.training else 0.0, True)
        early = x.sigmoid()
        x = x - early
        aux = self.aux(early).mean() * 2 if self.training else None
        x = self.inner(x)
        return (x, aux) if self.training else x


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.conv(x)
            with torch.autocast("cpu", enabled=False):
                x = x.float() * 2
        return x + (3 if self.training else 4)


class Folded(nn.Module):
    """A number in ``forward`` that goes with a width, and one that goes its own way."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.width, self.scale = width, scale
        self.conv, self.back = nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).reshape(-1, self.width, 8, 8) ** 2
        out: Tensor = x + self.back(y) * self.scale
        return out


class Again(nn.Module):
    """A module called twice, with another one between."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.between = Folded(4, 0.5), Folded(4, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(self.between(self.block(x)).relu())
        return out


class Returns(nn.Module):
    """A module whose second result only one mode computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.aux = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.conv(x)
        return x, (self.aux(x).mean() if self.training else None)


class Auxiliary(nn.Module):
    """Hands on what :class:`Returns` returns in training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Returns()

    def forward(self, x: Tensor) -> Any:
        x, aux = self.inner(x)
        return (x.relu(), aux) if self.training else x.relu()


class Half(nn.Module):
    """A sequence of which one mode needs the first part alone."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Any:
        early = self.aux[0](x)
        return x, (self.aux[1](early) if self.aux.training else None)


class Measured(nn.Module):
    """Takes the size of what it then replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[2] // 2
        out: Tensor = self.conv(x)[:, :, :half]
        return out


REGION = torch.autocast("cpu", dtype=torch.bfloat16)


class Opens(nn.Module):
    """Begins a region of mixed precision, and does not end it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        REGION.__enter__()
        out: Tensor = self.conv(x)
        return out


class Closes(nn.Module):
    """Ends the region that :class:`Opens` began."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        REGION.__exit__(None, None, None)
        return x + 1


class Region(nn.Module):
    """A region of mixed precision that begins in one module and ends in another."""

    def __init__(self) -> None:
        super().__init__()
        self.opens, self.conv, self.closes = Opens(), nn.Conv2d(3, 3, 1), Closes()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.closes(self.conv(self.opens(x)))
        return out
