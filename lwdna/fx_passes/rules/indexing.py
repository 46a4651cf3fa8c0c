"""Look-ups: what is addressed by an index is fixed, the rest passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lwdna.channels import Vector
from lwdna.fx_passes.rules.registry import OpCall, dim_of, rule

aten = torch.ops.aten
_ADDRESSED = "its entries are addressed by an index"


@rule(aten.index)
def index(op: OpCall, x: Tensor, indices: Sequence[Tensor | None]) -> None:
    """Advanced indexing: the indexed dimensions are replaced by the index's own."""
    op.give(_selected(op, x, indices))


def _selected(op: OpCall, x: Tensor, indices: Sequence[Tensor | None]) -> tuple[Vector, ...]:
    """Vectors of ``x[indices]``; the addressed dimensions are frozen."""
    addressed: list[int] = []
    position = rank = 0
    for i in indices:
        covered = 1
        if i is not None:
            mask = i.dtype in (torch.bool, torch.uint8)
            covered = i.dim() if mask else 1
            rank = max(rank, 1 if mask else i.dim())
            addressed += range(position, position + covered)
            op.freeze_all(i, "positions")
        position += covered
    vectors = op.vec(x)
    for d in addressed:
        op.freeze(vectors[d], _ADDRESSED)
    rest = [v for d, v in enumerate(vectors) if d not in addressed]
    adjacent = addressed == list(range(addressed[0], addressed[-1] + 1))
    at = addressed[0] if adjacent else 0
    return (*rest[:at], *(None,) * rank, *rest[at:])


@rule(aten.index_select)
def index_select(op: OpCall, x: Tensor, dim: int, index: Tensor) -> None:
    """One dimension is addressed."""
    dim = dim_of(dim, x.dim())
    vectors = list(op.vec(x))
    op.freeze(vectors[dim], _ADDRESSED)
    vectors[dim] = None
    op.give(tuple(vectors))


@rule(aten.embedding)
def embedding(op: OpCall, weight: Tensor, indices: Tensor, *_: Any) -> None:
    """Rows are addressed, columns are channels."""
    rows, columns = op.vec(weight)
    op.freeze(rows, _ADDRESSED)
    op.freeze_all(indices, "positions")
    op.give((*(None,) * indices.dim(), columns))


@rule(aten.gather, aten.scatter, aten.scatter_add)
def gather(op: OpCall, x: Tensor, dim: int, index: Tensor, *values: Any, **_: Any) -> None:
    """Each entry of ``index`` addresses along ``dim``, beside entries of its own position."""
    dim = dim_of(dim, x.dim())
    sources = [t for t in (index, *values) if isinstance(t, Tensor) and t.dim() == x.dim()]
    for d, vector in enumerate(op.vec(x)):
        for source in sources:
            if d == dim or source.shape[d] != x.shape[d]:
                op.freeze(vector, _ADDRESSED)
                op.freeze(op.vec(source)[d], _ADDRESSED)
            else:
                op.couple(vector, op.vec(source)[d])
    first = index if op.name == "gather" else x
    op.give(
        tuple(
            None if d == dim or op.out.shape[d] != x.shape[d] else v
            for d, v in enumerate(op.vec(first))
        )
    )


@rule(aten.index_put, aten.index_put_)
def index_put(
    op: OpCall, x: Tensor, indices: Sequence[Tensor | None], values: Tensor, *_: Any, **__: Any
) -> None:
    """Values take the place of what :func:`index` would give; the rest of ``x`` stays."""
    replaced = _selected(op, x, indices)
    for d in range(1, values.dim() + 1):
        if values.shape[-d] > 1:
            op.couple(replaced[-d], op.vec(values)[-d])
    op.give(op.vec(x))
