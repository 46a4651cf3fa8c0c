"""Channel units, channel vectors and the rules of living and dying together.

Every index of a tensor dimension that carries channels has an integer id. Ids that must be kept or
removed together are united in a union-find; what is left are the *channel units*. A *channel
vector* is the array of ids of one dimension, or ``None`` for a dimension that nothing can change
(batch, positions, image channels reached through a reshape ...).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Vector = Ids | None
Vectors = tuple[Vector, ...]
Policy = str | Mapping[str, str | int]

#: The paper's rule for grouped convolutions (METHOD §1): the width within a group is the unit of
#: removal from this size on; below it the whole group is.
INNER_FROM = 16


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

    Removing entries keeps it a rectangle only if they are removed along one axis. Which one is a
    *choice point* (heads or head_dim, groups or the width within a group).
    """

    whole: Ids
    sizes: tuple[int, ...]
    axes: tuple[Ids, ...]
    node: str


@dataclass(frozen=True)
class ChoicePoint:
    """A resolved rectangle: the axis (position among ``sizes``) that may change.

    Attributes:
        node: graph node of the reshape or grouped operator.
        sizes: lengths of the axes, outermost first.
        candidates: positions that could have been chosen.
        chosen: the position that was chosen, or ``None`` if all are frozen.
    """

    node: str
    sizes: tuple[int, ...]
    candidates: tuple[int, ...]
    chosen: int | None


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
        self._relied: list[Ids] = []
        self._joints: list[tuple[Ids, Ids, str]] = []
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
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[ids] = roots
        return roots

    def frozen(self, ids: Ids) -> NDArray[np.bool_]:
        """Whether each id belongs to a frozen unit."""
        return self._frozen[self.find(ids)]

    def unite(self, a: Ids, b: Ids, node: str, op: str) -> None:
        """Make ``a[i]`` and ``b[i]`` one unit, elementwise (equal lengths)."""
        if a is b or np.array_equal(a, b):
            return
        self.couplings.append(Coupling(a, b, node, op))
        frozen = self._frozen[self.find(a)] | self._frozen[self.find(b)]
        while True:
            ra, rb = self.find(a), self.find(b)
            apart = ra != rb
            if not apart.any():
                break
            # With repeated roots the last write wins; the others are met again in the next round.
            self._parent[np.maximum(ra, rb)[apart]] = np.minimum(ra, rb)[apart]
        self._frozen[self.find(a[frozen])] = True

    def freeze(self, vector: Vector, reason: str, node: str) -> None:
        """Mark the units of ``vector`` as unchangeable; ``None`` is frozen already."""
        if vector is None or not len(vector):
            return
        alive = vector[~self.frozen(vector)]
        if len(alive):
            self.freezes.append(Freeze(alive, reason, node))
            self._frozen[self.find(alive)] = True

    def couple(self, a: Vector, b: Vector, node: str, op: str) -> None:
        """Unite two vectors of one dimension; a ``None`` side freezes the other."""
        if a is None or b is None:
            self.freeze(a if b is None else b, f"meets a fixed dimension in {op}", node)
        else:
            self.unite(a, b, node, op)

    def joint(self, left: Ids, right: Ids, node: str) -> None:
        """``right`` stands directly after ``left`` in one vector, but is another run.

        Copies stand after a run of equal ids, so a unit on both sides of the joint cannot be
        copied: the two runs would be taken for one.
        """
        self._joints.append((left[-1:], right[:1], node))

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
                return tuple(first if j == k else None for j in range(len(sizes)))
        axes = tuple(self.fresh(size, Slot(node, k, "axis")) for k, size in enumerate(sizes))
        self.rectangles.append(Rectangle(whole, sizes, axes, node))
        self._merges[tuple(axis.tobytes() for axis in axes)] = whole
        return axes

    def resolve(self, policy: Policy) -> None:
        """Decide every choice point and unite each rectangle along its chosen axis.

        Freezing spreads first (a rectangle whose whole or whose axes are all frozen is frozen
        altogether), so that no choice falls on an axis that cannot change.
        """
        check_policy(policy)
        open_rectangles = list(self.rectangles)
        while open_rectangles:
            settled = [r for r in open_rectangles if self._spread(r)]
            if settled:
                gone = {id(r) for r in settled}
                open_rectangles = [r for r in open_rectangles if id(r) not in gone]
                continue
            first = open_rectangles[0]
            live = self._live(first)
            chosen = choose_axis(policy, first.node, first.sizes, self._in_use(first, live, policy))
            for k in live:
                if k != chosen:
                    self.freeze(
                        first.axes[k], f"choice point: axis {chosen} of {first.sizes}", first.node
                    )
        for left, right, node in self._joints:
            alike = self.find(left) == self.find(right)
            self.freeze(left[alike], "stands on both sides of a joint", node)
        self.choices = [self._chosen(r) for r in self.rectangles]

    def _in_use(self, r: Rectangle, live: tuple[int, ...], policy: Policy) -> tuple[int, ...]:
        """Under ``"auto"``, the axes that settled rectangles rely on; freezing one undoes them."""
        used = set(self.find(np.concatenate(self._relied)).tolist()) if self._relied else set()
        relied = tuple(k for k in live if used.intersection(self.find(r.axes[k]).tolist()))
        return relied if relied and policy == "auto" else live

    def _live(self, r: Rectangle) -> tuple[int, ...]:
        return tuple(k for k, axis in enumerate(r.axes) if not self.frozen(axis).all())

    def _spread(self, r: Rectangle) -> bool:
        """Settle a rectangle that leaves no choice; False if it still has one."""
        live = self._live(r)
        if self.frozen(r.whole).all() or not live:
            for axis in (r.whole, *r.axes):
                self.freeze(axis, "part of a fixed dimension", r.node)
            return True
        if len(live) > 1:
            return False
        (k,) = live
        grid = np.moveaxis(r.whole.reshape(r.sizes), k, 0).reshape(r.sizes[k], -1)
        axis = np.repeat(r.axes[k], grid.shape[1])
        self.unite(axis, np.ascontiguousarray(grid).reshape(-1), r.node, "reshape")
        self._relied.append(r.axes[k])
        return True

    def _chosen(self, r: Rectangle) -> ChoicePoint:
        live = self._live(r)
        big = tuple(k for k, size in enumerate(r.sizes) if size > 1)
        return ChoicePoint(r.node, r.sizes, big, live[0] if live else None)


_NAMED = ("auto", "inner", "outer")


def check_policy(policy: Policy) -> None:
    """Raise ``ValueError`` unless ``policy`` is one (see :func:`choose_axis`)."""
    for choice in policy.values() if isinstance(policy, Mapping) else (policy,):
        if choice not in _NAMED and (isinstance(choice, bool) or not isinstance(choice, int)):
            raise ValueError(f"policy {choice!r}: use 'auto', 'inner', 'outer' or an axis number")


def choose_axis(policy: Policy, node: str, sizes: tuple[int, ...], live: Iterable[int]) -> int:
    """The axis of a choice point that may change, by policy.

    Args:
        policy: ``"auto"`` (the innermost axis of at least 16 entries, else the longest: the
            paper's rule for grouped convolutions), ``"inner"`` (head_dim, width within a group),
            ``"outer"`` (heads, whole groups), or a mapping from node-name pattern (``fnmatch``)
            to one of these or to an axis number; what matches nothing follows ``"auto"``.
        node: name of the graph node of the choice point.
        sizes: axis lengths, outermost first.
        live: the axes that could be chosen.

    Source: the released code's grouped-convolution latent vectors (METHOD §1).
    """
    live = sorted(live)
    if isinstance(policy, Mapping):
        matches = (choice for pattern, choice in policy.items() if fnmatchcase(node, pattern))
        choice: str | int = next(matches, "auto")
    else:
        choice = policy
    if isinstance(choice, int):
        return choice if choice in live else live[-1]
    if choice == "inner":
        return live[-1]
    if choice == "outer":
        return live[0]
    fine = [k for k in live if sizes[k] >= INNER_FROM]
    return fine[-1] if fine else max(live, key=lambda k: sizes[k])
