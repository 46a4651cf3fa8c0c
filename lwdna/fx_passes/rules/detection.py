"""Operators of torchvision's detectors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lwdna.fx_passes.rules.registry import OpCall, rule


# By name: whoever calls them has imported torchvision.
@rule("torchvision::roi_align", "torchvision::roi_pool")
def pool_regions(op: OpCall, x: Tensor, rois: Tensor, *_: Any, **__: Any) -> None:
    """(N, C, H, W) pooled at K boxes (K, 5): (K, C, h, w)."""
    batch, channels, *positions = op.vec(x)
    for v in (batch, *positions, *op.vec(rois)):
        op.freeze(v, "positions of a region of interest")
    for out in op.out if isinstance(op.out, tuple) else (op.out,):
        op.give((None, channels, None, None), out)
