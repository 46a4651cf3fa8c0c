"""The channel graph: which channels exist, which of them hang together, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from torch.utils._pytree import tree_map_only

from lwdna.channels import ChannelSpace, ChoicePoint, Ids, Slot, Vector, Vectors
from lwdna.cost import Cost, CostModel, Term

Copies = Ids


@dataclass(frozen=True)
class TensorChannels:
    """Shape and channel vectors of one activation."""

    shape: tuple[int, ...]
    vectors: Vectors


@dataclass(frozen=True)
class WeightRole:
    """Which dimensions of a weight are its outputs and inputs (conv, transposed conv, linear).

    Attributes:
        out_dim: dimension of the output channels.
        in_dim: dimension of the input channels (per group).
        kernel: number of kernel positions (1 for linear).
        classifier: True if the outputs are the network's outputs.
    """

    out_dim: int
    in_dim: int
    kernel: int
    classifier: bool = False


@dataclass(frozen=True)
class ChannelGroup:
    """All units that occur in exactly the same slots: one latent vector, "the width of layer3".

    Attributes:
        index: position in ``ChannelGraph.groups``.
        name: the producing tensor, without ``.weight``, or the first slot if nothing produces it.
        units: unit ids, ascending.
        slots: where they occur, with the number of occurrences of each unit there.
        prunable: whether the width may change.
        reasons: why not, as (reason, node) pairs; empty if prunable.
        feeds_classifier: whether the units are inputs of the layer that gives the outputs.
    """

    index: int
    name: str
    units: Ids
    slots: tuple[tuple[Slot, int], ...]
    prunable: bool
    reasons: tuple[tuple[str, str], ...] = ()
    feeds_classifier: bool = False

    @property
    def width(self) -> int:
        """Number of units."""
        return len(self.units)


@dataclass(frozen=True)
class ChannelGraph:
    """Result of the analysis, and all that scoring, selection and resizing need to know.

    Attributes:
        tensors: parameter or buffer name -> one vector of unit ids per dimension.
        buffers: the names in ``tensors`` that are buffers.
        groups: the channel groups, in the order in which the network opens them.
        group_of: group index of each unit, shape (units,).
        terms: cost terms.
        values: graph node name -> pytree of :class:`TensorChannels` (what the node returns).
        facts: graph node name -> quantities of the operators behind it that are channel counts
            (``"groups"`` of a convolution, ``"hidden"`` of an LSTM ...).
        roles: weight name -> its :class:`WeightRole`.
        choices: the resolved choice points.
        inputs: the arguments of ``forward`` that shapes and costs are for: batch size 1, on the
            meta device.
        origin: for a restricted graph, the unit of the unrestricted graph behind each unit.
        links: couplings as (slot, slot, group, node, op), from which ``nx`` is built.
    """

    tensors: Mapping[str, Vectors]
    buffers: frozenset[str]
    groups: tuple[ChannelGroup, ...]
    group_of: NDArray[np.int64]
    terms: tuple[Term, ...]
    values: Mapping[str, Any]
    facts: Mapping[str, Mapping[str, Vector]]
    roles: Mapping[str, WeightRole]
    choices: tuple[ChoicePoint, ...]
    inputs: tuple[Any, ...]
    origin: Ids
    links: tuple[tuple[Slot, Slot, int, str, str], ...] = field(repr=False, default=())

    @property
    def units(self) -> int:
        """Number of channel units."""
        return len(self.group_of)

    @cached_property
    def widths(self) -> Ids:
        """Current width of each group, shape (groups,)."""
        return np.array([group.width for group in self.groups], dtype=np.int64)

    @cached_property
    def cost_model(self) -> CostModel:
        """Cost as a function of group widths."""
        return CostModel(self.terms, self.group_of, np.maximum(self.widths, 1))

    @cached_property
    def prunable(self) -> NDArray[np.bool_]:
        """Whether each group may change, shape (groups,)."""
        return np.array([group.prunable for group in self.groups], dtype=bool)

    @property
    def policy(self) -> dict[str, int]:
        """The choices that were made, as a policy that makes them again."""
        made: dict[str, int] = {}
        for choice in self.choices:
            if choice.chosen is not None:
                made.setdefault(choice.node, choice.chosen)
        return made

    def keep_all(self) -> Copies:
        """One copy of every unit: the identity configuration."""
        return np.ones(self.units, dtype=np.int64)

    def widths_of(self, copies: Copies) -> Ids:
        """Group widths under ``copies`` (units,)."""
        widths = np.zeros(len(self.groups), dtype=np.int64)
        np.add.at(widths, self.group_of, copies)
        return widths

    def cost(self, copies: Copies | None = None) -> Cost:
        """Predicted cost on one input under ``copies``; of the graph as it is by default."""
        return self.cost_model(self.widths if copies is None else self.widths_of(copies))

    def check(self, copies: Copies) -> None:
        """Raise ``ValueError`` if ``copies`` changes what must not change or empties a group."""
        if copies.shape != (self.units,) or (copies < 0).any():
            raise ValueError(f"copies must be {self.units} non-negative integers, one per unit")
        for group, width in zip(self.groups, self.widths_of(copies), strict=True):
            if not group.prunable and (copies[group.units] != 1).any():
                reason = group.reasons[0] if group.reasons else ("not prunable", "")
                raise ValueError(f"group {group.name!r} is fixed ({reason[0]} at {reason[1]})")
            if width == 0:
                raise ValueError(f"group {group.name!r} would be empty: keep at least one unit")

    @cached_property
    def nx(self) -> nx.MultiGraph:
        """Slots as nodes, couplings with their cause as edges, groups as components.

        A node is a ``(Slot, group index)`` pair, because a concatenated slot belongs to several
        groups; an edge carries ``node`` and ``op``.
        """
        graph = nx.MultiGraph()
        for group in self.groups:
            for slot, times in group.slots:
                graph.add_node((slot, group.index), group=group.name, times=times)
        for a, b, index, node, op in self.links:
            graph.add_edge((a, index), (b, index), node=node, op=op)
        return graph

    def restrict(self, copies: Copies) -> ChannelGraph:
        """The channel graph of the resized network, in closed form.

        Args:
            copies: copies of each unit, shape (units,), int64: 0 removed, 1 kept, 2.. widened.

        Returns:
            The graph that analysing the resized module would give (invariant 4); its ``origin``
            names the unit of ``self`` behind each new unit.

        Raises:
            ValueError: ``copies`` changes a frozen group or empties one.
        """
        self.check(copies)
        first = np.concatenate([[0], np.cumsum(copies)])[:-1]
        origin = np.repeat(np.arange(self.units), copies)
        memo: dict[bytes, Ids] = {}

        def vector(old: Vector) -> Vector:
            if old is None:
                return None
            key = old.tobytes()
            if key not in memo:
                entries, copy = entry_map(old, copies)
                memo[key] = first[old[entries]] + copy
            return memo[key]

        def channels(old: TensorChannels) -> TensorChannels:
            vectors = tuple(vector(v) for v in old.vectors)
            shape = tuple(
                n if v is None else len(v) for n, v in zip(old.shape, vectors, strict=True)
            )
            return TensorChannels(shape, vectors)

        group_of = self.group_of[origin]
        return replace(
            self,
            tensors={name: tuple(vector(v) for v in vs) for name, vs in self.tensors.items()},
            groups=tuple(
                replace(group, units=np.flatnonzero(group_of == group.index))
                for group in self.groups
            ),
            group_of=group_of,
            terms=tuple(
                replace(t, vectors=tuple(v for v in map(vector, t.vectors) if v is not None))
                for t in self.terms
            ),
            values={
                name: tree_map_only(TensorChannels, channels, value)
                for name, value in self.values.items()
            },
            facts={
                node: {key: vector(v) for key, v in facts.items()}
                for node, facts in self.facts.items()
            },
            origin=self.origin[origin],
        )


def entry_map(vector: Ids, copies: Copies) -> tuple[Ids, Ids]:
    """Which old entries a resized dimension consists of.

    Copies stand directly after the original run of equal entries, so that grouped, head-wise and
    interleaved layouts stay valid.

    Args:
        vector: unit id of each entry, shape (n,).
        copies: copies of each unit, shape (units,).

    Returns:
        (old entry of each new entry, number of the copy it is), both of the new length.
    """
    times = copies[vector]
    if (times <= 1).all():
        kept = np.flatnonzero(times)
        return kept, np.zeros(len(kept), dtype=np.int64)
    starts = np.flatnonzero(np.append(True, vector[1:] != vector[:-1]))
    lengths = np.diff(np.append(starts, len(vector)))
    runs = np.repeat(np.arange(len(starts)), times[starts])
    number = np.arange(len(runs)) - np.searchsorted(runs, runs)  # 0 for the original run
    ends = np.cumsum(lengths[runs])
    within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths[runs], lengths[runs])
    return np.repeat(starts[runs], lengths[runs]) + within, np.repeat(number, lengths[runs])


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
    links = _links(space, lambda ids: group_of[unit_of[ids]])
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
        links=links,
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


def _links(
    space: ChannelSpace, group_of: Callable[[Ids], NDArray[np.int64]]
) -> tuple[tuple[Slot, Slot, int, str, str], ...]:
    """Couplings between slots, one per (slot, slot, group, cause)."""
    found: dict[tuple[Slot, Slot, int, str, str], None] = {}
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
