"""Samples of pointwise operators and of tensors that are made; see ``samples``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.rules.samples import CHANNELS_FROZEN, between, layer, sample, two

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
