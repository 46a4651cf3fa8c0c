"""Pooling, interpolation and padding by content: the channels pass, the positions are fixed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lwdna.fx_passes.rules.registry import OpCall, rule
from lwdna.trees import tree_leaves

aten = torch.ops.aten

_RANK = {
    1: (
        aten.upsample_linear1d,
        aten.upsample_nearest1d,
        aten.reflection_pad1d,
        aten.replication_pad1d,
        aten.avg_pool1d,
        aten.max_pool1d,
        aten.max_pool1d_with_indices,
        aten.adaptive_avg_pool1d,
    ),
    2: (
        aten.avg_pool2d,
        aten.max_pool2d,
        aten.max_pool2d_with_indices,
        aten._adaptive_avg_pool2d,
        aten.adaptive_max_pool2d,
        aten.upsample_bilinear2d,
        aten.upsample_nearest2d,
        aten.upsample_bicubic2d,
        aten._upsample_bicubic2d_aa,
        aten._upsample_bilinear2d_aa,
        aten._upsample_nearest_exact2d,
        aten.reflection_pad2d,
        aten.replication_pad2d,
    ),
    3: (
        aten.avg_pool3d,
        aten.max_pool3d,
        aten.max_pool3d_with_indices,
        aten._adaptive_avg_pool3d,
        aten.upsample_trilinear3d,
        aten.upsample_nearest3d,
    ),
}
_RANK_OF = {packet: rank for rank, packets in _RANK.items() for packet in packets}


@rule(*_RANK_OF)
def resample(op: OpCall, x: Tensor, *_: Any, **__: Any) -> None:
    """The last dimensions are positions."""
    rank = _RANK_OF[op.func.overloadpacket]
    vectors = op.vec(x)
    for v in vectors[-rank:]:
        op.freeze(v, "positions of a pooling or interpolation")
    for out in (t for t in tree_leaves(op.out) if isinstance(t, Tensor)):
        op.give((*vectors[:-rank], *(None,) * rank), out)


@rule(aten.grid_sampler)
def grid_sample(op: OpCall, x: Tensor, grid: Tensor, *_: Any) -> None:
    """(N, C, H, W) sampled at (N, h, w, 2); volumes likewise."""
    batch, channels, *positions = op.vec(x)
    op.couple(batch, op.vec(grid)[0])
    for v in (*positions, *op.vec(grid)[1:]):
        op.freeze(v, "positions of a grid sample")
    op.give((batch, channels, *(None for _ in positions)))
