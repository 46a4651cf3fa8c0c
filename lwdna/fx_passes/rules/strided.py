"""Views by strides, sliding windows among them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lwdna.fx_passes.rules.movement import view_vectors
from lwdna.fx_passes.rules.registry import OpCall, dim_of, rule

aten = torch.ops.aten
_REASON = "a view by strides other than a reshape"


@rule(aten.unfold)
def unfold(op: OpCall, x: Tensor, dimension: int, *_: Any) -> None:
    """Windows slide along one dimension; their entries become a last dimension."""
    vectors = list(op.vec(x))
    d = dim_of(dimension, x.dim())
    op.freeze(vectors[d], "windows slide along it")
    vectors[d] = None
    op.give((*vectors, None))


@rule(aten.as_strided)
def as_strided(op: OpCall, x: Tensor, *_: Any, **__: Any) -> None:
    """A reshape, if the same entries are addressed in row-major order; else nothing may change."""
    same = x.numel() == op.out.numel() and x.storage_offset() == op.out.storage_offset()
    if same and x.is_contiguous() and op.out.is_contiguous():
        op.give(view_vectors(op, tuple(x.shape), op.vec(x), tuple(op.out.shape)))
    else:
        op.freeze_all(x, _REASON)
        op.give((None,) * op.out.dim())


@rule(aten.as_strided_)
def as_strided_(op: OpCall, x: Tensor, *_: Any, **__: Any) -> None:
    """Restrides in place; ``x`` has the new shape already.

    The strides that it had are lost, so the channels are known to stay in order only where one
    dimension has all of them and keeps its place (a global pooling in the channels-last layout).
    """
    old = op.vec(x)
    live = [d for d, v in enumerate(old) if v is not None]
    kept = [len(v) == n for v, n in zip(old, x.shape, strict=False) if v is not None]
    whole = x.untyped_storage().nbytes() == x.numel() * x.element_size()
    if whole and x.is_contiguous() and len(old) == x.dim() and len(live) == 1 and all(kept):
        op.give(old)
    else:
        for v in old:
            op.freeze(v, _REASON)
        op.give((None,) * x.dim())
