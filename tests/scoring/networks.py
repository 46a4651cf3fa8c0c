"""Small networks, one per way of sharing a latent vector, and contexts to score them in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.graph import ChannelGraph
from lwdna.scoring import Scoring, ScoringContext, as_batches


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


class Shuffled(Net):
    def middle(self, a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(a, 4 * b, 1), nn.PixelShuffle(2))


class Transposed(Net):
    def middle(self, a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.ConvTranspose2d(a, b, 2, stride=2), nn.BatchNorm2d(b), nn.ReLU())

    def __init__(self) -> None:
        super().__init__((8, 6, 8))  # not square: the dimensions cannot be mistaken


class GroupedTransposed(Transposed):
    def middle(self, a: int, b: int) -> nn.Module:
        deconvolution = nn.ConvTranspose2d(a, b, 2, stride=2, groups=2)
        return nn.Sequential(deconvolution, nn.BatchNorm2d(b), nn.ReLU())


class Tokens(nn.Module):
    """Linear layers on tokens, with layer norms: it treats samples one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(3, 8, 4, stride=4), nn.LayerNorm(8)
        self.two, self.three = nn.Linear(8, 12), nn.Linear(12, 8)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).flatten(2).transpose(1, 2)
        x = x + self.three(nn.functional.gelu(self.two(self.norm(x))))
        return self.fc(self.drop(x.mean(1)))


NETWORKS = [
    Net,
    Residual,
    Concatenated,
    Depthwise,
    Grouped,
    Shuffled,
    Transposed,
    Tokens,
    GroupedTransposed,
]


class Overflow(torch.autograd.Function):
    """A loss whose gradient is infinite, for outputs of four samples and five classes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.full((4, 5), float("inf"), dtype=torch.float64) * grad


def analysed(
    model: nn.Module, dtype: torch.dtype = torch.float32, example: Any = None
) -> tuple[nn.Module, ChannelGraph]:
    """The captured network and its channel graph."""
    example = torch.zeros(2, 3, 8, 8, dtype=dtype) if example is None else example
    gm = capture(model.to(dtype), example)
    return gm, analyse(gm, example)


def made(build: type[nn.Module], *, dropout: float = 0.2, seed: int = 0) -> nn.Module:
    """A network whose values follow from ``seed``, and whose biases and gains are all different."""
    torch.manual_seed(seed)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p), alpha=0.3)
    return model


def context_of(
    model: nn.Module,
    batches: int | Sequence[Any] = 2,
    *,
    samples: int = 4,
    dtype: torch.dtype = torch.float64,
    options: Scoring | None = None,
    example: Any = None,
    **more: Any,
) -> ScoringContext:
    """A context of the captured model, with classified images where no batches are given."""
    gm, graph = analysed(model, dtype, example)
    if isinstance(batches, int):
        g = torch.Generator().manual_seed(7)
        batches = [
            (torch.randn(samples, 3, 8, 8, generator=g), torch.randint(5, (samples,), generator=g))
            for _ in range(batches)
        ]
    taken = (
        as_batches(iter(batches), len(batches), network=gm, step_fn=more.get("step_fn"))
        if batches
        else []
    )
    return ScoringContext(gm, graph, taken, options=options or Scoring(), **more)
