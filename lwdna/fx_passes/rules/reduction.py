"""Reductions: what is summed away, and what it means to remove some of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lwdna.fx_passes.rules.pointwise import pointwise
from lwdna.fx_passes.rules.registry import OpCall, dim_of, rule

aten = torch.ops.aten

_HOW = {
    aten.sum: "zero",
    aten.linalg_vector_norm: "zero",
    aten.norm: "zero",
    aten.mean: "kept",
    aten.var: "kept",
    aten.std: "kept",
    aten.var_mean: "kept",
    aten.amax: "-inf",
    aten.max: "-inf",
    aten.logsumexp: "-inf",
}


@rule(*_HOW)
def reduce(op: OpCall, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """The reduced dimensions go; their channels are mixed."""
    if args and isinstance(args[0], Tensor):  # max(a, b) of two tensors
        pointwise(op, x, *args)
        return
    names = [argument.name for argument in op.func._schema.arguments[1:]]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    dims = given.get("dim")
    reduced = _dims(dims, x.dim())
    for d in sorted(reduced):
        op.mix(x, d, _HOW[op.func.overloadpacket])
    keep = bool(given.get("keepdim", False))
    vectors = tuple(
        None if d in reduced else v for d, v in enumerate(op.vec(x)) if keep or d not in reduced
    )
    for out in (t for t in tree_leaves(op.out) if isinstance(t, Tensor)):
        op.give(vectors, out)


def _dims(dims: Any, rank: int) -> set[int]:
    if dims is None or dims == []:
        return set(range(rank))
    return {dim_of(d, rank) for d in (dims if isinstance(dims, (list, tuple)) else [dims])}


@rule(aten.cumsum, aten.argmax, aten.argmin, aten.topk, aten.sort, aten.min, aten.amin, aten.prod)
def ordered(op: OpCall, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """Results that depend on which entries are there: nothing reduced may change."""
    if args and isinstance(args[0], Tensor):  # min(a, b) of two tensors
        pointwise(op, x, *args)
        return
    op.freeze_all(x, f"{op.name} depends on every entry")
    for out in (t for t in tree_leaves(op.out) if isinstance(t, Tensor)):
        op.give((None,) * out.dim(), out)
