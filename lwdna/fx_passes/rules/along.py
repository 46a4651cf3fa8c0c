"""Operators along named dimensions: those change as a whole, all others are carried."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lwdna.fx_passes.rules.registry import OpCall, dim_of, dims_of, rule
from lwdna.trees import tree_leaves

aten = torch.ops.aten


@rule(
    aten.sort,
    aten.topk,
    aten.kthvalue,
    aten.median,
    aten.nanmedian,
    aten.mode,
    aten.argmax,
    aten.argmin,
    aten._fft_r2c,
    aten._fft_c2r,
    aten._fft_c2c,
    aten.rot90,
)
def along(op: OpCall, x: Tensor, *_: Any, **__: Any) -> None:
    """Every result along the named dimensions depends on which entries are there, and where."""
    named = dims_of(op.argument("dims" if op.name == "rot90" else "dim"), x.dim())
    vectors = op.vec(x)
    for d in named:
        op.freeze(vectors[d], f"{op.name} depends on every entry")
    for out in (t for t in tree_leaves(op.out) if isinstance(t, Tensor)):
        keep = out.dim() == x.dim()
        op.give(
            tuple(
                None if d in named else v for d, v in enumerate(vectors) if keep or d not in named
            ),
            out,
        )


_NEUTRAL = {aten.cumsum: "zero", aten.cumprod: "one", aten.logcumsumexp: "-inf"}


@rule(*_NEUTRAL)
def scan(op: OpCall, x: Tensor, dim: int, **_: Any) -> None:
    """Running results: a removed entry contributes nothing to those after it."""
    op.mix(x, dim_of(dim, x.dim()), _NEUTRAL[op.func.overloadpacket])
    op.give(op.vec(x))


@rule(aten.tril, aten.triu)
def triangle(op: OpCall, x: Tensor, diagonal: int = 0) -> None:
    """Which entries of the last two dimensions survive depends on their positions."""
    *lead, rows, columns = op.vec(x)
    for v in (rows, columns):
        op.freeze(v, "rows and columns of a triangle")
    op.give((*lead, None, None))


@rule(aten.view_as_complex)
def view_as_complex(op: OpCall, x: Tensor) -> None:
    """The last dimension, of real and imaginary part, goes."""
    *lead, parts = op.vec(x)
    op.freeze(parts, "real and imaginary part")
    op.give(tuple(lead))


@rule(aten.view_as_real)
def view_as_real(op: OpCall, x: Tensor) -> None:
    """A last dimension of real and imaginary part comes."""
    op.give((*op.vec(x), None))
