"""Samples of convolutions, products of matrices and attention; see ``samples``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.rules.samples import SEQ, Net, layer, linear, param, sample, tokens

sample("convolution", layer(lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8)), note="depthwise")
sample(
    "convolution",
    layer(lambda: nn.Conv2d(8, 12, 3, groups=4), lambda: nn.Conv2d(12, 8, 1)),
    prunable={"a": 4, "m1": 8, "b": 6},
    note="whole-groups",  # no axis of 16 or more: the longest, so groups of 2 in and 3 out
)
sample(
    "convolution",
    layer(lambda: nn.Conv2d(8, 12, 3, groups=2), lambda: nn.Conv2d(12, 8, 1)),
    prunable={"a": 4, "m0": 6, "m1": 8, "b": 6},
    note="width-in-group",  # 4 in and 6 out of each of the 2 groups
)
sample(
    "convolution",
    layer(lambda: nn.Conv2d(8, 16, 3, groups=8), lambda: nn.Conv2d(16, 8, 1)),
    prunable={"a": 8, "m1": 8, "b": 6},
    note="depthwise-multiplier",
)
sample(
    "convolution",
    layer(lambda: nn.ConvTranspose2d(8, 10, 2, 2), lambda: nn.Conv2d(10, 8, 1)),
    prunable={"a": 8, "m0": 10, "m1": 8, "b": 6},
    note="transposed",
)
sample(
    "convolution",
    layer(lambda: nn.ConvTranspose2d(8, 12, 2, 2, groups=4), lambda: nn.Conv2d(12, 8, 1)),
    prunable={"a": 4, "m1": 8, "b": 6},
    note="transposed-whole-groups",
)
sample(
    "convolution",
    layer(lambda: nn.ConvTranspose2d(8, 12, 2, 2, groups=2), lambda: nn.Conv2d(12, 8, 1)),
    prunable={"a": 4, "m0": 6, "m1": 8, "b": 6},
    note="transposed-width-in-group",
)
sample(
    "convolution",
    layer(lambda: nn.ConvTranspose2d(8, 8, 2, 2, groups=8)),
    note="transposed-depthwise",
)
sample("linear", tokens(lambda s, x: s.a(x).relu(), 8, a=linear(5, 8)), SEQ, {"a": 8})
sample(
    "mm",
    lambda: Net(
        lambda s, x: torch.mm(torch.mm(x, s.w).relu(), s.v),
        w=param(5, 8)(),
        v=param(8, 3)(),
    ),
    (2, 5),
    {"w": 8},
)
sample(
    "bmm",
    tokens(
        lambda s, x: torch.bmm(torch.bmm(s.q(x), s.k(x).transpose(1, 2)).softmax(-1), s.v(x)),
        7,
        q=linear(5, 8),
        k=linear(5, 8),
        v=linear(5, 7),
    ),
    SEQ,
    {"q": 8, "v": 7},
)
sample(
    "addmm",
    lambda: Net(
        lambda s, x: s.o(torch.addmm(s.bias, x, s.w).relu()),
        w=param(5, 8)(),
        bias=param(8)(),
        o=nn.Linear(8, 4),
    ),
    (2, 5),
    {"w": 8},
)
sample(
    "baddbmm",
    tokens(
        lambda s, x: torch.baddbmm(s.bias, torch.baddbmm(s.m, s.q(x), s.k(x).mT), s.v(x)),
        7,
        q=linear(5, 8),
        k=linear(5, 8),
        v=linear(5, 7),
        bias=param(1, 1, 7),
        m=param(1, 4, 4),
    ),
    SEQ,
    {"q": 8, "v": 7},
)


def heads(x: Tensor, n: int) -> Tensor:
    return x.view(x.shape[0], x.shape[1], n, -1).transpose(1, 2)


def attention(n: int) -> Callable[[Any, Tensor], Tensor]:
    def body(s: Any, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(heads(s.q(x), n), heads(s.k(x), n), heads(s.v(x), n))
        return y.transpose(1, 2).flatten(2)

    return body


QKV: dict[str, Any] = {"q": linear(5, 12), "k": linear(5, 12), "v": linear(5, 16)}
sample(
    "scaled_dot_product_attention",
    tokens(attention(2), 16, **QKV),
    SEQ,
    {"q": 6, "v": 8},  # within 2 heads: 6 dimensions of query and key, 8 of the values
)
sample(
    "scaled_dot_product_attention",
    tokens(attention(4), 16, **QKV),
    SEQ,
    {"q": 4},  # the heads of query, key and values together
    policy="outer",
    note="heads",
)


def fused(s: Any, x: Tensor) -> Tensor:
    n, length, _ = x.shape
    q, k, v = s.qkv(x).reshape(n, length, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, 32)


sample(
    "scaled_dot_product_attention",
    tokens(fused, 32, qkv=linear(5, 96)),
    SEQ,
    {"qkv": 16},
    note="fused",
)
sample(
    "scaled_dot_product_attention",
    tokens(
        lambda s, x: F.scaled_dot_product_attention(s.q(x), s.k(x), s.v(x), attn_mask=s.m),
        16,
        **QKV,
        m=param(4, 4),
    ),
    SEQ,
    {"q": 12, "v": 16},
    note="mask",
)
