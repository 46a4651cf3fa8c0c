"""The groups of attention, written out: heads under one policy, their width under the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lwdna
from tests.quality import Expected, check, image, param, sequence
from tests.rules.samples import Net

Linear = nn.Linear
attend = F.scaled_dot_product_attention


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(batch, positions, heads * width) -> (batch, heads, positions, width)."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def fused(s: Any, x: Tensor) -> Tensor:
    x = s.stem(x)
    batch, positions, _ = x.shape
    q, k, v = s.qkv(x).reshape(batch, positions, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
    return s.head(x + s.proj(joined(attend(q, k, v))))


def separate(s: Any, x: Tensor) -> Tensor:
    x = s.stem(x)
    q, k, v = (heads_of(layer(x), 4) for layer in (s.q, s.k, s.v))
    return s.head(x + s.proj(joined(attend(q, k, v))))


def grouped_queries(s: Any, x: Tensor) -> Tensor:
    """Eight heads of queries, two of keys and values."""
    x = s.stem(x)
    q, k, v = heads_of(s.q(x), 8), heads_of(s.k(x), 2), heads_of(s.v(x), 2)
    return s.head(x + s.proj(joined(attend(q, k, v, enable_gqa=True))))


def expanded_queries(s: Any, x: Tensor) -> Tensor:
    x = s.stem(x)
    q, k, v = heads_of(s.q(x), 8), heads_of(s.k(x), 2), heads_of(s.v(x), 2)
    k, v = (t[:, :, None].expand(-1, -1, 4, -1, -1).flatten(1, 2) for t in (k, v))
    return s.head(x + s.proj(joined(attend(q, k, v))))


def one_key(s: Any, x: Tensor) -> Tensor:
    """Multi-query attention."""
    x = s.stem(x)
    q, k, v = heads_of(s.q(x), 4), heads_of(s.k(x), 1), heads_of(s.v(x), 1)
    return s.head(x + s.proj(joined(attend(q, k, v))))


def talking(s: Any, x: Tensor) -> Tensor:
    x = s.stem(x)
    q, k, v = (heads_of(t, 4) for t in s.qkv(x).chunk(3, -1))
    scores = s.before(((q * 0.4) @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    weights = s.after(scores.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return s.head(x + s.proj(joined(weights @ v)))


def windows(s: Any, x: Tensor) -> Tensor:
    """Swin: windows of 4 x 4, a bias by relative position, a shift."""
    x = s.stem(x).permute(0, 2, 3, 1)
    batch, height, width, channels = x.shape
    parts = x.view(batch, height // 4, 4, width // 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
    parts = parts.reshape(-1, 16, channels)
    q, k, v = s.qkv(parts).reshape(-1, 16, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
    bias = s.table[s.index.view(-1)].view(16, 16, -1).permute(2, 0, 1)
    y = s.proj(joined(((q * 0.4) @ k.transpose(-2, -1) + bias).softmax(-1) @ v))
    y = y.view(batch, height // 4, width // 4, 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
    x = x + torch.roll(y.reshape(x.shape), (1, 1), (1, 2))
    return s.head(s.norm(x).mean((1, 2)))


def block(s: Any, x: Tensor) -> Tensor:
    """A ViT block: class token, positions, query and key norms, LayerScale."""
    x = s.patch(x).flatten(2).transpose(1, 2)
    x = torch.cat([s.token.expand(x.shape[0], -1, -1), x], 1) + s.pos
    q, k, v = (heads_of(t, 4) for t in s.qkv(s.n1(x)).chunk(3, -1))
    x = x + s.g1 * s.proj(joined(attend(s.qn(q), s.kn(k), v)))
    x = x + s.g2 * s.fc2(F.gelu(s.fc1(s.n2(x))))
    return s.head(s.n3(x)[:, 0])


def rotated(s: Any, x: Tensor) -> Tensor:
    """Rotary embedding: entries of a head turn in pairs."""

    def turn(t: Tensor) -> Tensor:
        quarter = torch.stack([-t[..., 1::2], t[..., ::2]], -1).reshape(t.shape)
        return t * s.cos + quarter * s.sin

    x = s.stem(x)
    q, k, v = (heads_of(t, 3) for t in s.qkv(x).chunk(3, -1))
    return s.head(x + s.proj(joined(attend(turn(q), turn(k), v))))


def across_channels(s: Any, x: Tensor) -> Tensor:
    """XCiT: attention between the channels of a head, with a temperature per head."""
    x = s.stem(x)
    q, k, v = (heads_of(t, 4).transpose(2, 3) for t in s.qkv(x).chunk(3, -1))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    weights = ((q @ k.transpose(-2, -1)) * s.temperature).softmax(-1)
    return s.head(x + s.proj(joined((weights @ v).transpose(2, 3))))


class Tables(Net):
    """A network with tables that are buffers."""

    def __init__(self, body: Any, tables: dict[str, Tensor], **layers: Any) -> None:
        super().__init__(body, **layers)
        for name, table in tables.items():
            self.register_buffer(name, table)


def tokens(body: Any, inner: int, **layers: Any) -> Any:
    return lambda: Net(
        body,
        stem=Linear(5, 10),
        **{name: make() for name, make in layers.items()},
        proj=Linear(inner, 10),
        head=Linear(10, 4),
    )


def of(i: int, o: int) -> Any:
    return lambda: Linear(i, o)


fused_net = tokens(fused, 24, qkv=of(10, 72))
separate_net = tokens(separate, 24, q=of(10, 24), k=of(10, 24), v=of(10, 24))
queries = {"q": of(10, 48), "k": of(10, 12), "v": of(10, 12)}
grouped_net = tokens(grouped_queries, 48, **queries)
expanded_net = tokens(expanded_queries, 48, **queries)
one_key_net = tokens(one_key, 24, q=of(10, 24), k=of(10, 6), v=of(10, 6))
talking_net = tokens(talking, 24, qkv=of(10, 72), before=of(4, 4), after=of(4, 4))
across_net = tokens(across_channels, 24, qkv=of(10, 72), temperature=lambda: param(4, 1, 1))


def windows_net() -> nn.Module:
    return Tables(
        windows,
        {"index": torch.arange(256).view(16, 16) % 49},
        stem=nn.Conv2d(3, 10, 1),
        qkv=Linear(10, 72),
        table=param(49, 4),
        proj=Linear(24, 10),
        norm=nn.LayerNorm(10),
        head=Linear(10, 4),
    )


def block_net() -> nn.Module:
    return Net(
        block,
        patch=nn.Conv2d(3, 10, 4, 4),
        token=param(1, 1, 10),
        pos=param(1, 5, 10),
        n1=nn.LayerNorm(10),
        qkv=Linear(10, 72),
        qn=nn.LayerNorm(6),
        kn=nn.LayerNorm(6),
        proj=Linear(24, 10),
        g1=param(10),
        n2=nn.LayerNorm(10),
        fc1=Linear(10, 20),
        fc2=Linear(20, 10),
        g2=param(10),
        n3=nn.LayerNorm(10),
        head=Linear(10, 4),
    )


def rotated_net() -> nn.Module:
    return Tables(
        rotated,
        {"cos": torch.rand(6, 8), "sin": torch.rand(6, 8)},
        stem=Linear(5, 10),
        qkv=Linear(10, 72),
        proj=Linear(24, 10),
        head=Linear(10, 4),
    )


FUSED = (10, "stem[0] qkv[1] proj[0] head[1]")
SEPARATE = (10, "stem[0] q[1] k[1] v[1] proj[0] head[1]")
STREAM = (
    10,
    "patch[0] token[2] pos[2] n1[0] qkv[1] g1[0] proj[0] g2[0] n2[0] fc1[1] fc2[0] n3[0] head[1]",
)
ATTENTION: dict[str, tuple[Any, Expected, Expected]] = {
    "fused": (  # one reshape holds q, k and v: their heads, and their widths, are the same axis
        fused_net,
        {"stem": FUSED, "qkv": (4, "qkv[0]*18 proj[1]*6")},
        {"stem": FUSED, "qkv": (6, "qkv[0]*12 proj[1]*4")},
    ),
    "separate": (
        separate_net,
        {"stem": SEPARATE, "q": (4, "q[0]*6 k[0]*6 v[0]*6 proj[1]*6")},
        {"stem": SEPARATE, "q": (6, "q[0]*4 k[0]*4"), "v": (6, "v[0]*4 proj[1]*4")},
    ),
    "grouped-queries": (
        grouped_net,
        {"stem": SEPARATE, "q": (2, "q[0]*24 k[0]*6 v[0]*6 proj[1]*24")},
        {"stem": SEPARATE, "q": (6, "q[0]*8 k[0]*2"), "v": (6, "v[0]*2 proj[1]*8")},
    ),
    "expanded-queries": (
        expanded_net,
        {"stem": SEPARATE, "q": (2, "q[0]*24 k[0]*6 v[0]*6 proj[1]*24")},
        {"stem": SEPARATE, "q": (6, "q[0]*8 k[0]*2"), "v": (6, "v[0]*2 proj[1]*8")},
    ),
    "one-key": (
        one_key_net,
        {"stem": SEPARATE, "q": (4, "q[0]*6 proj[1]*6")},
        {"stem": SEPARATE, "q": (6, "q[0]*4 k[0]"), "v": (6, "v[0] proj[1]*4")},
    ),
    "talking-heads": (
        talking_net,
        {
            "stem": FUSED,
            "qkv": (4, "qkv[0]*12 before[1]"),
            "before": (4, "before[0] after[1]"),
            "qkv#2": (4, "qkv[0]*6 after[0] proj[1]*6"),
        },
        {
            "stem": FUSED,
            "qkv": (6, "qkv[0]*8"),
            "before": (4, "before[0] after[1]"),
            "qkv#2": (6, "qkv[0]*4 proj[1]*4"),
        },
    ),
    "windows": (
        windows_net,
        {
            "stem": (10, "stem[0] qkv[1] proj[0] norm[0] head[1]"),
            "qkv": (4, "qkv[0]*18 table[1] proj[1]*6"),
        },
        {
            "stem": (10, "stem[0] qkv[1] proj[0] norm[0] head[1]"),
            "qkv": (6, "qkv[0]*12 proj[1]*4"),
        },
    ),
    "block": (
        block_net,
        {
            "patch": STREAM,
            "qkv": (4, "qkv[0]*18 proj[1]*6"),
            "fc1": (20, "fc1[0] fc2[1]"),
        },
        {
            "patch": STREAM,
            "qkv": (6, "qkv[0]*8 qn[0] kn[0]"),
            "qkv#2": (6, "qkv[0]*4 proj[1]*4"),
            "fc1": (20, "fc1[0] fc2[1]"),
        },
    ),
    "rotary": (
        rotated_net,
        {"stem": FUSED, "qkv": (3, "qkv[0]*24 proj[1]*8")},
        {"stem": FUSED, "qkv": (4, "qkv[0]*12"), "qkv#2": (8, "qkv[0]*3 proj[1]*3")},
    ),
    "across-channels": (
        across_net,
        {"stem": FUSED, "qkv": (4, "qkv[0]*18 temperature[0] proj[1]*6")},
        {"stem": FUSED, "qkv": (6, "qkv[0]*4 proj[1]*4"), "qkv#2": (6, "qkv[0]*8")},
    ),
}


@pytest.mark.parametrize("policy", ["outer", "inner"])
@pytest.mark.parametrize("case", ATTENTION)
def test_heads_are_one_axis_and_their_width_the_other(case: str, policy: str) -> None:
    build, outer, inner = ATTENTION[case]
    torch.manual_seed(0)
    x = image() if case in ("windows", "block") else sequence()
    check(build(), x, outer if policy == "outer" else inner, policy)


@pytest.mark.parametrize("how", ["repeat_interleave", "expand"])
def test_grouped_queries_written_out_keep_their_heads_apart(how: str) -> None:
    class Grouped(nn.Module):
        """8 heads of queries, 2 of keys and values, each repeated 4 times."""

        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Linear(32, 64), nn.Linear(32, 16), nn.Linear(32, 16)
            self.o = nn.Linear(64, 5)

        def _repeated(self, x: Tensor) -> Tensor:
            if how == "repeat_interleave":
                return x.repeat_interleave(4, 1)
            return x[:, :, None].expand(-1, -1, 4, -1, -1).reshape(x.shape[0], 8, -1, 8)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                y.view(*x.shape[:2], -1, 8).transpose(1, 2)
                for y in (self.q(x), self.k(x), self.v(x))
            )
            a = (q @ self._repeated(k).transpose(-1, -2)).softmax(-1) @ self._repeated(v)
            return self.o(a.transpose(1, 2).flatten(2))

    x = torch.randn(2, 9, 32)
    graph = lwdna.analyse(lwdna.capture(Grouped(), x), x)
    (heads,) = (group for group in graph.groups if group.prunable)
    assert heads.width == 2  # a head of keys and values with its queries
    assert {slot.name for slot, _ in heads.slots} >= {
        "q.weight",
        "k.weight",
        "v.weight",
        "o.weight",
    }
    assert lwdna.verify(Grouped(), x)


def test_output_projection_of_three_dimensions_follows_both_axes() -> None:
    class Summed(nn.Module):
        """wo (heads, width, channels) is flattened by einsum: its first axis is no kernel."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.out = nn.Linear(32, 32), nn.Linear(32, 5)
            self.wv, self.wo = param(4, 32, 10), param(4, 10, 32)

        def forward(self, x: Tensor) -> Tensor:
            v = torch.einsum("bnc,hcd->bhnd", self.stem(x), self.wv)
            return self.out(torch.einsum("bhnd,hdc->bnc", v, self.wo))

    assert lwdna.verify(Summed(), torch.randn(2, 9, 32), policy="both")
