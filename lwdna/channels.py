"""Channel units, channel vectors and the rules of living and dying together.

Every index of a tensor dimension that carries channels has an integer id. Ids that must be kept or
removed together are united in a union-find; what is left are the *channel units*. A *channel
vector* is the array of ids of one dimension, or ``None`` for a dimension that nothing can change
(batch, positions, image channels reached through a reshape ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Vector = Ids | None
Vectors = tuple[Vector, ...]
Policy = str | Mapping[str, str | int]


@dataclass(frozen=True)
class Slot:
    """One dimension of a parameter or buffer, or one axis that a reshape opened.

    Attributes:
        name: qualified tensor name, or the graph node's name for an axis.
        dim: dimension of the tensor, or position of the axis.
        kind: ``"parameter"``, ``"buffer"``, ``"axis"`` (of a reshape) or ``"free"`` (of a tensor
            with no content of its own, such as ``torch.zeros``).
    """

    name: str
    dim: int
    kind: Literal["parameter", "buffer", "axis", "free", "input"] = "parameter"

    def __str__(self) -> str:
        return f"{self.name}[{self.dim}]"


@dataclass(frozen=True)
class Coupling:
    """Ids ``a[i]`` and ``b[i]`` live and die together because of operator ``op`` at ``node``."""

    a: Ids
    b: Ids
    node: str
    op: str


@dataclass(frozen=True)
class Freeze:
    """The ids can neither be removed nor widened, for ``reason`` at ``node``."""

    ids: Ids
    reason: str
    node: str


@dataclass(frozen=True)
class Rectangle:
    """``whole`` is the row-major flattening of the outer product of several axes.

    Removing entries keeps it a rectangle only if whole slices are removed: along one axis, or
    along several whose products the entries then are. Which is a *choice point* (heads or
    head_dim, groups or the width within a group).
    """

    whole: Ids
    sizes: tuple[int, ...]
    axes: tuple[Ids, ...]
    node: str


@dataclass(frozen=True)
class ChoicePoint:
    """A resolved rectangle: the axis (position among ``sizes``) that may change, or several.

    Attributes:
        node: graph node of the reshape or grouped operator.
        sizes: lengths of the axes, outermost first.
        candidates: positions that could have been chosen.
        chosen: the position that was chosen, ``"both"`` if several axes may change, or ``None`` if
            all are frozen.
        decided: what the policy came to, if there was a choice, as a policy that decides so again;
            some of it may have been frozen for other reasons since.
    """

    node: str
    sizes: tuple[int, ...]
    candidates: tuple[int, ...]
    chosen: int | Literal["both"] | None
    decided: int | str | None = None


@dataclass(frozen=True)
class Products:
    """Units whose copies are the product of the copies of others.

    Attributes:
        units: representatives of the products, shape (P,).
        factors: representatives of the factors of each, the outermost axis first, -1 beyond the
            last, shape (P, R). No factor is a product itself.
    """

    units: Ids
    factors: Ids


def _same(a: Ids, b: Ids) -> bool:
    """``np.array_equal``, which takes five times as long on vectors of a few hundred ids."""
    return a.tobytes() == b.tobytes()


class ChannelSpace:
    """Union-find over channel ids, with the cause of every coupling kept.

    All operations are vectorised: the cost is in the number of calls, not of channels.
    """

    def __init__(self) -> None:
        self._parent = np.zeros(1024, dtype=np.int64)
        self._frozen = np.zeros(1024, dtype=bool)
        self._owner = np.zeros(1024, dtype=np.int64)
        self.size = 0
        self.slots: list[Slot] = []
        self.couplings: list[Coupling] = []
        self.freezes: list[Freeze] = []
        self.rectangles: list[Rectangle] = []
        self.choices: list[ChoicePoint] = []
        #: Rectangles of which several axes may change, and what that makes of their entries.
        self.multiplied: list[Rectangle] = []
        self.products = Products(np.zeros(0, np.int64), np.zeros((0, 0), np.int64))
        #: Node -> the axis of its rectangles that stayed where other products were in the way.
        self.gave_way: dict[str, int] = {}
        self.joints: list[tuple[Ids, Ids, str]] = []
        #: How often a union or a freeze had an effect.
        self.changes = 0
        self._splits: dict[tuple[bytes, tuple[int, ...]], Vectors] = {}
        self._merges: dict[tuple[bytes, ...], Ids] = {}

    def fresh(self, n: int, slot: Slot) -> Ids:
        """Open ``n`` new ids that belong to ``slot``."""
        start, self.size = self.size, self.size + n
        while self.size > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
            self._frozen = np.concatenate([self._frozen, np.zeros_like(self._frozen)])
            self._owner = np.concatenate([self._owner, np.zeros_like(self._owner)])
        ids = np.arange(start, self.size, dtype=np.int64)
        self._parent[start : self.size] = ids
        self._owner[start : self.size] = len(self.slots)
        self.slots.append(slot)
        return ids

    def owner(self, ids: Ids) -> NDArray[np.int64]:
        """Position in ``slots`` of the slot that opened each id."""
        return self._owner[ids]

    def find(self, ids: Ids) -> Ids:
        """Representative of each id."""
        roots = self._parent[ids]
        above = self._parent[roots]
        if not _same(above, roots):
            while not _same(above, roots):
                roots, above = above, self._parent[above]
            self._parent[ids] = roots
        return roots

    def frozen(self, ids: Ids) -> NDArray[np.bool_]:
        """Whether each id belongs to a frozen unit."""
        return self._frozen[self.find(ids)]

    def unite(self, a: Ids, b: Ids, node: str, op: str) -> None:
        """Make ``a[i]`` and ``b[i]`` one unit, elementwise (equal lengths)."""
        if a is b or _same(a, b):
            return
        self.couplings.append(Coupling(a, b, node, op))
        ra, rb = self.find(a), self.find(b)
        frozen = self._frozen[ra] | self._frozen[rb]
        while not _same(ra, rb):
            self.changes += 1
            apart = ra != rb
            # With repeated roots the last write wins; the others are met again in the next round.
            self._parent[np.maximum(ra, rb)[apart]] = np.minimum(ra, rb)[apart]
            ra, rb = self.find(a), self.find(b)
        self._frozen[ra[frozen]] = True

    def freeze(self, vector: Vector, reason: str, node: str) -> None:
        """Mark the units of ``vector`` as unchangeable; ``None`` is frozen already."""
        if vector is None or not len(vector):
            return
        alive = vector[~self.frozen(vector)]
        if len(alive):
            self.changes += 1
            self.freezes.append(Freeze(alive, reason, node))
            self._frozen[self.find(alive)] = True

    def couple(self, a: Vector, b: Vector, node: str, op: str) -> None:
        """Unite two vectors of one dimension; a ``None`` side freezes the other."""
        if a is None or b is None:
            self.freeze(a if b is None else b, f"meets a fixed dimension in {op}", node)
        else:
            self.unite(a, b, node, op)

    def joint(self, left: Ids, right: Ids, node: str) -> None:
        """``right`` stands directly after ``left`` in one vector, but apart in another.

        Copies stand after a run of equal ids, so a unit on both sides of the joint cannot be
        copied: where the two are together, they would be taken for one run.
        """
        if len(left) and len(right):  # padding on one side alone concatenates nothing
            self.joints.append((left[-1:], right[:1], node))

    def _tiled(self, axis: Ids, outer: tuple[int, ...], node: str) -> None:
        """``axis`` follows itself, once for each position of the fixed axes outside of it."""
        if prod(outer) > 1:
            self.joint(axis, axis, node)

    def merge(self, sizes: tuple[int, ...], axes: Vectors, node: str) -> Vector:
        """Vector of several dimensions flattened into one (row-major)."""
        axes = tuple(None if axis is None or self.frozen(axis).all() else axis for axis in axes)
        live = [k for k, axis in enumerate(axes) if axis is not None]
        if not live:
            return None
        if len(live) == 1:
            (k,) = live
            shape = [1] * len(sizes)
            shape[k] = sizes[k]
            axis = axes[k]
            assert axis is not None
            self._tiled(axis, sizes[:k], node)
            return np.broadcast_to(axis.reshape(shape), sizes).reshape(-1)
        key = tuple(b"" if axis is None else axis.tobytes() for axis in axes)
        if key not in self._merges:
            whole = self.fresh(prod(sizes), Slot(node, 0, "axis"))
            full = tuple(
                self._inert(size, node, k) if axis is None else axis
                for k, (size, axis) in enumerate(zip(sizes, axes, strict=True))
            )
            self.rectangles.append(Rectangle(whole, sizes, full, node))
            self._merges[key] = whole
            self._splits[whole.tobytes(), sizes] = axes
        return self._merges[key]

    def _inert(self, n: int, node: str, dim: int) -> Ids:
        ids = self.fresh(n, Slot(node, dim, "axis"))
        self.freeze(ids, "a dimension without channels", node)
        return ids

    def split(self, whole: Vector, sizes: tuple[int, ...], node: str) -> Vectors:
        """Vectors of one dimension unflattened into several (row-major)."""
        if whole is None or self.frozen(whole).all():
            return (None,) * len(sizes)
        if 1 in sizes:  # a dimension of one entry never changes
            rest = iter(self.split(whole, tuple(size for size in sizes if size > 1), node))
            return tuple(next(rest) if size > 1 else None for size in sizes)
        if len(sizes) == 1:
            return (whole,)
        key = (whole.tobytes(), sizes)
        if key not in self._splits:
            self._splits[key] = self._open(whole, sizes, node)
        return self._splits[key]

    def _open(self, whole: Ids, sizes: tuple[int, ...], node: str) -> Vectors:
        grid = self.find(whole).reshape(sizes)
        for k, size in enumerate(sizes):
            along = np.moveaxis(grid, k, 0).reshape(size, -1)
            if (along == along[:, :1]).all():  # a function of axis k alone already
                first = np.moveaxis(whole.reshape(sizes), k, 0).reshape(size, -1)[:, 0]
                self._tiled(first, sizes[:k], node)
                return tuple(first if j == k else None for j in range(len(sizes)))
        axes = tuple(self.fresh(size, Slot(node, k, "axis")) for k, size in enumerate(sizes))
        self.rectangles.append(Rectangle(whole, sizes, axes, node))
        self._merges[tuple(axis.tobytes() for axis in axes)] = whole
        return axes
