"""Samples of operators that index, move, cut and join; see ``samples``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.rules.samples import (
    CHANNELS_FROZEN,
    SEQ,
    Net,
    between,
    param,
    sample,
    tokens,
    two,
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
