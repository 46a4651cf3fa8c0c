"""Samples of the operators along named dimensions and of views by strides; see ``samples``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.rules.samples import CHANNELS_FROZEN, Net, between, sample

# --- along ---

POSITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sort": lambda x: x.sort(3)[0],
    "topk": lambda x: x.topk(3, 2)[0],
    "kthvalue": lambda x: x - x.kthvalue(2, 3, keepdim=True)[0],
    "median": lambda x: x - x.median(3)[0].unsqueeze(3),
    "nanmedian": lambda x: x - x.nanmedian(3, keepdim=True)[0],
    "mode": lambda x: x - x.mode(3)[0].unsqueeze(3),
    "argmax": lambda x: x * x.argmax(3, keepdim=True),
    "argmin": lambda x: x * x.argmin(2).unsqueeze(2),
    "rot90": lambda x: torch.rot90(x, 1, (2, 3)),
    "tril triu": lambda x: x.tril() + x.triu(1),
}
for name, of_positions in POSITIONS.items():
    sample(name, between(of_positions), note="positions")
sample("sort any", between(lambda x: x - x.quantile(0.5, dim=3, keepdim=True)), note="quantile")
sample(
    "rot90",
    between(lambda x: torch.rot90(torch.rot90(x, 1, (1, 2)), -1, (1, 2))),
    **CHANNELS_FROZEN,
    frozen={"a": "depends on every entry"},
    note="channels",
)
sample(
    "tril triu",
    between(lambda x: (x.transpose(1, 2).tril() + x.transpose(1, 2).triu()).transpose(1, 2)),
    **CHANNELS_FROZEN,
    frozen={"a": "triangle"},
    note="channels",
)
SCANS: dict[str, Callable[..., Tensor]] = {
    "cumsum": lambda x, d: x.cumsum(d),
    "cumprod": lambda x, d: x.sigmoid().cumprod(d),
    "logcumsumexp": lambda x, d: x.logcumsumexp(d),
}
for name, scan in SCANS.items():
    sample(name, between(lambda x, f=scan: f(x, 1)), note="channels")
    sample(name, between(lambda x, f=scan: f(x, 2)), note="positions")


def filtered(s: Any, x: Tensor) -> Tensor:
    """A learned filter of frequencies (GFNet)."""
    x = s.a(x)
    spectrum = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(s.w)
    return s.c(s.b(torch.fft.irfft2(spectrum, s=x.shape[2:], norm="ortho")))


sample(
    "_fft_r2c _fft_c2r view_as_complex",
    lambda: Net(
        filtered,
        a=nn.Conv2d(3, 8, 1),
        w=nn.Parameter(torch.randn(8, 6, 4, 2)),
        b=nn.Conv2d(8, 6, 1),
        c=nn.Conv2d(6, 4, 1),
    ),
    note="frequency-filter",
)
sample(
    "_fft_c2c view_as_real",
    between(lambda x: torch.view_as_real(torch.fft.fft(x.to(torch.cdouble))).sum(-1).to(x.dtype)),
)
sample(
    "_fft_c2c",
    between(lambda x: torch.fft.fft(x.to(torch.cdouble), dim=1).abs().to(x.dtype)),
    **CHANNELS_FROZEN,
    frozen={"a": "depends on every entry"},
    note="channels",
)

# --- strided ---

sample(
    "unfold",
    between(lambda x: x.unfold(2, 3, 2).unfold(3, 2, 2).amax((-1, -2))),
    note="positions",
)
sample(
    "unfold",
    between(lambda x: x.unfold(1, 4, 4).mean(-1), into=2),
    **CHANNELS_FROZEN,
    frozen={"a": "windows slide"},
    note="channels",
)
sample(
    "as_strided",
    between(
        lambda x: x.contiguous().as_strided((len(x), 8, 36), (288, 36, 1)).unflatten(2, (6, 6))
    ),
    note="reshape",
)
sample(
    "as_strided",
    between(lambda x: x.contiguous().as_strided((len(x), 4, 6, 6), (288, 72, 6, 1)), into=4),
    **CHANNELS_FROZEN,
    frozen={"a": "strides"},
    note="strides",
)


def channels_last(x: Tensor) -> Tensor:
    return x + F.adaptive_avg_pool2d(x.to(memory_format=torch.channels_last), 1)


def striped(x: Tensor) -> Tensor:
    y = x + 1
    return y.as_strided_((len(x), 4, 6, 6), (288, 72, 6, 1))


sample("as_strided_", between(channels_last), note="channels-last-pooling")
sample(
    "as_strided_",
    between(striped, into=4),
    **CHANNELS_FROZEN,
    frozen={"a": "strides"},
    note="strides",
)

sample(
    "convolution",
    between(lambda x: x * F.one_hot(torch.arange(6, device=x.device).clamp(max=3), 6)),
    note="one-hot-positions",
)

# --- one by one addressed, and shuffled ---

sample(
    "gather",
    between(
        lambda x: (
            x.gather(3, x.argsort(3)) + x.gather(2, x[:, :, :1].argmin(3, True).expand(x.shape))
        )
    ),
    note="positions",
)
sample(
    "gather",
    between(lambda x: x.gather(1, (x > 0).long())),
    **CHANNELS_FROZEN,
    frozen={"a": "addressed"},
    note="channels",
)
sample(
    "scatter scatter_add",
    between(
        lambda x: (
            torch.zeros_like(x).scatter(3, x.argsort(3), x)
            + torch.zeros_like(x).scatter_add(2, x.argmax(2, True).expand(x.shape), x)
        )
    ),
    note="positions",
)
for policy, width in {"outer": 4, "inner": 3}.items():
    sample(
        "channel_shuffle",
        lambda: Net(
            lambda s, x: s.b(F.channel_shuffle(s.a(x), 4)) + s.d(s.m(s.a(x))),
            a=nn.Conv2d(3, 12, 1),
            m=nn.ChannelShuffle(4),
            b=nn.Conv2d(12, 4, 1),
            d=nn.Conv2d(12, 4, 1),
        ),
        prunable={"a": width},
        policy=policy,
        note=policy,
    )
sample(
    "native_channel_shuffle",
    between(lambda x: torch.native_channel_shuffle(x.detach(), 2)),
    prunable={"a": 4, "b": 6},
)
