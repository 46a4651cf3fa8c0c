"""From a resolved channel space to the channel graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils._pytree import tree_map_only

from lwdna.channels import ChannelSpace, Ids, Slot, Vector, Vectors
from lwdna.cost import Term
from lwdna.graph import ChannelGraph, ChannelGroup, Link, TensorChannels, WeightRole


def build_graph(
    space: ChannelSpace,
    tensors: Mapping[str, Vectors],
    buffers: Iterable[str],
    terms: Iterable[Term],
    values: Mapping[str, Any],
    facts: Mapping[str, Mapping[str, Vector]],
    roles: Mapping[str, WeightRole],
    inputs: tuple[Any, ...],
) -> ChannelGraph:
    """Close a resolved channel space into a :class:`ChannelGraph` (raw ids become unit ids)."""
    buffers = frozenset(buffers)
    roots = space.find(np.arange(space.size))
    opened, unit_of = np.unique(roots, return_inverse=True)
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

    named = {name: tuple(vector(v) for v in vs) for name, vs in tensors.items()}
    own_terms = [Term(t.kind, t.coefficient, tuple(map(known, t.vectors)), t.node) for t in terms]
    slots = [
        (Slot(name, dim, "buffer" if name in buffers else "parameter"), v)
        for name, vs in named.items()
        for dim, v in enumerate(vs)
        if v is not None
    ]
    group_of = _partition(
        len(opened),
        space.frozen(opened),
        [v for _, v in slots] + [v for term in own_terms for v in term.vectors],
    )
    return ChannelGraph(
        tensors=named,
        buffers=buffers,
        groups=_groups(space, group_of, unit_of, slots, roles),
        group_of=group_of,
        terms=tuple(own_terms),
        values={
            name: tree_map_only(
                TensorChannels,
                lambda t: TensorChannels(t.shape, tuple(vector(v) for v in t.vectors)),
                value,
            )
            for name, value in values.items()
        },
        facts={node: {k: vector(v) for k, v in fact.items()} for node, fact in facts.items()},
        roles=dict(roles),
        choices=tuple(space.choices),
        inputs=inputs,
        origin=np.arange(len(opened)),
        links=partial(_links, space, lambda ids: group_of[unit_of[ids]]),
    )


def _partition(units: int, frozen: NDArray[np.bool_], vectors: Iterable[Ids]) -> NDArray[np.int64]:
    """Group units that occur equally often in every vector, by refinement."""
    label = frozen.astype(np.int64)
    following = 2
    seen: set[bytes] = set()
    for v in vectors:
        if v.tobytes() in seen:
            continue
        seen.add(v.tobytes())
        members, times = np.unique(v, return_counts=True)
        pairs = label[members] * (len(v) + 1) + times
        _, inverse = np.unique(pairs, return_inverse=True)
        label[members] = following + inverse
        following += int(inverse.max(initial=-1)) + 1
    # Number the groups by their first unit: the order in which the network opens them.
    _, first, inverse = np.unique(label, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]


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
    group_of: NDArray[np.int64],
    unit_of: Ids,
    slots: list[tuple[Slot, Ids]],
    roles: Mapping[str, WeightRole],
) -> tuple[ChannelGroup, ...]:
    n = int(group_of.max(initial=-1)) + 1
    where: list[list[tuple[Slot, int]]] = [[] for _ in range(n)]
    sizes = np.bincount(group_of, minlength=n)
    for slot, v in slots:
        groups, times = np.unique(group_of[v], return_counts=True)
        for g, t in zip(groups, times, strict=True):
            where[g].append((slot, int(t // sizes[g])))
    reasons: list[dict[tuple[str, str], None]] = [{} for _ in range(n)]
    for freeze in space.freezes:
        for g in np.unique(group_of[unit_of[freeze.ids]]):
            reasons[g][freeze.reason, freeze.node] = None
    members = np.split(np.argsort(group_of, kind="stable"), np.cumsum(sizes)[:-1])
    taken: dict[str, int] = {}
    result = []
    for g in range(n):
        units = members[g]
        frozen = bool(reasons[g])
        if not any(slot.kind == "parameter" for slot, _ in where[g]):
            reasons[g].setdefault(("no parameter has these channels", ""))
        result.append(
            ChannelGroup(
                index=g,
                name=_name(where[g], roles, taken),
                units=units,
                slots=tuple(where[g]),
                prunable=not frozen and not reasons[g],
                reasons=tuple(reasons[g]),
                feeds_classifier=any(
                    slot.name in roles
                    and roles[slot.name].classifier
                    and slot.dim == roles[slot.name].in_dim
                    for slot, _ in where[g]
                ),
            )
        )
    return tuple(result)


def _name(
    where: list[tuple[Slot, int]], roles: Mapping[str, WeightRole], taken: dict[str, int]
) -> str:
    """The producing tensor's name (a slot's, if nothing produces the group), numbered if taken."""
    producers = [
        slot for slot, _ in where if slot.name in roles and slot.dim == roles[slot.name].out_dim
    ]
    if producers:
        name = producers[0].name.removesuffix(".weight")
    else:
        name = str(where[0][0]) if where else "(activation)"
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"
