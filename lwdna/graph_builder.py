"""From a resolved channel space to the channel graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lwdna.channels import ChannelSpace, Ids, Slot, Vector, Vectors
from lwdna.choices import settle
from lwdna.copies import is_product
from lwdna.cost import Term
from lwdna.graph import ChannelGraph, ChannelGroup, Link
from lwdna.tensor_channels import TensorChannels, WeightRole
from lwdna.trees import tree_map_only


def build_graph(
    space: ChannelSpace,
    tensors: Mapping[str, Vectors],
    buffers: Iterable[str],
    terms: Iterable[Term],
    values: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Vector]],
    roles: Mapping[str, WeightRole],
    inputs: tuple[Any, ...],
    calls: Mapping[str, tuple[tuple[Any, ...], ...]] | None = None,
) -> ChannelGraph:
    """Close a resolved channel space into a :class:`ChannelGraph` (raw ids become unit ids)."""
    buffers = frozenset(buffers)
    terms = tuple(terms)
    used = [v for vs in tensors.values() for v in vs if v is not None]
    used += [v for term in terms for v in term.vectors if v is not None]
    units = _rectangular_units(space, used)
    unit_of, group_of = units.unit_of, units.group_of
    memo: dict[int, tuple[Ids, Ids]] = {}  # keeps the key's array alive

    def vector(raw: Vector) -> Vector:
        if raw is None:
            return None
        if id(raw) not in memo:
            memo[id(raw)] = (raw, unit_of[raw])
        return memo[id(raw)][1]

    def known(raw: Ids) -> Ids:
        result = vector(raw)
        assert result is not None
        return result

    def channels(t: TensorChannels) -> TensorChannels:
        return replace(t, vectors=tuple(vector(v) for v in t.vectors))

    named = {name: tuple(vector(v) for v in vs) for name, vs in tensors.items()}
    own_terms = [Term(t.kind, t.coefficient, tuple(map(known, t.vectors)), t.node) for t in terms]
    slots = [
        (Slot(name, dim, "buffer" if name in buffers else "parameter"), v)
        for name, vs in named.items()
        for dim, v in enumerate(vs)
        if v is not None
    ]
    return ChannelGraph(
        tensors=named,
        buffers=buffers,
        groups=_groups(space, units, slots, roles),
        group_of=group_of,
        terms=tuple(own_terms),
        values={
            name: tree_map_only(TensorChannels, channels, value) for name, value in values.items()
        },
        facts={node: {k: vector(v) for k, v in fact.items()} for node, fact in facts.items()},
        roles=dict(roles),
        choices=tuple(space.choices),
        inputs=inputs,
        origin=np.arange(len(group_of)),
        factors=units.factors,
        links=partial(_links, space, lambda ids: group_of[unit_of[ids]]),
        calls=tree_map_only(TensorChannels, channels, dict(calls or {})),
    )


class _Units(NamedTuple):
    """Raw ids closed into units.

    Attributes:
        unit_of: unit of each raw id, shape (ids,).
        factors: units that each unit is the product of, -1 for none, shape (units, R).
        group_of: group of each unit, shape (units,).
    """

    unit_of: Ids
    factors: Ids
    group_of: Ids


def _rectangular_units(space: ChannelSpace, vectors: list[Ids]) -> _Units:
    """Units and groups such that every group of products is a whole rectangle.

    Where some products of two groups occur in other places than the rest, and not whole rows or
    columns of them, the number of products is no product of widths: the outermost axis is frozen.
    """
    while True:
        units = _units(space, vectors)
        cut = _cut_products(units)
        if not len(cut):
            return units
        roots = np.unique(space.find(np.arange(space.size)))
        outer = np.unique(units.factors[cut, 0])
        space.freeze(roots[outer], "only a part of a product's entries occur together", "")
        settle(space)


def _units(space: ChannelSpace, vectors: list[Ids]) -> _Units:
    roots = space.find(np.arange(space.size))
    represents = roots == np.arange(space.size)
    opened, unit_of = np.flatnonzero(represents), (np.cumsum(represents) - 1)[roots]
    found = space.products
    factors = np.full((len(opened), found.factors.shape[1]), -1, dtype=np.int64)
    inner = np.where(found.factors >= 0, unit_of[found.factors], -1)
    factors[unit_of[found.units]] = inner
    group_of = _partition(space.frozen(opened), factors, [unit_of[v] for v in vectors])
    return _Units(unit_of, factors, group_of)


def _cut_products(units: _Units) -> Ids:
    """Products of the groups that are no whole rectangles."""
    product = is_product(units.factors)
    sizes = np.bincount(units.group_of)
    rows = units.factors[product]
    whole = np.where(rows >= 0, sizes[units.group_of[rows]], 1).prod(axis=1)
    cut: Ids = np.flatnonzero(product)[whole != sizes[units.group_of[product]]]
    return cut


def _partition(
    frozen: NDArray[np.bool_], factors: Ids, vectors: Iterable[Ids]
) -> NDArray[np.int64]:
    """Group units that occur equally often in every vector, by refinement.

    A factor occurs where its products do. Products are told apart by their factors' groups, too.
    """
    label = frozen.astype(np.int64)
    following = 2
    seen: set[bytes] = set()
    for v in vectors:
        if v.tobytes() in seen:
            continue
        seen.add(v.tobytes())
        for column in (v, *factors[v].T):
            members, times = np.unique(column[column >= 0], return_counts=True)
            pairs = label[members] * (len(v) + 1) + times
            _, inverse = np.unique(pairs, return_inverse=True)
            label[members] = following + inverse
            following += int(inverse.max(initial=-1)) + 1
    if factors.shape[1]:
        groups = np.where(factors >= 0, label[factors], -1)
        _, label = np.unique(np.column_stack([label, groups]), axis=0, return_inverse=True)
    return _by_first_unit(label)


def _by_first_unit(label: NDArray[np.int64]) -> NDArray[np.int64]:
    """Groups numbered by their first unit, the order in which the network opens them."""
    units = np.arange(len(label))
    first = np.full(label.max(initial=-1) + 1, len(label))
    first[label[::-1]] = units[::-1]  # of several units of a label, the last one written stays
    rank = np.empty_like(first)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[label]


def _links(space: ChannelSpace, group_of: Callable[[Ids], NDArray[np.int64]]) -> tuple[Link, ...]:
    """Couplings between slots, one per (slot, slot, group, cause)."""
    found: dict[Link, None] = {}
    for c in space.couplings:
        triples = np.stack([space.owner(c.a), space.owner(c.b), group_of(c.a)])
        for a, b, group in np.unique(triples, axis=1).T:
            found[space.slots[a], space.slots[b], int(group), c.node, c.op] = None
    return tuple(found)


def _groups(
    space: ChannelSpace,
    units: _Units,
    slots: list[tuple[Slot, Ids]],
    roles: Mapping[str, WeightRole],
) -> tuple[ChannelGroup, ...]:
    group_of = units.group_of
    n = int(group_of.max(initial=-1)) + 1
    sizes = np.bincount(group_of, minlength=n)
    alone = _occurrences(group_of, slots, sizes)
    through = [(s, np.concatenate([v, *units.factors[v].T])) for s, v in slots]
    where = _occurrences(group_of, through, sizes) if units.factors.size else alone
    reasons: list[dict[tuple[str, str], None]] = [{} for _ in range(n)]
    for freeze in space.freezes:
        for g in np.unique(group_of[units.unit_of[freeze.ids]]):
            reasons[g][freeze.reason, freeze.node] = None
    members = np.split(np.argsort(group_of, kind="stable"), np.cumsum(sizes)[:-1])
    factors = [_factors_of(units, own) for own in members]
    names = _names([[slot for slot, _ in own] for own in alone], factors, roles)
    result = []
    for g in range(n):
        if factors[g]:
            of = " and ".join(repr(names[f]) for f in factors[g])
            reasons[g] = {(f"its width is the product of those of {of}", ""): None}
        elif not any(slot.kind == "parameter" for slot, _ in where[g]):
            reasons[g].setdefault(("no parameter has these channels", ""))
        result.append(
            ChannelGroup(
                index=g,
                name=names[g],
                units=members[g],
                slots=tuple(where[g]),
                prunable=not reasons[g],
                reasons=tuple(reasons[g]),
                feeds_classifier=any(
                    slot.name in roles
                    and roles[slot.name].classifier
                    and slot.dim == roles[slot.name].in_dim
                    for slot, _ in where[g]
                ),
                factors=factors[g],
            )
        )
    return tuple(result)


def _occurrences(
    group_of: NDArray[np.int64], slots: list[tuple[Slot, Ids]], sizes: NDArray[np.int64]
) -> list[list[tuple[Slot, int]]]:
    """Where each group occurs, and how often each of its units does (-1 stands for none)."""
    where: list[list[tuple[Slot, int]]] = [[] for _ in sizes]
    known: dict[bytes, list[tuple[int, int]]] = {}  # most vectors are those of several slots
    for slot, v in slots:
        key = v.tobytes()
        if key not in known:
            groups, times = np.unique(group_of[v[v >= 0]], return_counts=True)
            known[key] = list(zip(groups.tolist(), (times // sizes[groups]).tolist(), strict=True))
        for g, times_each in known[key]:
            where[g].append((slot, times_each))
    return where


def _factors_of(units: _Units, members: Ids) -> tuple[int, ...]:
    row = units.factors[members[0]]
    return tuple(int(g) for g in units.group_of[row[row >= 0]])


def _names(
    slots: list[list[Slot]], factors: list[tuple[int, ...]], roles: Mapping[str, WeightRole]
) -> list[str]:
    """The producing tensor's name (a slot's, if nothing produces the group), numbered if taken.

    A factor that nothing produces by itself is named after the first of its products.
    """
    produced = [_producer(own, roles) for own in slots]
    names = [
        name or (str(own[0]) if own else "(activation)")
        for name, own in zip(produced, slots, strict=True)
    ]
    for product, own in enumerate(factors):
        for k, g in enumerate(own):
            if not produced[g]:
                position = "outer" if k == 0 else "inner" if k == len(own) - 1 else "middle"
                produced[g] = names[g] = f"{names[product]}:{position}"
    taken: dict[str, int] = {}
    for g, name in enumerate(names):
        taken[name] = taken.get(name, 0) + 1
        names[g] = name if taken[name] == 1 else f"{name}#{taken[name]}"
    return names


def _producer(slots: list[Slot], roles: Mapping[str, WeightRole]) -> str:
    """Name of the layer whose outputs are one of the slots; empty if there is none."""
    made = (s.name for s in slots if s.name in roles and s.dim == roles[s.name].out_dim)
    return next(made, "").removesuffix(".weight")
