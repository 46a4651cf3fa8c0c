"""Operators that only move entries: views, permutations, concatenation, slicing, padding."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lwdna.channels import Ids, Slot, Vector, Vectors
from lwdna.fx_passes.rules.registry import OpCall, dim_of, rule

aten = torch.ops.aten


@rule(
    aten.view,
    aten._unsafe_view,
    aten.reshape,
    aten.flatten,
    aten.unflatten,
    aten.squeeze,
    aten.unsqueeze,
)
def view(op: OpCall, x: Tensor, *_: Any, **__: Any) -> None:
    """Dimensions are merged and split in row-major order."""
    op.give(view_vectors(op, tuple(x.shape), op.vec(x), tuple(op.out.shape)))


def view_vectors(
    op: OpCall, old: tuple[int, ...], vectors: Vectors, new: tuple[int, ...]
) -> Vectors:
    """Channel vectors after a reshape: the finest blocks of equal volume are merged and split."""
    result: list[Vector] = []
    i = j = 0
    while i < len(old) or j < len(new):
        i0, j0 = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while prod(old[i0:i]) != prod(new[j0:j]):
            if (prod(old[i0:i]) < prod(new[j0:j]) and i < len(old)) or j == len(new):
                i += 1
            else:
                j += 1
        inner = [k for k in range(i0, i) if old[k] > 1]
        sizes = tuple(n for n in new[j0:j] if n > 1)
        if tuple(old[k] for k in inner) == sizes:
            parts: Vectors = tuple(vectors[k] for k in inner)
        else:
            whole = op.space.merge(
                tuple(old[k] for k in inner), tuple(vectors[k] for k in inner), op.node
            )
            parts = op.space.split(whole, sizes, op.node)
        following = iter(parts)
        result += [next(following) if n > 1 else None for n in new[j0:j]]
    return tuple(result)


@rule(aten.unsqueeze_)
def unsqueeze_(op: OpCall, x: Tensor, dim: int) -> None:
    """A dimension of one entry is put in; ``x`` has the new shape already."""
    vectors = list(op.vec(x))
    vectors.insert(dim_of(dim, x.dim()), None)
    op.give(tuple(vectors))


@rule(aten.squeeze_)
def squeeze_(op: OpCall, x: Tensor, dims: Any = None) -> None:
    """Dimensions of one entry are taken out; ``x`` has the new shape already."""
    old = op.vec(x)
    named = range(len(old)) if dims is None else [dims] if isinstance(dims, int) else dims
    candidates = [dim_of(d, len(old)) for d in named]
    gone = [d for d in candidates if old[d] is None]
    if len(gone) > len(old) - x.dim():  # some of them have several entries, none of them channels
        for vector in old:
            op.freeze(vector, "squeezed in place along an unknown dimension")
        op.give((None,) * x.dim())
    else:
        op.give(tuple(v for d, v in enumerate(old) if d not in gone))


@rule(aten.permute)
def permute(op: OpCall, x: Tensor, dims: Sequence[int]) -> None:
    """Vectors follow their dimensions."""
    op.give(tuple(op.vec(x)[d] for d in dims))


@rule(aten.transpose, aten.t, aten.swapaxes, aten.transpose_)
def transpose(op: OpCall, x: Tensor, dim0: int = 0, dim1: int = 1) -> None:
    """Two vectors change places."""
    vectors = list(op.vec(x))
    if len(vectors) > 1:
        vectors[dim0], vectors[dim1] = vectors[dim1], vectors[dim0]
    op.give(tuple(vectors))


@rule(aten.cat, aten.concat)
def cat(op: OpCall, tensors: Sequence[Tensor], dim: int = 0) -> None:
    """Vectors are concatenated along ``dim`` and united elsewhere."""
    tensors = [t for t in tensors if t.dim() == op.out.dim()]  # legacy: empty tensors of rank 1
    dim = dim_of(dim, op.out.dim())
    first = op.vec(tensors[0])
    for other in tensors[1:]:
        for d, (a, b) in enumerate(zip(first, op.vec(other), strict=True)):
            if d != dim:
                op.couple(a, b)
    joined = concatenate(op, [(op.vec(t)[dim], t.shape[dim]) for t in tensors])
    op.give((*first[:dim], joined, *first[dim + 1 :]))


def concatenate(op: OpCall, parts: Sequence[tuple[Vector, int]]) -> Vector:
    """Concatenated vector; fixed parts beside channels get frozen ids of their own."""
    if all(vector is None for vector, _ in parts):
        return None
    pieces: list[Ids] = []
    for vector, size in parts:
        if vector is None:
            vector = op.space.fresh(size, Slot(op.node, 0, "free"))
            op.freeze(vector, "fixed entries in a concatenation")
        if pieces:
            op.space.joint(pieces[-1], vector, op.node)
        pieces.append(vector)
    return np.concatenate(pieces)


@rule(aten.stack)
def stack(op: OpCall, tensors: Sequence[Tensor], dim: int = 0) -> None:
    """A new dimension of alternatives; all others unite."""
    first = op.vec(tensors[0])
    for other in tensors[1:]:
        for a, b in zip(first, op.vec(other), strict=True):
            op.couple(a, b)
    dim = dim_of(dim, op.out.dim())
    op.give((*first[:dim], None, *first[dim:]))


@rule(aten.unbind, aten.select)
def drop(op: OpCall, x: Tensor, dim: int = 0, *_: Any) -> None:
    """Entries are addressed one by one: the dimension is fixed, and goes."""
    dim = dim_of(dim, x.dim())
    vectors = op.vec(x)
    op.freeze(vectors[dim], "its entries are addressed one by one")
    for out in op.out if isinstance(op.out, (list, tuple)) else [op.out]:
        op.give((*vectors[:dim], *vectors[dim + 1 :]), out)


@rule(
    aten.split,
    aten.split_with_sizes,
    aten.unsafe_split,
    aten.unsafe_split_with_sizes,
    aten.chunk,
    aten.unsafe_chunk,
    aten.tensor_split,
)
def split(op: OpCall, x: Tensor, sizes: Any, dim: int = 0) -> None:
    """Consecutive parts of the vector."""
    dim = dim_of(dim, x.dim())
    vectors = op.vec(x)
    start = 0
    for out in op.out:
        part = _part(op, vectors[dim], start, start + out.shape[dim])
        op.give((*vectors[:dim], part, *vectors[dim + 1 :]), out)
        start += out.shape[dim]


@rule(aten.glu)
def glu(op: OpCall, x: Tensor, dim: int = -1) -> None:
    """The first half is gated by the second."""
    dim = dim_of(dim, x.dim())
    vectors, half = op.vec(x), x.shape[dim] // 2
    first, second = _part(op, vectors[dim], 0, half), _part(op, vectors[dim], half, 2 * half)
    op.couple(first, second)
    op.give((*vectors[:dim], first, *vectors[dim + 1 :]))


def _part(op: OpCall, vector: Vector, start: int, end: int) -> Vector:
    """Consecutive entries of a vector; a single one is fixed, as dimensions of one entry are."""
    if vector is None:
        return None
    for cut in {start, end} - {0, len(vector)}:
        op.space.joint(vector[:cut], vector[cut:], op.node)
    part = vector[start:end]
    if len(part) > 1:
        return part
    op.freeze(part, "a dimension of one entry")
    return None


@rule(aten.slice, aten.narrow)
def slice_(
    op: OpCall,
    x: Tensor,
    dim: int = 0,
    start: int | None = 0,
    end: int | None = None,
    step: int = 1,
) -> None:
    """A consecutive part, or one entry of every ``step`` (rotary embeddings)."""
    dim = dim_of(dim, x.dim())
    vectors = list(op.vec(x))
    size = x.shape[dim]
    if op.name == "narrow":
        assert start is not None and end is not None
        end = start + end
    first = 0 if start is None else _bound(start, size)
    last = size if end is None else _bound(end, size)
    if step != 1 and first < step and last == size and size % step == 0:
        vectors[dim], turn = op.space.split(vectors[dim], (size // step, step), op.node)
        op.freeze(turn, "one entry of every few is taken")
    elif step != 1:
        op.freeze(vectors[dim], "a stride takes some of its entries")
        vectors[dim] = None
    elif op.out.shape[dim] != size:
        vectors[dim] = _part(op, vectors[dim], first, last)
    op.give(tuple(vectors))


def _bound(position: int, size: int) -> int:
    return max(0, min(position + size if position < 0 else position, size))


@rule(aten.expand, aten.broadcast_to)
def expand(op: OpCall, x: Tensor, *_: Any, **__: Any) -> None:
    """A broadcast dimension fits any size."""
    lead = op.out.dim() - x.dim()
    old = ((None,) * lead + op.vec(x), (1,) * lead + tuple(x.shape))
    op.give(
        tuple(
            op.free(n, d) if n > 1 and size == 1 else v
            for d, (v, size, n) in enumerate(zip(*old, op.out.shape, strict=True))
        )
    )


@rule(aten.repeat, aten.tile)
def repeat(op: OpCall, x: Tensor, repeats: Sequence[int]) -> None:
    """The vector is tiled; a repeated single entry fits any size."""
    lead = op.out.dim() - x.dim()
    vectors = (None,) * lead + op.vec(x)
    sizes = (1,) * lead + tuple(x.shape)
    result: list[Vector] = []
    for d, (v, size, n) in enumerate(zip(vectors, sizes, op.out.shape, strict=True)):
        if size == 1 and n > 1:
            result.append(op.free(n, d))
        else:
            if v is not None and n > size:
                op.space.joint(v, v, op.node)
            result.append(None if v is None else np.tile(v, n // size))
    op.give(tuple(result))


@rule(aten.flip)
def flip(op: OpCall, x: Tensor, dims: Sequence[int]) -> None:
    """A reversed dimension is fixed: copies stand after their original, not before it."""
    for d in dims:
        op.freeze(op.vec(x)[d], "reversed")
    op.give(op.vec(x))


@rule(aten.roll)
def roll(op: OpCall, x: Tensor, shifts: Any, dims: Sequence[int] = ()) -> None:
    """A dimension that is rolled by a number of entries is fixed."""
    rolled = {dim_of(d, x.dim()) for d in dims} if dims else set(range(x.dim()))
    for d in rolled:
        op.freeze(op.vec(x)[d], "rolled by a number of entries")
    op.give(op.vec(x))


@rule(aten.constant_pad_nd)
def pad(op: OpCall, x: Tensor, pad: Sequence[int], value: float = 0) -> None:
    """Padding adds fixed entries; cropping keeps a part."""
    vectors = list(op.vec(x))
    for k in range(len(pad) // 2):
        d = x.dim() - 1 - k
        before, after = pad[2 * k], pad[2 * k + 1]
        if vectors[d] is None or (before == 0 and after == 0):
            continue
        if before < 0 or after < 0:
            op.freeze(vectors[d], "cropped by a negative padding")
            vectors[d] = None
        else:
            vectors[d] = concatenate(op, [(None, before), (vectors[d], x.shape[d]), (None, after)])
    op.give(tuple(vectors))
