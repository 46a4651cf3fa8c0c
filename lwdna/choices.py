"""Choice points: along which axes every rectangle may change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from lwdna import products
from lwdna.channels import ChannelSpace, ChoicePoint, Ids, Policy, Rectangle

#: The paper's rule for grouped convolutions: the width within a group is the unit of removal from
#: this size on; below it the whole group is.
#: Source: released code (https://github.com/ofsoundof/Heterogeneity_Hypothesis,
#: model_dhp/regnet_imagenet_dhp.py).
INNER_FROM = 16
#: The choice by which all axes that can change may change at once.
BOTH: Literal["both"] = "both"
_NAMED = re.compile(r"auto|inner|outer|both(:\d+)?")


def check_policy(policy: Policy) -> None:
    """Raise ``ValueError`` unless ``policy`` is one (see :func:`choose_axis`)."""
    for choice in policy.values() if isinstance(policy, Mapping) else (policy,):
        number = isinstance(choice, int) and not isinstance(choice, bool)
        if not number and not (isinstance(choice, str) and _NAMED.fullmatch(choice)):
            raise ValueError(
                f"policy {choice!r}: use 'auto', 'inner', 'outer', 'both' or an axis number"
            )


def _wants_both(choice: str | int) -> bool:
    return isinstance(choice, str) and choice.startswith(BOTH)


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
            or more: the entries become products, see :mod:`lwdna.products`), ``"both:1"`` (both,
            but axis 1 alone where they cannot be products of both, as they are products of axes of
            other sizes already; ``"both"`` does as ``"auto"`` there), or a mapping from node-name
            pattern (``fnmatch``) to one of these or to an axis number; what matches
            nothing follows ``"auto"``. Only ``"both"`` and numbers hold an axis along which all
            is one unit already; ``"auto"`` also passes over one that would come to that.
        node: name of the graph node of the choice point.
        sizes: axis lengths, outermost first.
        live: the axes that could be chosen.

    Source: the released code's grouped-convolution latent vectors; see :data:`INNER_FROM`.
    """
    order = sorted(live)
    choice = _choice(policy, node)
    if isinstance(choice, int):
        return choice if choice in order else order[-1]
    if _wants_both(choice):
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
    choices = {r.node: str(_choice(policy, r.node)) for r in space.rectangles}
    wanting = {node for node, choice in choices.items() if _wants_both(choice)}
    named = ((node, choices[node].partition(":")[2]) for node in wanting)
    space.gave_way.update({node: int(axis) for node, axis in named if axis})
    undecided = sorted(space.rectangles, key=lambda r: r.node not in wanting)
    while undecided:
        rest = [r for r in undecided if not _spread(space, r, relied)]
        if len(rest) < len(undecided):
            undecided = rest
            continue
        if _close(space):
            continue
        if any(_follow(space, r, policy) for r in undecided):
            continue
        wanted = [r for r in undecided if r.node in wanting]
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
    chosen = choose_axis({r.node: space.gave_way.get(r.node, "auto")}, r.node, r.sizes, live)
    assert chosen != BOTH
    space.gave_way.setdefault(r.node, chosen)
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
    if _wants_both(choice) or isinstance(choice, int):
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
    """Freeze the units that stand on both sides of a joint or seam; whether there was one."""
    seams = [(r, k) for r in space.rectangles for k in range(1, len(r.sizes))]
    ends = [*((left, right) for left, right, _ in space.joints)]
    ends += [(r.axes[k][-1:], r.axes[k][:1]) for r, k in seams]
    if not ends:
        return False
    before, found = space.changes, products.listed(space)
    left, right = (np.concatenate(side) for side in zip(*ends, strict=True))
    a, b = products.outermost(space, found, left), products.outermost(space, found, right)
    for i in np.flatnonzero((a == b) & ~space.frozen(a)).tolist():
        if i < len(space.joints):
            space.freeze(a[i : i + 1], "stands on both sides of a joint", space.joints[i][2])
            continue
        r, k = seams[i - len(space.joints)]
        if _runs_on(space, r, k):
            reason = f"its copies would stand between the slices along axis {k} of {r.sizes}"
            space.freeze(a[i : i + 1], reason, r.node)
    return space.changes > before


def _runs_on(space: ChannelSpace, r: Rectangle, k: int) -> bool:
    """Whether two neighbouring slices along axis k lie at positions that are copied together.

    Its last unit and its first one, if they are the same, are then one run in the rectangle, but
    two along the axis: copies, which stand after a run, would be in different places.
    """
    outer = [np.where(space.frozen(axis), -1, space.find(axis)) for axis in r.axes[:k]]
    positions = np.stack([ids.reshape(-1) for ids in np.meshgrid(*outer, indexing="ij")])
    return bool((positions[:, 1:] == positions[:, :-1]).all(axis=0).any())


def _chosen(
    space: ChannelSpace, r: Rectangle, decided: int | Literal["both"] | None
) -> ChoicePoint:
    live = live_axes(space, r)
    big = tuple(k for k, size in enumerate(r.sizes) if size > 1)
    chosen = BOTH if len(live) > 1 else live[0] if live else None
    if decided == BOTH and r.node in space.gave_way:
        return ChoicePoint(r.node, r.sizes, big, chosen, f"{BOTH}:{space.gave_way[r.node]}")
    return ChoicePoint(r.node, r.sizes, big, chosen, decided)
