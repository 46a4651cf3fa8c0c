"""Products: entries that live where several axes of a rectangle cross.

If the heads and the head_dim of an attention may both change, entry (h, d) of its flattened
dimension has ``copies[h] * copies[d]`` copies: it is a *product* with the *factors* h and d. The
functions here keep the products of a :class:`ChannelSpace` consistent while its choice points are
resolved:

- a frozen product has frozen factors, and a product without free factors is frozen;
- a product with one free factor is that factor;
- products of the same factors, in the same order, are one unit;
- one unit that is a product twice, through rectangles of equal shape, has equal factors. Through
  rectangles of unequal shapes it cannot have all their axes: one of them must give way;
- a unit that is a product of itself leaves its other factors no choice.

The order of the factors is the layout of the entries, outermost axis first: entries of h × d and
of d × h have equal copies, which stand in different places.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lwdna.channels import ChannelSpace, Ids, Products, Rectangle


@dataclass(frozen=True, eq=False)
class _Table:
    """The entries of all multiplied rectangles.

    Attributes:
        rectangle: which one each entry is of, shape (N,).
        whole: representative of the entry, (N,).
        axes: representatives of its position on each axis that can change, -1 beyond the last,
            (N, K).
        factors: those of them that are not frozen, outermost first, -1 beyond the last; a factor
            that is a product itself is replaced by its own, (N, R).
        shape: equal for rectangles whose axes that can change have equal sizes, (N,).
    """

    rectangle: NDArray[np.int64]
    whole: Ids
    axes: Ids
    factors: Ids
    shape: NDArray[np.int64]

    @property
    def rank(self) -> NDArray[np.int64]:
        """Number of factors of each entry, (N,)."""
        rank: NDArray[np.int64] = (self.factors >= 0).sum(axis=1)
        return rank


def _table(space: ChannelSpace) -> _Table:
    live = [[a for a in r.axes if not space.frozen(a).all()] for r in space.multiplied]
    sizes = [len(r.whole) for r in space.multiplied]
    axes = np.full((sum(sizes), max(map(len, live))), -1, dtype=np.int64)
    start = 0
    for r, own in zip(space.multiplied, live, strict=True):
        column = 0
        for axis, ids in zip(r.axes, np.meshgrid(*r.axes, indexing="ij"), strict=True):
            if any(axis is a for a in own):
                axes[start : start + len(r.whole), column] = space.find(ids.reshape(-1))
                column += 1
        start += len(r.whole)
    whole = space.find(np.concatenate([r.whole for r in space.multiplied]))
    free = np.where((axes < 0) | space.frozen(np.maximum(axes, 0)), -1, axes)
    shapes: dict[tuple[int, ...], int] = {}
    shape = [shapes.setdefault(tuple(map(len, own)), len(shapes)) for own in live]
    return _Table(
        rectangle=np.repeat(np.arange(len(sizes)), sizes),
        whole=whole,
        axes=axes,
        factors=_expanded(space.size, whole, _packed(free)),
        shape=np.repeat(np.array(shape, dtype=np.int64), sizes),
    )


def _packed(factors: Ids) -> Ids:
    """Rows with their -1 at the end, without columns of -1 alone."""
    order = np.argsort(factors < 0, axis=1, kind="stable")
    packed = np.take_along_axis(factors, order, axis=1)
    return packed[:, (packed >= 0).any(axis=0)]


def _expanded(size: int, whole: Ids, factors: Ids) -> Ids:
    """Factors that are products replaced by theirs, unless an entry comes to contain itself."""
    row_of = np.full(size, -1, dtype=np.int64)
    multiple = np.flatnonzero((factors >= 0).sum(axis=1) > 1)
    row_of[whole[multiple[::-1]]] = multiple[::-1]  # the first row of each unit
    while not (factors == whole[:, None]).any():
        rows = np.where(factors >= 0, row_of[factors], -1)
        column = int(np.argmax((rows >= 0).any(axis=0))) if rows.size else 0
        inner = np.where((rows[:, column] >= 0)[:, None], factors[rows[:, column]], -1)
        if not (inner >= 0).any():
            break
        kept = np.where(rows[:, column] >= 0, -1, factors[:, column])[:, None]
        factors = _packed(
            np.concatenate([factors[:, :column], kept, inner, factors[:, column + 1 :]], axis=1)
        )
    return factors


def close(space: ChannelSpace) -> bool:
    """One round of the rules above, save for giving way; whether one of them had an effect."""
    if not space.multiplied:
        return False
    before = space.changes
    table = _table(space)
    for rule in (_carry_fixed, _unroll, _collapse, _equal_factors, _equal_products):
        rule(space, table)
        if space.changes > before:
            return True
    return False


def _carry_fixed(space: ChannelSpace, table: _Table) -> None:
    fixed = space.frozen(table.whole)
    _freeze(space, table, fixed, table.factors[fixed], "factor of a fixed dimension")
    free = table.rank == 0
    _freeze(space, table, free, table.whole[free, None], "part of a fixed dimension")


def _unroll(space: ChannelSpace, table: _Table) -> None:
    """A unit that is a product of itself: copies = copies · others, so the others have one."""
    itself = table.factors == table.whole[:, None]
    rows = itself.any(axis=1) & (table.rank > 1)
    once = rows & (itself.sum(axis=1) == 1)  # twice: c = c · c, so its own copies are one, too
    others = np.where(itself & once[:, None], -1, table.factors)
    _freeze(space, table, rows, others[rows], "factor of a product of itself")


def _freeze(
    space: ChannelSpace, table: _Table, rows: NDArray[np.bool_], ids: Ids, reason: str
) -> None:
    """Freeze ids (rows, any) that are not -1, at the node of each rectangle."""
    of = table.rectangle[rows]
    for k in np.unique(of).tolist():
        mine = ids[of == k]
        space.freeze(np.unique(mine[mine >= 0]), reason, space.multiplied[k].node)


def _collapse(space: ChannelSpace, table: _Table) -> None:
    single = table.rank == 1
    if single.any():
        _unite(space, table, table.whole[single], table.factors[single, 0], single)


def _unite(space: ChannelSpace, table: _Table, a: Ids, b: Ids, rows: NDArray[np.bool_]) -> None:
    """Unite ids of the rows, with the node of each rectangle as the cause."""
    of = table.rectangle[rows]
    apart = a != b
    for k in np.unique(of[apart]).tolist():
        mine = apart & (of == k)
        space.unite(a[mine], b[mine], space.multiplied[k].node, "reshape")


def _equal_factors(space: ChannelSpace, table: _Table) -> None:
    """Entries with the same factors are one unit."""
    several = table.rank > 1
    _, first, inverse = np.unique(
        table.factors[several], axis=0, return_index=True, return_inverse=True
    )
    whole = table.whole[several]
    _unite(space, table, whole, whole[first[inverse.reshape(-1)]], several)


def _equal_products(space: ChannelSpace, table: _Table) -> None:
    """One unit in two rectangles of equal shape: its positions on each axis are one unit."""
    first = _first_rows(table)
    several = (table.rank > 1) & (table.factors != table.factors[first]).any(axis=1)
    alike = several & (table.shape == table.shape[first])
    for k in range(table.axes.shape[1]):
        rows = alike & (table.axes[:, k] >= 0)
        _unite(space, table, table.axes[first[rows], k], table.axes[rows, k], rows)


def clash(space: ChannelSpace) -> tuple[Rectangle, Rectangle] | None:
    """A rectangle that must give way, and the one of another shape that its entries are of."""
    if not space.multiplied:
        return None
    table = _table(space)
    first = _first_rows(table)
    differ = (table.rank > 1) & (table.factors != table.factors[first]).any(axis=1)
    if not differ.any():
        return None
    row = int(np.argmax(differ))
    later, earlier = table.rectangle[row], table.rectangle[first[row]]
    return space.multiplied[int(later)], space.multiplied[int(earlier)]


def _first_rows(table: _Table) -> NDArray[np.int64]:
    """Row of the first entry with several factors that is the same unit, (N,)."""
    order = np.lexsort((np.arange(len(table.whole)), table.rank < 2, table.whole))
    _, start, inverse = np.unique(table.whole[order], return_index=True, return_inverse=True)
    first = np.empty_like(order)
    first[order] = order[start[inverse.reshape(-1)]]
    return first


def listed(space: ChannelSpace) -> Products:
    """The products of a settled space."""
    if not space.multiplied:
        return Products(np.zeros(0, np.int64), np.zeros((0, 0), np.int64))
    table = _table(space)
    several = table.rank > 1
    units, first = np.unique(table.whole[several], return_index=True)
    return Products(units, table.factors[several][first])


def outermost(space: ChannelSpace, found: Products, ids: Ids) -> Ids:
    """Representative of the outermost factor of each id; of the id itself if it is no product.

    Args:
        space: a space.
        found: its products (:func:`listed`).
        ids: any ids of it.
    """
    roots = space.find(ids)
    if not len(found.units):
        return roots
    at = np.minimum(np.searchsorted(found.units, roots), len(found.units) - 1)
    result: Ids = np.where(found.units[at] == roots, found.factors[at, 0], roots)
    return result
