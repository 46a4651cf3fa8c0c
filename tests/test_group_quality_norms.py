"""The groups of norms, slopes and standardised or normalised weights, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.quality import check, image, param
from tests.rules.samples import Net


class Standardised(nn.Conv2d):
    """timm's way: batch_norm over the weight, with a gain per output."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__(i, o, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(o, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1),
            None,
            None,
            weight=(self.gain * 0.5).view(-1),
            training=True,
            momentum=0.0,
        ).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class StandardisedByHand(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (var + 1e-5).sqrt(), self.bias, 1, self.padding)


class GlobalResponse(nn.Module):
    """GRN (ConvNeXt V2)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.g, self.o = param(1, n, 1, 1), param(1, n, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        norm = x.norm(2, (2, 3), keepdim=True)
        return x * (norm / (norm.mean(1, keepdim=True) + 1e-6)) * self.g + self.o + x


class Evo(nn.Module):
    """EvoNorm S0: a variance per group, a sigmoid per channel."""

    def __init__(self, n: int, groups: int) -> None:
        super().__init__()
        self.v, self.w, self.o, self.groups = param(n), param(n), param(n), groups

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        var = x.reshape(batch, self.groups, -1).var(-1, keepdim=True)
        size = channels // self.groups * height * width
        var = var.expand(batch, self.groups, size).reshape(batch, channels, height, width)
        v, w, o = (p.view(1, -1, 1, 1) for p in (self.v, self.w, self.o))
        return x * (x * v).sigmoid() / (var + 1e-5).sqrt() * w + o


class FilterResponse(nn.Module):
    """FRN with its thresholded unit."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.w, self.o, self.tau = param(n), param(n), param(n)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.square().mean((2, 3), keepdim=True) + 1e-6)
        w, o, tau = (p.view(1, -1, 1, 1) for p in (self.w, self.o, self.tau))
        return torch.maximum(x * w + o, tau)


class ChannelsLastNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


#: Between conv a (16 channels) and conv b: the layer, the slots of its own, units and policy.
#: A unit of several channels has as many slots in each.
NORMS: dict[str, tuple[Any, str, int, str]] = {
    "batch": (lambda: nn.BatchNorm2d(16), "m[0]", 16, "auto"),
    "instance": (lambda: nn.InstanceNorm2d(16, affine=True), "m[0]", 16, "auto"),
    "prelu": (lambda: nn.PReLU(16), "m[0]", 16, "auto"),
    "prelu-shared": (nn.PReLU, "", 16, "auto"),
    "layer": (lambda: ChannelsLastNorm(16), "m[0]", 16, "auto"),
    "layer-over-all-dimensions": (lambda: nn.LayerNorm((16, 8, 8)), "m[0]", 16, "auto"),
    "one-group": (lambda: nn.GroupNorm(1, 16), "m[0]", 16, "auto"),
    "whole-groups": (lambda: nn.GroupNorm(8, 16), "m[0]", 8, "outer"),
    "width-within-groups": (lambda: nn.GroupNorm(8, 16), "m[0]", 2, "inner"),
    "grn": (lambda: GlobalResponse(16), "m.g[1] m.o[1]", 16, "auto"),
    "evo-whole-groups": (lambda: Evo(16, 8), "m.v[0] m.w[0] m.o[0]", 8, "outer"),
    "evo-width-within-groups": (lambda: Evo(16, 8), "m.v[0] m.w[0] m.o[0]", 2, "inner"),
    "frn": (lambda: FilterResponse(16), "m.w[0] m.o[0] m.tau[0]", 16, "auto"),
}


def between(layer: nn.Module) -> nn.Module:
    return Net(lambda s, x: s.b(s.m(s.a(x))), a=nn.Conv2d(3, 16, 1), m=layer, b=nn.Conv2d(16, 4, 1))


@pytest.mark.parametrize("case", NORMS)
def test_a_norm_belongs_to_the_channels_it_norms(case: str) -> None:
    build, own, units, policy = NORMS[case]
    torch.manual_seed(0)
    times = 16 // units
    slots = ("a[0]", *own.split(), "b[1]")
    expected = " ".join(f"{slot}*{times}" if times > 1 else slot for slot in slots)
    check(between(build()), image(), {"a": (units, expected)}, policy)


@pytest.mark.parametrize(
    ("build", "weight", "also"),
    [
        (lambda: Standardised(16, 12), "m", " m.gain[0]"),
        (lambda: StandardisedByHand(16, 12, 3, padding=1), "m", ""),
        (
            lambda: parametrizations.weight_norm(nn.Conv2d(16, 12, 3, padding=1)),
            "m.parametrizations.weight.original1",
            "",
        ),
        (
            lambda: parametrizations.spectral_norm(nn.Conv2d(16, 12, 3, padding=1)),
            "m.parametrizations.weight.original",
            "",
        ),
    ],
    ids=["standardised", "by-hand", "weight-norm", "spectral-norm"],
)
def test_a_computed_weight_has_the_channels_of_its_parameter(
    build: Any, weight: str, also: str
) -> None:
    torch.manual_seed(0)
    layer = build()
    net = Net(lambda s, x: s.b(s.m(s.a(x))), a=nn.Conv2d(3, 16, 1), m=layer, b=nn.Conv2d(12, 4, 1))
    length = " m.parametrizations.weight.original0[0]" if "original1" in weight else ""
    check(
        net,
        image(),
        {
            "a": (16, f"a[0] {weight}[1]"),
            weight: (12, f"{weight}[0]{length}{also} b[1]"),
        },
    )
