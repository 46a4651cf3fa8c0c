"""The groups of gates, concatenations, grouped convolutions and fusions, written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lwdna.fx_passes.analyse import analyse
from lwdna.fx_passes.capture import capture
from lwdna.fx_passes.resize import resize
from tests.quality import Expected, check, image
from tests.rules.samples import Net


def conv(i: int, o: int, k: int = 1, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **options)


def chain(*names: str):
    """The named layers, one after the other."""

    def body(s: Any, x: Tensor) -> Tensor:
        for name in names:
            x = getattr(s, name)(x)
        return x

    return body


def squeeze_excite(s: Any, x: Tensor) -> Tensor:
    x = s.a(x)
    gate = s.up(s.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
    return s.b(x * gate)


def channel_convolution(s: Any, x: Tensor) -> Tensor:
    x = s.a(x)
    gate = s.k(x.mean((2, 3)).unsqueeze(1)).sigmoid().view(x.shape[0], -1, 1, 1)
    return s.b(x * gate.expand_as(x))


def cbam(s: Any, x: Tensor) -> Tensor:
    x = s.a(x)
    pooled = x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    x = x * sum(s.up(s.down(p).relu()) for p in pooled).sigmoid()
    maps = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return s.b(x * s.spatial(maps).sigmoid())


def split_attention(s: Any, x: Tensor) -> Tensor:
    """Radix 2, as in ResNeSt."""
    x = s.bn(s.conv(s.a(x))).relu()
    batch, channels, height, width = x.shape
    x = x.reshape(batch, 2, channels // 2, height, width)
    gap = x.sum(1).mean((2, 3), keepdim=True)
    weights = s.fc2(s.fc1(gap).relu()).view(batch, 1, 2, -1).transpose(1, 2)
    weights = F.softmax(weights, 1).reshape(batch, -1).view(batch, 2, channels // 2, 1, 1)
    return s.b((x * weights).sum(1))


def shuffle_unit(s: Any, x: Tensor) -> Tensor:
    """ShuffleNet V2: half is left alone, then both halves take turns."""
    left, right = s.a(x).chunk(2, 1)
    x = torch.cat([left, s.right(right)], 1)
    batch, channels, height, width = x.shape
    x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
    return s.b(x.reshape(batch, channels, height, width))


def dense(s: Any, x: Tensor) -> Tensor:
    x = s.stem(x)
    first = s.l1(s.n1(x))
    second = s.l2(s.n2(torch.cat([x, first], 1)))
    return s.t(s.n3(torch.cat([x, first, second], 1)))


def pyramid(s: Any, x: Tensor) -> Any:
    c2 = s.c2(x)
    c3 = s.c3(c2)
    c4 = s.c4(c3)
    p4 = s.l4(c4)
    p3 = s.l3(c3) + F.interpolate(p4, scale_factor=2)
    p2 = s.l2(c2) + F.interpolate(p3, scale_factor=2)
    return s.o2(p2), s.o3(p3), s.o4(p4)


def resolutions(s: Any, x: Tensor) -> Tensor:
    """HRNet: two branches exchange what they see."""
    high = s.h(x)
    low = s.l(high)
    fused_high = (high + F.interpolate(s.up(low), scale_factor=2)).relu()
    fused_low = (s.down(high) + low).relu()
    return s.oh(fused_high) + F.interpolate(s.ol(fused_low), scale_factor=2)


def space_to_depth(s: Any, x: Tensor) -> Tensor:
    x = s.a(x)
    batch, channels, height, width = x.shape
    x = x.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return s.b(x.reshape(batch, channels * 4, height // 2, width // 2))


def branches(s: Any, x: Tensor) -> Tensor:
    """RepVGG: 3x3, 1x1 and identity, each with its norm."""
    x = s.stem(x)
    return s.o((s.bn3(s.c3(x)) + s.bn1(s.c1(x)) + s.bnid(x)).relu())


class Blur(nn.Module):
    """A constant kernel per channel, before a stride."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = (line[:, None] * line).repeat(channels, 1, 1, 1)
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            F.pad(x, (1, 1, 1, 1), "reflect"), self.kernel, None, 2, groups=self.channels
        )


def grouped() -> nn.Module:
    return Net(chain("a", "g", "b"), a=conv(3, 16), g=conv(16, 32, 3, groups=4), b=conv(32, 4))


def multiplied() -> nn.Module:
    return Net(chain("a", "d", "b"), a=conv(3, 8), d=conv(8, 16, 3, groups=8), b=conv(16, 4))


CASES: dict[str, tuple[Any, Expected, str]] = {
    "squeeze-excite": (
        lambda: Net(squeeze_excite, a=conv(3, 16), down=conv(16, 4), up=conv(4, 16), b=conv(16, 4)),
        {"a": (16, "a[0] down[1] up[0] b[1]"), "down": (4, "down[0] up[1]")},
        "auto",
    ),
    "efficient-channel-attention": (
        lambda: Net(
            channel_convolution,
            a=conv(3, 16),
            k=nn.Conv1d(1, 1, 3, padding=1, bias=False),
            b=conv(16, 4),
        ),
        {"a": (16, "a[0] b[1]")},
        "auto",
    ),
    "cbam": (
        lambda: Net(
            cbam,
            a=conv(3, 16),
            down=conv(16, 4),
            up=conv(4, 16),
            spatial=conv(2, 1, 3),
            b=conv(16, 4),
        ),
        {"a": (16, "a[0] down[1] up[0] b[1]"), "down": (4, "down[0] up[1]")},
        "auto",
    ),
    "split-attention": (
        lambda: Net(
            split_attention,
            a=conv(3, 8),
            conv=conv(8, 32, 3, groups=2),
            bn=nn.BatchNorm2d(32),
            fc1=conv(16, 6),
            fc2=conv(6, 32),
            b=conv(16, 4),
        ),
        {
            "a": (4, "a[0]*2 conv[1]"),
            "conv": (16, "conv[0]*2 bn[0]*2 fc1[1] fc2[0]*2 b[1]"),
            "fc1": (6, "fc1[0] fc2[1]"),
        },
        "auto",
    ),
    "shuffle-unit": (
        lambda: Net(shuffle_unit, a=conv(3, 16), right=conv(8, 8, 3), b=conv(16, 4)),
        {"a": (8, "a[0] right[0] b[1]*2"), "a#2": (8, "a[0] right[1]")},
        "auto",
    ),
    "dense-concatenation": (
        lambda: Net(
            dense,
            stem=conv(3, 8),
            n1=nn.BatchNorm2d(8),
            l1=conv(8, 6, 3),
            n2=nn.BatchNorm2d(14),
            l2=conv(14, 6, 3),
            n3=nn.BatchNorm2d(20),
            t=conv(20, 4),
        ),
        {
            "stem": (8, "stem[0] n1[0] l1[1] n2[0] l2[1] n3[0] t[1]"),
            "l1": (6, "l1[0] n2[0] l2[1] n3[0] t[1]"),
            "l2": (6, "l2[0] n3[0] t[1]"),
        },
        "auto",
    ),
    "whole-groups": (grouped, {"a": (4, "a[0]*4 g[0]*8 b[1]*8")}, "outer"),
    "width-within-groups": (
        grouped,
        {"a": (4, "a[0]*4 g[1]"), "g": (8, "g[0]*4 b[1]*4")},
        "inner",
    ),
    "depthwise-multiplier": (multiplied, {"a": (8, "a[0] d[0]*2 b[1]*2")}, "outer"),
    "depthwise-multiplier-itself": (multiplied, {"d": (2, "d[0]*8 b[1]*8")}, "inner"),
    "feature-pyramid": (
        lambda: Net(
            pyramid,
            c2=conv(3, 6),
            c3=conv(6, 8, 3, stride=2),
            c4=conv(8, 10, 3, stride=2),
            l2=conv(6, 12),
            l3=conv(8, 12),
            l4=conv(10, 12),
            o2=conv(12, 4),
            o3=conv(12, 4),
            o4=conv(12, 4),
        ),
        {
            "c2": (6, "c2[0] c3[1] l2[1]"),
            "c3": (8, "c3[0] c4[1] l3[1]"),
            "c4": (10, "c4[0] l4[1]"),
            "l4": (12, "l4[0] l3[0] l2[0] o2[1] o3[1] o4[1]"),
        },
        "auto",
    ),
    "high-resolution-fusion": (
        lambda: Net(
            resolutions,
            h=conv(3, 6),
            l=conv(6, 10, 3, stride=2),
            up=conv(10, 6),
            down=conv(6, 10, 3, stride=2),
            oh=conv(6, 4),
            ol=conv(10, 4),
        ),
        {
            "h": (6, "h[0] l[1] up[0] down[1] oh[1]"),
            "l": (10, "l[0] up[1] down[0] ol[1]"),
        },
        "auto",
    ),
    "blur-pool": (
        lambda: Net(chain("a", "blur", "b"), a=conv(3, 8), blur=Blur(8), b=conv(8, 4)),
        {"a": (8, "a[0] b[1]")},
        "auto",
    ),
    "space-to-depth": (
        lambda: Net(space_to_depth, a=conv(3, 8), b=conv(32, 4)),
        {"a": (8, "a[0] b[1]*4")},
        "auto",
    ),
    "re-parameterised-branches": (
        lambda: Net(
            branches,
            stem=conv(3, 8),
            c3=conv(8, 8, 3, bias=False),
            bn3=nn.BatchNorm2d(8),
            c1=conv(8, 8, bias=False),
            bn1=nn.BatchNorm2d(8),
            bnid=nn.BatchNorm2d(8),
            o=conv(8, 4),
        ),
        {"stem": (8, "stem[0] c3[0] c3[1] bn3[0] c1[0] c1[1] bn1[0] bnid[0] o[1]")},
        "auto",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_groups_are_as_the_architecture_has_them(case: str) -> None:
    build, expected, policy = CASES[case]
    torch.manual_seed(0)
    check(build(), image(), expected, policy)


def test_a_blur_kernel_shrinks_with_its_channels() -> None:
    net = Net(chain("a", "blur", "b"), a=conv(3, 8), blur=Blur(8), b=conv(8, 4))
    gm = capture(net, image())
    graph = analyse(gm, image())
    copies = graph.keep_all()
    copies[next(g for g in graph.groups if g.name == "a").units[::2]] = 0
    assert resize(gm, graph, copies).get_buffer("blur.kernel").shape == (4, 1, 3, 3)
