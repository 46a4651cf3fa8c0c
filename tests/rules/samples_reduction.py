"""Samples of norms, reductions and resampling; see ``samples``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.rules.samples import CHANNELS_FROZEN, SEQ, between, layer, linear, sample, tokens

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
