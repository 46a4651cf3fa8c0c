"""Normalisation layers and softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lwdna.fx_passes.rules.registry import OpCall, dim_of, rule

aten = torch.ops.aten


@rule(aten.batch_norm)
def batch_norm(
    op: OpCall,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    *_: Any,
) -> None:
    """One statistic per channel; only batch statistics can mix other channels in."""
    vectors = op.vec(x)
    for p in (weight, bias, running_mean, running_var):
        if p is not None:
            op.couple(vectors[1], op.vec(p)[0])
    if training:
        for d in range(x.dim()):
            if d != 1:
                op.mix(x, d, "kept")
    op.give(vectors)
    if weight is not None and op.recorder.origin(x) is None:
        fixed = 2
        for n, v in zip(op.out.shape, vectors, strict=True):
            fixed *= n if v is None else 1
        op.recorder.add_term("norm", fixed, vectors)


@rule(aten.layer_norm, aten.rms_norm)
def layer_norm(
    op: OpCall,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Any = None,
    *_: Any,
) -> None:
    """Statistics over the last dimensions: of the kept entries once some are removed."""
    vectors = op.vec(x)
    first = x.dim() - len(normalized_shape)
    for p in (weight, bias):
        if isinstance(p, Tensor):
            for v, w in zip(vectors[first:], op.vec(p), strict=True):
                op.couple(v, w)
    for d in range(first, x.dim()):
        op.mix(x, d, "kept")
    op.give(vectors)


@rule(aten.group_norm)
def group_norm(
    op: OpCall,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: Any,
) -> None:
    """Statistics per group of channels: whole groups, or the same positions in every group."""
    vectors = op.vec(x)
    for p in (weight, bias):
        if p is not None:
            op.couple(vectors[1], op.vec(p)[0])
    groups, _width = op.space.split(vectors[1], (num_groups, x.shape[1] // num_groups), op.node)
    if num_groups > 1:
        op.recorder.add_fact("num_groups", groups)
    for d in range(1, x.dim()):
        op.mix(x, d, "kept")
    op.give(vectors)


@rule(aten.softmax, aten.log_softmax)
def softmax(op: OpCall, x: Tensor, dim: int, *_: Any, **__: Any) -> None:
    """Removed entries get no weight."""
    op.mix(x, dim_of(dim, x.dim()), "-inf")
    op.give(op.vec(x))


@rule(aten._weight_norm_interface)
def weight_norm(op: OpCall, v: Tensor, g: Tensor, dim: int = 0) -> None:
    """Direction times length; the length is that of the kept entries once some are removed."""
    vectors = op.vec(v)
    op.couple(vectors[dim], op.vec(g)[dim])
    for d in range(v.dim()):
        if d != dim:
            op.mix(v, d, "kept")
    weight, norms = op.out
    op.give(vectors, weight)
    op.give(tuple(w if d == dim else None for d, w in enumerate(vectors)), norms)
