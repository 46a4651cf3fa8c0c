"""The smallest networks that reach each operator with a rule.

``SAMPLES`` is all that ``test_rules.py`` reads. A sample says which operators it is for and what
the analysis must find there: every prunable group with its width, and why others are frozen. A rule
that silently froze everything would fail on the first, one that freed too much on the invariants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Net(nn.Module):
    """Named layers and a function that runs them."""

    def __init__(self, body: Callable[..., Any], **layers: Any) -> None:
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


@dataclass(frozen=True, eq=False)
class Sample:
    """One network.

    Attributes:
        ops: names of the operators (``aten.…``) that it is for, separated by blanks.
        net: builds the network.
        shape: input shape, batch first.
        prunable: name -> width of every prunable group.
        frozen: name -> part of a reason, for groups that have to be frozen.
        policy: choice policy of the analysis.
        tokens: the input is integers below this number.
        note: what sets it apart from the other samples of its operators.
    """

    ops: str
    net: Callable[[], nn.Module]
    shape: tuple[int, ...] = (2, 3, 6, 6)
    prunable: Mapping[str, int] = field(default_factory=lambda: {"a": 8, "b": 6})
    frozen: Mapping[str, str] = field(default_factory=dict)
    policy: Any = "auto"
    tokens: int = 0
    note: str = ""

    @property
    def id(self) -> str:
        return self.ops.replace(" ", "+") + (f"-{self.note}" if self.note else "")

    def inputs(self) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        if self.tokens:
            return torch.randint(self.tokens, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator)


SAMPLES: list[Sample] = []


def sample(ops: str, net: Callable[[], nn.Module], *args: Any, **kwargs: Any) -> None:
    SAMPLES.append(Sample(ops, net, *args, **kwargs))


def between(f: Callable[[Tensor], Tensor], out: int = 8, into: int | None = None, nd: int = 2):
    """conv a -> ``f`` -> conv b -> conv c: ``f`` sees the ``out`` channels of ``a``."""
    conv = CONV[nd]
    return lambda: Net(
        lambda s, x: s.c(s.b(f(s.a(x)))),
        a=conv(3, out, 1),
        b=conv(out if into is None else into, 6, 1),
        c=conv(6, 4, 1),
    )


def layer(*modules: Callable[[], nn.Module], nd: int = 2):
    """conv a -> modules m0, m1 … -> conv b -> conv c."""

    def body(s: Any, x: Tensor) -> Tensor:
        x = s.a(x)
        for k in range(len(modules)):
            x = getattr(s, f"m{k}")(x)
        return s.c(s.b(x))

    return lambda: Net(
        body,
        a=CONV[nd](3, 8, 1),
        b=CONV[nd](8, 6, 1),
        c=CONV[nd](6, 4, 1),
        **{f"m{k}": make() for k, make in enumerate(modules)},
    )


def two(f: Callable[[Tensor, Tensor], Tensor], p: int = 8, q: int = 8, into: int = 8):
    """convs a and d side by side -> ``f`` -> conv b -> conv c."""
    return lambda: Net(
        lambda s, x: s.c(s.b(f(s.a(x), s.d(x)))),
        a=nn.Conv2d(3, p, 1),
        d=nn.Conv2d(3, q, 1),
        b=nn.Conv2d(into, 6, 1),
        c=nn.Conv2d(6, 4, 1),
    )


def tokens(f: Callable[[Any, Tensor], Tensor], into: int, **layers: Callable[[], nn.Module]):
    """(batch, positions, 5 channels) -> ``f`` with linear layers -> linear o."""
    return lambda: Net(
        lambda s, x: s.o(f(s, x)),
        **{name: make() for name, make in layers.items()},
        o=nn.Linear(into, 4),
    )


def linear(i: int, o: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(i, o)


def param(*shape: int) -> Callable[[], nn.Parameter]:
    return lambda: nn.Parameter(torch.randn(shape))


SEQ = (2, 4, 5)
CHANNELS_FROZEN: dict[str, Any] = {"prunable": {"b": 6}}

# --- contraction ---

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

# --- indexing ---

sample("index", between(lambda x: x[:, :, torch.tensor([0, 2])]), note="positions")
sample(
    "index",
    between(lambda x: x[:, torch.tensor([7, 0, 2])], into=3),
    **CHANNELS_FROZEN,
    frozen={"a": "addressed by an index"},
    note="channels",
)
sample("index_select", between(lambda x: x.index_select(3, torch.tensor([0, 2]))), note="positions")
sample(
    "index_select",
    between(lambda x: torch.index_select(x, 1, torch.tensor([7, 0, 2])), into=3),
    **CHANNELS_FROZEN,
    frozen={"a": "addressed by an index"},
    note="channels",
)
sample(
    "embedding",
    tokens(lambda s, x: s.a(x), 8, a=lambda: nn.Embedding(11, 8)),
    (2, 4),
    {"a.weight[1]": 8},
    tokens=11,
)

# --- movement ---

sample(
    "view",
    between(lambda x: x.view(x.shape[0], 2, 4, 6, 6).sum(1), into=4),
    prunable={"a": 4, "b": 6},
)
sample(
    "view",
    between(lambda x: x.view(-1, 4, 3, 6, 6).sum(1), 12, 3),
    prunable={"a": 3, "b": 6},
    policy="inner",
    note="inner",
)
sample(
    "reshape",
    lambda: Net(
        lambda s, x: s.b(s.a(x).reshape(x.shape[0], 8, -1)),
        a=nn.Conv2d(3, 8, 1),
        b=nn.Conv1d(8, 4, 1),
    ),
    prunable={"a": 8},
)
sample(
    "flatten",
    lambda: Net(
        lambda s, x: s.c(s.b(s.a(x).flatten(1))),
        a=nn.Conv2d(3, 8, 3),
        b=nn.Linear(32, 6),
        c=nn.Linear(6, 4),
    ),
    (2, 3, 4, 4),
)
sample(
    "unflatten",
    lambda: Net(
        lambda s, x: s.c(s.b(s.a(x).unflatten(1, (8, 2, 2)))),
        a=nn.Linear(5, 32),
        b=nn.Conv2d(8, 6, 1),
        c=nn.Conv2d(6, 4, 1),
    ),
    (2, 5),
)
sample("_unsafe_view", tokens(lambda s, x: (x @ s.a).relu(), 8, a=param(5, 8)), SEQ, {"a": 8})
sample("squeeze unsqueeze", between(lambda x: x.unsqueeze(1).squeeze(1)))
sample(
    "squeeze_",
    between(lambda x: x.mean((2, 3), keepdim=True).squeeze_((2, 3))[..., None, None]),
    note="two-dimensions",
)
sample("squeeze_ unsqueeze_", between(lambda x: (x * 2).unsqueeze_(2).squeeze_(2)))
sample(
    "permute contiguous", between(lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
)
sample("transpose swapaxes", between(lambda x: x.transpose(1, 3).swapaxes(3, 1)))
sample("transpose_", between(lambda x: (x * 2).transpose_(1, 3).transpose_(1, -1)))
sample(
    "t",
    lambda: Net(lambda s, x: F.linear(s.a(x).t().t(), s.w.t()), a=nn.Linear(5, 8), w=param(8, 4)()),
    (2, 5),
    {"a": 8},
)
BOTH: dict[str, Any] = {"prunable": {"a": 8, "d": 4, "b": 6}}
sample("cat", two(lambda p, q: torch.cat([p, q], 1), q=4, into=12), **BOTH)
sample("concat", two(lambda p, q: torch.concat([q, p], dim=-3), q=4, into=12), **BOTH)
sample("stack", two(lambda p, q: torch.stack([p, q], 1).sum(1)))
sample(
    "unbind",
    between(lambda x: sum(x.view(-1, 2, 4, 6, 6).unbind(1)), into=4),
    prunable={"a": 4, "b": 6},
)
sample(
    "select",
    between(lambda x: x.unflatten(1, (2, 4))[:, 1], into=4),
    prunable={"a": 4, "b": 6},
    note="outer",
)
sample(
    "select",
    between(lambda x: x * x[:, 0:1] + x[:, 1].unsqueeze(1)),
    **CHANNELS_FROZEN,
    frozen={"a": "addressed one by one"},
    note="channels",
)


def parted(cut: Callable[[Tensor], Any], first: int = 3):
    """conv a -> two parts -> convs p and q, added."""

    def body(s: Any, x: Tensor) -> Tensor:
        left, right = cut(s.a(x))
        return s.p(left) + s.q(right)

    return lambda: Net(
        body, a=nn.Conv2d(3, 8, 1), p=nn.Conv2d(first, 4, 1), q=nn.Conv2d(8 - first, 4, 1)
    )


UNEVEN: dict[str, Any] = {"prunable": {"a": 3, "a#2": 5}}
EVEN: dict[str, Any] = {"prunable": {"a": 4, "a#2": 4}}
sample("split", parted(lambda x: x.split(4, 1), 4), **EVEN)
sample("split_with_sizes", parted(lambda x: torch.split_with_sizes(x, [3, 5], 1)), **UNEVEN)
sample("unsafe_split", parted(lambda x: torch.unsafe_split(x, 4, 1), 4), **EVEN)
sample(
    "unsafe_split_with_sizes",
    parted(lambda x: torch.unsafe_split_with_sizes(x, [3, 5], 1)),
    **UNEVEN,
)
sample("chunk", parted(lambda x: x.chunk(2, dim=1), 4), **EVEN)
sample("unsafe_chunk", parted(lambda x: torch.unsafe_chunk(x, 2, 1), 4), **EVEN)
sample("tensor_split", parted(lambda x: torch.tensor_split(x, [3], dim=1)), **UNEVEN)
sample("slice", parted(lambda x: (x[:, :3], x[:, -5:])), **UNEVEN)
sample(
    "slice",
    between(lambda x: x[:, ::2] - x[:, 1:8:2], into=4),
    prunable={"a": 4, "b": 6},
    note="stride",
)
sample(
    "slice",
    between(lambda x: x[:, 1:6:2] + x[:, ::3], into=3),
    **CHANNELS_FROZEN,
    frozen={"a": "stride"},
    note="uneven-stride",
)
sample("narrow", parted(lambda x: (x.narrow(1, 0, 3), torch.narrow(x, 1, 3, 5))), **UNEVEN)
sample("expand", between(lambda x: x + x.mean(1, keepdim=True).expand(-1, 8, -1, -1)))
sample("expand", between(lambda x: x.unsqueeze(1).expand(-1, 5, -1, -1, -1).sum(1)), note="passes")
sample(
    "broadcast_to",
    between(lambda x: torch.broadcast_to(x, (3, *x.shape)).sum(0)),
    note="passes",
)
sample(
    "broadcast_to",
    between(
        lambda x: (
            x
            + torch.broadcast_to(x.mean(1, True), x.shape)
            + x.mean(1, True).broadcast_to((-1, 8, 6, 6))
        )
    ),
)
sample("repeat", between(lambda x: x.repeat(1, 2, 1, 1), into=16))
sample(
    "repeat", between(lambda x: x + x.mean(1, keepdim=True).repeat(1, 8, 1, 1)), note="single-entry"
)
sample("tile", between(lambda x: torch.tile(x, (1, 3, 1, 1)), into=24))
sample("tile", between(lambda x: x + x.mean(1, keepdim=True).tile(1, 8, 1, 1)), note="single-entry")
sample("flip", between(lambda x: x.flip(2, 3)), note="positions")
sample(
    "flip",
    between(lambda x: x + x.flip(1)),
    **CHANNELS_FROZEN,
    frozen={"a": "reversed"},
    note="channels",
)
sample("roll", between(lambda x: x.roll(2, 3)), note="positions")
sample(
    "roll",
    between(lambda x: torch.roll(x, 1, 1)),
    **CHANNELS_FROZEN,
    frozen={"a": "rolled"},
    note="channels",
)
sample("constant_pad_nd", between(lambda x: F.pad(x, (1, 0, 2, 0))), note="positions")
sample("constant_pad_nd", between(lambda x: F.pad(x, (0, 0, 0, 0, 1, 3)), into=12), note="channels")
sample(
    "constant_pad_nd",
    between(lambda x: F.pad(x, (0, 0, 0, 0, 0, -3)), into=5),
    **CHANNELS_FROZEN,
    frozen={"a": "cropped"},
    note="cropped",
)
sample("pixel_shuffle", between(lambda x: F.pixel_shuffle(x, 2), 16, 4), prunable={"a": 4, "b": 6})
sample(
    "pixel_unshuffle", between(lambda x: F.pixel_unshuffle(x, 2), 4, 16), prunable={"a": 4, "b": 6}
)
sample("im2col", between(lambda x: F.unfold(x, 3, padding=1).unflatten(-1, (6, 6)), into=72))
sample("col2im", between(lambda x: F.fold(F.unfold(x, 3, padding=1), (6, 6), 3, padding=1)))

# --- normalisation ---

sample("batch_norm", layer(lambda: nn.BatchNorm2d(8)))
sample("batch_norm", layer(lambda: nn.BatchNorm2d(8, affine=False)), note="no-affine")
sample("batch_norm", layer(lambda: nn.InstanceNorm2d(8, affine=True)), note="instance-norm")
sample(
    "layer_norm",
    tokens(lambda s, x: s.n(s.a(x)), 8, a=linear(5, 8), n=lambda: nn.LayerNorm(8)),
    SEQ,
    {"a": 8},
)
sample(
    "rms_norm",
    tokens(lambda s, x: s.n(s.a(x)), 8, a=linear(5, 8), n=lambda: nn.RMSNorm(8)),
    SEQ,
    {"a": 8},
)
sample(
    "group_norm",
    layer(lambda: nn.GroupNorm(2, 8)),
    prunable={"a": 4, "b": 6},
    note="width-in-group",
)
sample("group_norm", layer(lambda: nn.GroupNorm(4, 8)), prunable={"a": 4, "b": 6}, note="groups")
sample("group_norm", layer(lambda: nn.GroupNorm(1, 8)), note="one-group")
sample("softmax", between(lambda x: x * x.softmax(1)), note="channels")
sample("softmax", between(lambda x: x * F.softmax(x, -1)), note="positions")
sample("log_softmax", between(lambda x: F.log_softmax(x, 2)), note="positions")

# --- pointwise ---

sample("add", two(lambda p, q: p + 2 * q), note="residual")
sample("add", two(lambda p, q: p.mul(q.mean((2, 3), keepdim=True).sigmoid()) + p), note="gate")
sample("add", two(lambda p, q: p + q, q=1), note="broadcast-single-channel")
sample("hardswish", layer(nn.Hardswish))
sample("hardswish_", layer(lambda: nn.Hardswish(inplace=True)))
sample("celu_", layer(lambda: nn.CELU(inplace=True)))
sample("prelu", layer(lambda: nn.PReLU(8)), note="per-channel")
sample("prelu", layer(nn.PReLU), note="shared")
sample("clone", between(lambda x: x.clone()))
sample("glu", between(lambda x: F.glu(x, 1), into=4), prunable={"a": 4, "b": 6})
sample("detach", between(lambda x: x.detach()))
sample("alias", between(lambda x: x[...]))
sample("_to_copy", between(lambda x: x.double().sin().to(x.dtype)))
sample("floor_divide", between(lambda x: x.detach() // 0.5))


def written(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    y.copy_(x)
    y[:, 2:5] = 2 * x[:, 2:5]
    return y


sample("copy_ empty_like", between(written), note="setitem")
sample("bernoulli", between(lambda x: torch.bernoulli(x.sigmoid().ceil())))
sample("native_dropout", between(lambda x: torch.native_dropout(x, 0.0, True)[0]), note="passes")
sample("native_dropout", between(lambda x: x + 0 * F.dropout(x, 0.5, training=True)))
sample("bernoulli_", between(lambda x: x + 0 * F.dropout2d(x, 0.5, training=True)))
sample(
    "zeros_like ones_like full_like",
    between(lambda x: x + torch.zeros_like(x) - torch.ones_like(x) * torch.full_like(x, 0.5)),
)
sample("rand_like randn_like", between(lambda x: x + 0 * torch.rand_like(x) * torch.randn_like(x)))
sample(
    "fill_ zero_ normal_ uniform_",
    between(
        lambda x: (
            x * torch.empty_like(x).fill_(2.0)
            + torch.empty_like(x).zero_()
            + 0 * torch.empty_like(x).uniform_() * torch.empty_like(x).normal_()
        )
    ),
)


def on(x: Tensor) -> dict[str, Any]:
    return {"dtype": x.dtype, "device": x.device}


sample(
    "zeros ones full empty",
    between(
        lambda x: (
            x
            + torch.zeros(8, 1, 1, **on(x))
            - torch.ones(1, 8, 1, 1, **on(x)) * torch.full((8, 1, 1), 0.5, **on(x))
            + torch.empty(8, 6, 6, **on(x)).fill_(0.1)
        )
    ),
)
sample(
    "rand randn",
    between(lambda x: x + 0 * torch.rand(8, 1, 1, **on(x)) * torch.randn(1, 8, 1, 1, **on(x))),
)
sample(
    "new_zeros new_ones new_full new_empty",
    between(
        lambda x: (
            x
            + x.new_zeros(8, 1, 1)
            - x.new_ones(1, 8, 1, 1) * x.new_full((8, 1, 1), 0.5)
            + x.new_empty((8, 6, 6)).fill_(0.1)
        )
    ),
)
sample(
    "arange linspace",
    between(
        lambda x: (
            x * torch.arange(x.shape[3], device=x.device)
            + torch.linspace(0, 1, x.shape[2], **on(x)).unsqueeze(1)
        )
    ),
    note="positions",
)
sample("eye", between(lambda x: x @ torch.eye(6, **on(x))), note="positions")
sample(
    "randint randperm",
    between(
        lambda x: (
            x + 0 * torch.randint(3, (6, 6), device=x.device) * torch.randperm(6, device=x.device)
        )
    ),
)
sample(
    "tril_indices triu_indices",
    between(
        lambda x: (
            x
            + torch.tril_indices(6, 6, device=x.device).sum()
            + torch.triu_indices(6, 6, device=x.device).sum()
        )
    ),
)
sample("hann_window", between(lambda x: x * torch.hann_window(6, **on(x))))
sample("scalar_tensor", between(lambda x: torch.where(x > 0, 0.5, x)))

POSITIONAL: dict[str, Callable[[Tensor], Tensor]] = {
    "arange": lambda x: torch.arange(8, device=x.device),
    "linspace": lambda x: torch.linspace(0, 1, 8, **on(x)),
    "eye": lambda x: torch.eye(8, **on(x))[0],
    "randperm": lambda x: 0 * torch.randperm(8, device=x.device),
    "randint": lambda x: 0 * torch.randint(3, (8,), device=x.device),
    "tril_indices": lambda x: torch.tril_indices(8, 1, device=x.device)[0],
    "triu_indices": lambda x: torch.triu_indices(1, 8, device=x.device)[1],
    "hann_window": lambda x: torch.hann_window(8, **on(x)),
}
for name, positions in POSITIONAL.items():
    sample(
        name,
        between(lambda x, f=positions: x * f(x).view(8, 1, 1) + x),
        **CHANNELS_FROZEN,
        frozen={"a": "fixed dimension"},
        note="channels",
    )

# --- reduction ---

REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "sum": lambda x, d: x.sum(d, keepdim=True),
    "mean": lambda x, d: x.mean(d, keepdim=True),
    "linalg_vector_norm": lambda x, d: torch.linalg.vector_norm(x, dim=d, keepdim=True),
    "norm": lambda x, d: F.pairwise_distance(x.movedim(d, -1), -x.movedim(d, -1)).unsqueeze(d),
    "var": lambda x, d: x.var(d, keepdim=True),
    "std": lambda x, d: x.std(d, keepdim=True),
    "var_mean": lambda x, d: torch.var_mean(x, d, keepdim=True)[0],
    "amax": lambda x, d: x.amax(d, keepdim=True),
    "max": lambda x, d: x.max(d, keepdim=True)[0],
    "logsumexp": lambda x, d: x.logsumexp(d, keepdim=True),
    "min": lambda x, d: x.min(d, keepdim=True)[0],
    "amin": lambda x, d: x.amin(d, keepdim=True),
    "prod": lambda x, d: x.prod(d, keepdim=True),
    "any": lambda x, d: (x > 0.5).any(d, keepdim=True).to(x.dtype),
    "all": lambda x, d: (x > 0.5).all(d, keepdim=True).to(x.dtype),
}
for name, reduction in REDUCTIONS.items():
    sample(name, between(lambda x, f=reduction: x / (f(x, 1) + 9)), note="channels")
    sample(name, between(lambda x, f=reduction: f(x, 2) + f(x, 3)), note="positions")
ORDERED: dict[str, Callable[[Tensor], Tensor]] = {
    "argmax": lambda x: x + x.argmax(1, keepdim=True),
    "argmin": lambda x: x + x.argmin(1, keepdim=True),
    "topk": lambda x: x + x.topk(1, 1)[0],
    "sort": lambda x: x.sort(1)[0],
    "kthvalue": lambda x: x + x.kthvalue(2, 1, keepdim=True)[0],
    "median": lambda x: x + x.median(1, keepdim=True)[0],
    "nanmedian": lambda x: x + x.nanmedian(1, keepdim=True)[0],
    "mode": lambda x: x + x.mode(1, keepdim=True)[0],
}
for name, ordered in ORDERED.items():
    sample(name, between(ordered), **CHANNELS_FROZEN, frozen={"a": "depends on every entry"})

# --- resampling ---

for nd, modules in {
    1: {
        "upsample_linear1d": lambda: nn.Upsample(scale_factor=2, mode="linear"),
        "upsample_nearest1d": lambda: nn.Upsample(scale_factor=2),
        "reflection_pad1d": lambda: nn.ReflectionPad1d(2),
        "replication_pad1d": lambda: nn.ReplicationPad1d(2),
        "avg_pool1d": lambda: nn.AvgPool1d(2),
        "max_pool1d": lambda: nn.MaxPool1d(2),
        "adaptive_avg_pool1d": lambda: nn.AdaptiveAvgPool1d(2),
    },
    2: {
        "avg_pool2d": lambda: nn.AvgPool2d(2),
        "max_pool2d": lambda: nn.MaxPool2d(2),
        "_adaptive_avg_pool2d": lambda: nn.AdaptiveAvgPool2d(2),
        "adaptive_max_pool2d": lambda: nn.AdaptiveMaxPool2d(2),
        "upsample_bilinear2d": lambda: nn.UpsamplingBilinear2d(scale_factor=2),
        "upsample_nearest2d": lambda: nn.UpsamplingNearest2d(scale_factor=2),
        "upsample_bicubic2d": lambda: nn.Upsample(scale_factor=2, mode="bicubic"),
        "_upsample_nearest_exact2d": lambda: nn.Upsample(scale_factor=2, mode="nearest-exact"),
        "reflection_pad2d": lambda: nn.ReflectionPad2d(2),
        "replication_pad2d": lambda: nn.ReplicationPad2d(2),
    },
    3: {
        "avg_pool3d": lambda: nn.AvgPool3d(2),
        "max_pool3d": lambda: nn.MaxPool3d(2),
        "_adaptive_avg_pool3d": lambda: nn.AdaptiveAvgPool3d(2),
        "upsample_trilinear3d": lambda: nn.Upsample(scale_factor=2, mode="trilinear"),
        "upsample_nearest3d": lambda: nn.Upsample(scale_factor=2),
    },
}.items():
    for name, make in modules.items():
        sample(name, layer(make, nd=nd), (2, 3, *(4,) * nd))
sample(
    "max_pool1d_with_indices",
    between(lambda x: F.max_pool1d(x, 2, return_indices=True)[0], nd=1),
    (2, 3, 4),
)
sample("max_pool2d_with_indices", between(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]))
sample(
    "max_pool3d_with_indices",
    between(lambda x: F.max_pool3d(x, 2, return_indices=True)[0], nd=3),
    (2, 3, 4, 4, 4),
)
for mode in ("bilinear", "bicubic"):
    sample(
        f"_upsample_{mode}2d_aa",
        between(lambda x, m=mode: F.interpolate(x, size=(3, 3), mode=m, antialias=True)),
    )
sample(
    "grid_sampler",
    between(
        lambda x: F.grid_sample(
            x,
            x.mean(1, keepdim=True).tanh().movedim(1, 3).expand(-1, -1, -1, 2),
            align_corners=False,
        )
    ),
)
sample(
    "grid_sampler",
    between(
        lambda x: F.grid_sample(
            x,
            x.mean(1, keepdim=True).tanh().movedim(1, 4).expand(-1, -1, -1, -1, 3),
            align_corners=True,
        ),
        nd=3,
    ),
    (2, 3, 4, 4, 4),
    note="volume",
)
