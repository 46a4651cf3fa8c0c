"""Pointwise operators, copies, and tensors without content of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lwdna.channels import Vector
from lwdna.fx_passes.rules.registry import OpCall, rule
from lwdna.trees import tree_leaves

aten = torch.ops.aten


@rule(
    aten.add,  # also stands for everything tagged torch.Tag.pointwise
    aten.hardswish,
    aten.hardswish_,
    aten.clone,
    aten.contiguous,
    aten.detach,
    aten.alias,
    aten._to_copy,
    aten.copy_,
    aten.floor_divide,
    aten.celu_,
    aten.native_dropout,
    aten.bernoulli,
    aten.bernoulli_,
    aten.empty_like,
    aten.zeros_like,
    aten.ones_like,
    aten.full_like,
    aten.rand_like,
    aten.randn_like,
    aten.fill_,
    aten.zero_,
    aten.normal_,
    aten.uniform_,
)
def pointwise(op: OpCall, *args: Any, **kwargs: Any) -> None:
    """Equal dimensions unite; a dimension of one entry is broadcast and says nothing."""
    inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    for out in (t for t in tree_leaves(op.out) if isinstance(t, Tensor)):
        op.give(tuple(_joined(op, inputs, out, dim) for dim in range(out.dim())), out)


@rule(aten.prelu)
def prelu(op: OpCall, x: Tensor, weight: Tensor) -> None:
    """One slope for all, or one per channel (dimension 1)."""
    if weight.numel() > 1:
        op.couple(op.vec(x)[1], op.vec(weight)[0])
    op.give(op.vec(x))


def _joined(op: OpCall, inputs: list[Tensor], out: Tensor, dim: int) -> Vector:
    from_right = dim - out.dim()
    size = out.shape[dim]
    if size == 1:
        return None
    vectors = [
        op.vec(t)[from_right]
        for t in inputs
        if t.dim() >= -from_right and t.shape[from_right] == size
    ]
    for other in vectors[1:]:
        op.couple(vectors[0], other)
    if any(v is None for v in vectors):
        return None
    return vectors[0] if vectors else None


@rule(
    aten.zeros,
    aten.ones,
    aten.full,
    aten.empty,
    aten.rand,
    aten.randn,
    aten.new_zeros,
    aten.new_ones,
    aten.new_full,
    aten.new_empty,
)
def factory(op: OpCall, *args: Any, **kwargs: Any) -> None:
    """Constant or random content fits any size: the dimensions are free until they meet others."""
    op.give(tuple(op.free(n, d) if n > 1 else None for d, n in enumerate(op.out.shape)))


@rule(
    aten.arange,
    aten.linspace,
    aten.scalar_tensor,
    aten.eye,
    aten.randint,
    aten.randperm,
    aten.tril_indices,
    aten.triu_indices,
    aten.hann_window,
)
def positional(op: OpCall, *args: Any, **kwargs: Any) -> None:
    """The content depends on the index: nothing may be re-indexed."""
    for out in (t for t in tree_leaves(op.out) if isinstance(t, Tensor)):
        op.give((None,) * out.dim(), out)
