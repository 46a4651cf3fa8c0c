"""Reductions: what is summed away, and what it means to remove some of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lwdna.fx_passes.rules.pointwise import pointwise
from lwdna.fx_passes.rules.registry import OpCall, dims_of, rule
from lwdna.trees import tree_leaves

aten = torch.ops.aten

_HOW = {
    aten.sum: "zero",
    aten.any: "zero",
    aten.linalg_vector_norm: "zero",
    aten.norm: "zero",
    aten.mean: "kept",
    aten.var: "kept",
    aten.std: "kept",
    aten.var_mean: "kept",
    aten.amax: "-inf",
    aten.max: "-inf",
    aten.logsumexp: "-inf",
    aten.amin: "inf",
    aten.min: "inf",
    aten.prod: "one",
    aten.all: "one",
}


@rule(*_HOW)
def reduce(op: OpCall, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """The reduced dimensions go; their channels are mixed."""
    if args and isinstance(args[0], Tensor):  # max(a, b) of two tensors
        pointwise(op, x, *args)
        return
    reduced = dims_of(op.argument("dim"), x.dim())
    for d in sorted(reduced):
        op.mix(x, d, _HOW[op.func.overloadpacket])
    keep = bool(op.argument("keepdim"))
    vectors = tuple(
        None if d in reduced else v for d, v in enumerate(op.vec(x)) if keep or d not in reduced
    )
    for out in (t for t in tree_leaves(op.out) if isinstance(t, Tensor)):
        op.give(vectors, out)
