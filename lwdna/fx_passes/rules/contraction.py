"""Convolutions and matrix products: the operators that cost MACs."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from lwdna.channels import Slot, Vector
from lwdna.fx_passes.rules.registry import OpCall, rule

aten = torch.ops.aten


@rule(aten.convolution)
def convolution(
    op: OpCall,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> None:
    """Any convolution: plain, grouped, depthwise, transposed; weights may be computed."""
    batch, channels, *spatial = op.vec(x)
    w_first, w_second, *kernel = op.vec(weight)
    for v in kernel:
        op.freeze(v, "kernel position")
    carried = tuple(_along(op, x, d + 2, v) for d, v in enumerate(spatial))
    # (in, out/g, ...) transposed, (out, in/g, ...) otherwise: one side is whole, one is per group.
    whole_in, whole_out = (w_first, None) if transposed else (None, w_first)
    out_channels = op.out.shape[1]
    if groups == 1:
        op.couple(channels, whole_in if transposed else w_second)
        out = w_second if transposed else whole_out
    else:
        if transposed:
            op.couple(channels, whole_in)
            channels = whole_in if channels is None else channels
            out = op.space.fresh(out_channels, Slot(op.node, 1, "axis"))
        else:
            out = whole_out
        out = _grouped(op, groups, channels, x.shape[1], out, out_channels, w_second, transposed)
    if bias is not None:
        op.couple(out, op.vec(bias)[0])
    op.give((batch, out if out_channels > 1 else None, *carried))
    op.mix(x, 1, "zero")
    taps = prod(weight.shape[2:])
    positions = x if transposed else op.out
    op.recorder.add_term(
        "conv",
        taps
        * prod(
            n for n, v in zip(positions.shape[2:], op.vec(positions)[2:], strict=True) if v is None
        )
        * (weight.shape[0] if w_first is None else 1)
        * (weight.shape[1] if w_second is None else 1)
        * (positions.shape[0] if batch is None else 1),
        (batch, w_first, w_second, *op.vec(positions)[2:]),
    )
    _activations(op, tuple(op.out.shape), op.vec(op.out))
    op.recorder.add_role(weight, int(transposed), int(not transposed), taps)


def _along(op: OpCall, x: Tensor, dim: int, vector: Vector) -> Vector:
    """Channels that lie along a spatial dimension (ECA): kept if positions map one to one."""
    if vector is None:
        return None
    if op.out.shape[dim] != x.shape[dim]:
        op.freeze(vector, "a convolution slides along the channels and changes their number")
        return None
    op.mix(x, dim, "kept")
    return vector


def _grouped(
    op: OpCall,
    groups: int,
    channels: Vector,
    n_in: int,
    out: Vector,
    n_out: int,
    per_group: Vector,
    transposed: bool,
) -> Vector:
    """Whole groups, or the same positions in every group: a choice point on both sides."""
    in_group, in_width = op.space.split(channels, (groups, n_in // groups), op.node)
    out_group, out_width = op.space.split(out, (groups, n_out // groups), op.node)
    op.couple(in_group, out_group)
    op.couple(out_width if transposed else in_width, per_group)
    op.recorder.add_fact("groups", in_group)
    return out


@rule(aten.linear)
def linear(op: OpCall, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    """Inputs (..., in) · weight (out, in)ᵀ + bias (out)."""
    *lead, channels = op.vec(x)
    out, features = op.vec(weight)
    op.couple(channels, features)
    if bias is not None:
        op.couple(out, op.vec(bias)[0])
    op.give((*lead, out))
    op.mix(x, x.dim() - 1, "zero")
    product(op, "linear", (*x.shape, weight.shape[0]), (*lead, channels, out))
    _activations(op, tuple(op.out.shape), op.vec(op.out))
    op.recorder.add_role(weight, 0, 1, 1)


def product(op: OpCall, kind: Any, sizes: tuple[int, ...], vectors: tuple[Vector, ...]) -> None:
    """A cost term: the product of all sizes, of which those with a vector may change."""
    fixed = prod(n for n, v in zip(sizes, vectors, strict=True) if v is None)
    op.recorder.add_term(kind, fixed, vectors)


def _activations(op: OpCall, sizes: tuple[int, ...], vectors: tuple[Vector, ...]) -> None:
    """The elements of one result, of these sizes."""
    product(op, "activations", sizes, vectors)


@rule(aten.mm, aten.bmm)
def matmul(op: OpCall, a: Tensor, b: Tensor, bias: Tensor | None = None) -> None:
    """(..., n, k) · (..., k, m)."""
    *batch_a, rows, inner_a = op.vec(a)
    *batch_b, inner_b, columns = op.vec(b)
    for v, w in zip((*batch_a, inner_a), (*batch_b, inner_b), strict=True):
        op.couple(v, w)
    op.freeze_addresses(inner_a, (a, b))
    out = (*batch_a, rows, columns)
    if bias is not None:
        for k, v in enumerate(reversed(op.vec(bias)), 1):
            if bias.shape[-k] > 1:
                op.couple(out[-k], v)
    op.give(out)
    op.mix(a, a.dim() - 1, "zero")
    op.mix(b, b.dim() - 2, "zero")
    kind = "linear" if a.dim() == 2 else "matmul"
    product(op, kind, (*a.shape, b.shape[-1]), (*op.vec(a), columns))
    _activations(op, tuple(op.out.shape), op.vec(op.out))
    if all(v is None for v in batch_a):  # either operand may be a weight
        op.recorder.add_role(b, b.dim() - 1, b.dim() - 2, 1)
        op.recorder.add_role(a, a.dim() - 2, a.dim() - 1, 1)


@rule(aten.mv, aten.dot, aten.vdot)
def vector_product(op: OpCall, a: Tensor, b: Tensor) -> None:
    """Matrix (n, k) · vector (k), or vector (k) · vector (k): power iterations, no layers."""
    *rows, inner = op.vec(a)
    op.couple(inner, op.vec(b)[0])
    op.mix(a, a.dim() - 1, "zero")
    op.give(tuple(rows))


@rule(aten._trilinear)
def trilinear(
    op: OpCall,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    expand_a: list[int],
    expand_b: list[int],
    expand_c: list[int],
    summed: list[int],
    unroll_dim: int = 1,
) -> None:
    """Three factors with dimensions of size 1 inserted, multiplied, and summed over ``summed``.

    ``nn.Bilinear``: inputs (B, in1) and (B, in2) and a weight (out, in1, in2). Like PyTorch's own
    counter, which has no formula for the operator, we count no MACs.

    Source: ``_trilinear`` in ATen/native/Linear.cpp.
    """
    met: dict[int, Vector] = {}
    for t, expanded in ((a, expand_a), (b, expand_b), (c, expand_c)):
        dims = [d for d in range(t.dim() + len(expanded)) if d not in expanded]
        for k, (d, v) in enumerate(zip(dims, op.vec(t), strict=True)):
            if t.shape[k] == 1:
                continue
            op.couple(met.setdefault(d, v), v)
            if d in summed:
                op.mix(t, k, "zero")
    rank = a.dim() + len(expand_a)
    op.give(tuple(met.get(d) for d in range(rank) if d not in summed))


@rule(aten._cdist_forward)
def distance(op: OpCall, a: Tensor, b: Tensor, *_: Any) -> None:
    """Distances of rows: (..., n, k) and (..., m, k) -> (..., n, m)."""
    *batch, rows, inner = op.vec(a)
    *batch_b, rows_b, inner_b = op.vec(b)
    for v, w in zip((*batch, inner), (*batch_b, inner_b), strict=True):
        op.couple(v, w)
    op.mix(a, a.dim() - 1, "zero")
    op.mix(b, b.dim() - 1, "zero")
    op.give((*batch, rows, rows_b))


@rule(aten.addmm, aten.baddbmm)
def matmul_with_bias(op: OpCall, bias: Tensor, a: Tensor, b: Tensor, **_: Any) -> None:
    """Bias + a · b."""
    matmul(op, a, b, bias)


@rule(aten.scaled_dot_product_attention)
def attention(
    op: OpCall,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> None:
    """softmax(q (..., L, E) · k (..., S, E)ᵀ · scale + mask) · v (..., S, Ev).

    A key or value of one head is broadcast. With ``enable_gqa``, consecutive heads of the query
    share one head of keys and values: the query's heads are a rectangle of those and of their
    number per head.

    The scale stays what it is for the original E: removing entries of E removes products, it does
    not rescale the others.
    """
    *batch, queries, width = op.vec(query)
    *batch_k, keys, width_k = op.vec(key)
    *batch_v, keys_v, out = op.vec(value)
    op.couple(width, width_k)
    op.couple(keys, keys_v)
    for shared, given in ((key, batch_k), (value, batch_v)):
        for d, v in enumerate(given):
            heads, theirs = query.shape[d], shared.shape[d]
            if heads == theirs:
                op.couple(batch[d], v)
            elif theirs > 1:  # grouped queries
                op.couple(op.space.split(batch[d], (theirs, heads // theirs), op.node)[0], v)
    op.freeze(keys, "attention positions")
    if attn_mask is not None:
        target = (*batch, queries, keys)
        for k, v in enumerate(reversed(op.vec(attn_mask)), 1):
            if attn_mask.shape[-k] > 1:
                op.couple(target[-k], v)
    op.give((*batch, queries, out))
    op.mix(query, query.dim() - 1, "zero")
    lead = tuple(op.out.shape[:-1])
    sizes = (*lead, key.shape[-2])
    product(op, "matmul", (*sizes, query.shape[-1]), (*batch, queries, None, width))
    product(op, "matmul", (*sizes, value.shape[-1]), (*batch, queries, None, out))
    # Two products: the scores (..., L, S), whether or not the kernel stores them, and the output.
    _activations(op, sizes, (*batch, queries, None))
    _activations(op, tuple(op.out.shape), op.vec(op.out))
