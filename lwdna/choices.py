"""Choice points: along which axes every rectangle may change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from lwdna import products
from lwdna.channels import ChannelSpace, ChoicePoint, Ids, Policy, Rectangle

#: The paper's rule for grouped convolutions (METHOD §1): the width within a group is the unit of
#: removal from this size on; below it the whole group is.
INNER_FROM = 16
#: The choice by which all axes that can change may change at once.
BOTH: Literal["both"] = "both"
_NAMED = ("auto", "inner", "outer", BOTH)


def check_policy(policy: Policy) -> None:
    """Raise ``ValueError`` unless ``policy`` is one (see :func:`choose_axis`)."""
    for choice in policy.values() if isinstance(policy, Mapping) else (policy,):
        if choice not in _NAMED and (isinstance(choice, bool) or not isinstance(choice, int)):
            raise ValueError(
                f"policy {choice!r}: use 'auto', 'inner', 'outer', 'both' or an axis number"
            )


def _choice(policy: Policy, node: str) -> str | int:
    """What the policy says of a node."""
    if not isinstance(policy, Mapping):
        return policy
    return next((c for pattern, c in policy.items() if fnmatchcase(node, pattern)), "auto")


def choose_axis(
    policy: Policy, node: str, sizes: tuple[int, ...], live: Iterable[int]
) -> int | Literal["both"]:
    """The axis of a choice point that may change, by policy, or ``"both"``.

    Args:
        policy: ``"auto"`` (the innermost axis of at least 16 entries, else the longest: the
            paper's rule for grouped convolutions), ``"inner"`` (head_dim, width within a group),
            ``"outer"`` (heads, whole groups), ``"both"`` (all axes that can change, be they two
            or more: the entries become products, see :mod:`lwdna.products`), or a mapping from
            node-name pattern (``fnmatch``) to one of these or to an axis number; what matches
            nothing follows ``"auto"``. Only ``"both"`` and numbers hold an axis along which all
            is one unit already; ``"auto"`` also passes over one that would come to that.
        node: name of the graph node of the choice point.
        sizes: axis lengths, outermost first.
        live: the axes that could be chosen.

    Source: the released code's grouped-convolution latent vectors (METHOD §1).
    """
    order = sorted(live)
    choice = _choice(policy, node)
    if isinstance(choice, int):
        return choice if choice in order else order[-1]
    if choice == BOTH:
        return BOTH
    if choice == "inner":
        return order[-1]
    if choice == "outer":
        return order[0]
    fine = [k for k in order if sizes[k] >= INNER_FROM]
    longest: int = max(order, key=lambda k: sizes[k])
    return fine[-1] if fine else longest


def resolve(space: ChannelSpace, policy: Policy) -> None:
    """Decide every choice point: unite each rectangle along its axis, or make it products.

    Freezing spreads first (a rectangle whose whole or whose axes are all frozen is frozen
    altogether), so that no choice falls on an axis that cannot change.

    Args:
        space: the ids, with all their couplings; ``choices`` and ``products`` are filled in.
        policy: see :func:`choose_axis`. Rectangles that it makes products come first; one that
            is left to ``"auto"`` follows them where all its axes are theirs.

    Raises:
        ValueError: ``policy`` is none.
    """
    check_policy(policy)
    relied: list[Ids] = []
    decided: dict[int, int | Literal["both"]] = {}
    undecided = sorted(space.rectangles, key=lambda r: _choice(policy, r.node) != BOTH)
    while undecided:
        rest = [r for r in undecided if not _spread(space, r, relied)]
        if len(rest) < len(undecided):
            undecided = rest
            continue
        if _close(space):
            continue
        if any(_follow(space, r, policy) for r in undecided):
            continue
        wanted = [r for r in undecided if _choice(policy, r.node) == BOTH]
        first = next((r for r in undecided if _used(space, r, relied)), undecided[0])
        for r in wanted or [first]:
            decided[id(r)] = _decide(space, r, policy, relied)
        space.multiplied += [r for r in undecided if decided.get(id(r)) == BOTH]
        undecided = [r for r in undecided if decided.get(id(r)) != BOTH]
    settle(space)
    space.choices = [_chosen(space, r, decided.get(id(r))) for r in space.rectangles]


def settle(space: ChannelSpace) -> None:
    """Bring joints and products up to date with what was frozen and united since."""
    while _freeze_joints(space) or _close(space):
        space.multiplied = [r for r in space.multiplied if not _spread(space, r, [])]
    space.products = products.listed(space)


def _close(space: ChannelSpace) -> bool:
    """One step towards consistent products; whether there was one to take."""
    if products.close(space):
        return True
    pair = products.clash(space)
    if pair is None:
        return False
    r, other = pair
    live = live_axes(space, r)
    chosen = choose_axis("auto", r.node, r.sizes, live)
    reason = (
        f"choice point: axis {chosen} of {r.sizes}, as {other.node} has products of {other.sizes}"
    )
    for k in live:
        if k != chosen:
            space.freeze(r.axes[k], reason, r.node)
    return True


def _decide(
    space: ChannelSpace, r: Rectangle, policy: Policy, relied: list[Ids]
) -> int | Literal["both"]:
    """Choose for a rectangle; the axes that are not chosen are frozen."""
    live = live_axes(space, r)
    if _choice(policy, r.node) == "auto" and _all_multiplied(space, r, live):
        return BOTH
    candidates = (_used(space, r, relied) if policy == "auto" else ()) or live
    if _choice(policy, r.node) == "auto":
        candidates = tuple(k for k in candidates if _leaves_units(space, r, k)) or candidates
    chosen = choose_axis(policy, r.node, r.sizes, candidates)
    if chosen != BOTH:
        for k in live:
            if k != chosen:
                space.freeze(r.axes[k], f"choice point: axis {chosen} of {r.sizes}", r.node)
    return chosen


def _follow(space: ChannelSpace, r: Rectangle, policy: Policy) -> bool:
    """Freeze the axes along which a rectangle is one unit already; whether there was one.

    Such an axis could change only if all of the rectangle became one unit: the keys' heads were
    repeated, and the choice of them has tied the values' repeated heads as well.
    """
    choice = _choice(policy, r.node)
    if choice == BOTH or isinstance(choice, int):
        return False
    grid, live = space.find(r.whole).reshape(r.sizes), live_axes(space, r)
    tied = [k for k in live if r.sizes[k] > 1 and (np.diff(grid, axis=k) == 0).all()]
    if len(tied) == len(live):
        return False
    for k in tied:
        space.freeze(r.axes[k], f"choice point: one unit along axis {k} of {r.sizes}", r.node)
    return bool(tied)


def _leaves_units(space: ChannelSpace, r: Rectangle, k: int) -> bool:
    """Whether the entries of a rectangle would be more than one unit, were they united along k.

    What they are united to already may link all positions of the axis: six groups after four.
    """
    roots, unit = np.unique(space.find(r.whole), return_inverse=True)
    if len(roots) == len(r.whole):
        return r.sizes[k] > 1
    position = np.indices(r.sizes)[k].reshape(-1)
    first = np.arange(r.sizes[k])  # the first position that each is linked to
    while True:
        of_unit = np.full(len(roots), r.sizes[k])
        np.minimum.at(of_unit, unit, first[position])
        linked = first.copy()
        np.minimum.at(linked, position, of_unit[unit])
        if np.array_equal(linked, first):
            return bool(first.any())
        first = linked


def _used(space: ChannelSpace, r: Rectangle, relied: list[Ids]) -> tuple[int, ...]:
    """The axes that settled rectangles rely on; freezing one undoes them."""
    used = set(space.find(np.concatenate(relied)).tolist()) if relied else set()
    live = live_axes(space, r)
    return tuple(k for k in live if used.intersection(space.find(r.axes[k]).tolist()))


def _all_multiplied(space: ChannelSpace, r: Rectangle, live: tuple[int, ...]) -> bool:
    """Whether all axes of a rectangle are axes of products already (the output of attention)."""
    if not space.multiplied:
        return False
    known = np.unique(space.find(np.concatenate([a for m in space.multiplied for a in m.axes])))
    return all(bool(np.isin(space.find(r.axes[k]), known).all()) for k in live)


def live_axes(space: ChannelSpace, r: Rectangle) -> tuple[int, ...]:
    """The axes of a rectangle that are not all frozen."""
    return tuple(k for k, axis in enumerate(r.axes) if not space.frozen(axis).all())


def _spread(space: ChannelSpace, r: Rectangle, relied: list[Ids]) -> bool:
    """Settle a rectangle that leaves no choice; False if it still has one."""
    live = live_axes(space, r)
    if space.frozen(r.whole).all() or not live:
        for axis in (r.whole, *r.axes):
            space.freeze(axis, "part of a fixed dimension", r.node)
        return True
    if len(live) > 1:
        return False
    (k,) = live
    grid = np.moveaxis(r.whole.reshape(r.sizes), k, 0).reshape(r.sizes[k], -1)
    axis = np.repeat(r.axes[k], grid.shape[1])
    space.unite(axis, np.ascontiguousarray(grid).reshape(-1), r.node, "reshape")
    relied.append(r.axes[k])
    return True


def _freeze_joints(space: ChannelSpace) -> bool:
    """Freeze the units that stand on both sides of a joint; whether there was one."""
    before, found = space.changes, products.listed(space)
    for left, right, node in space.joints:
        a, b = products.outermost(space, found, left), products.outermost(space, found, right)
        space.freeze(a[a == b], "stands on both sides of a joint", node)
    return space.changes > before


def _chosen(
    space: ChannelSpace, r: Rectangle, decided: int | Literal["both"] | None
) -> ChoicePoint:
    live = live_axes(space, r)
    big = tuple(k for k, size in enumerate(r.sizes) if size > 1)
    chosen = BOTH if len(live) > 1 else live[0] if live else None
    return ChoicePoint(r.node, r.sizes, big, chosen, decided)
