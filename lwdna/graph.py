"""The channel graph: which channels exist, which of them hang together, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from lwdna import copies as arithmetic
from lwdna.channels import ChoicePoint, Ids, Slot, Vector, Vectors
from lwdna.cost import Cost, CostModel, Term
from lwdna.errors import ConstraintError
from lwdna.tables import html_table
from lwdna.tensor_channels import TensorChannels, WeightRole
from lwdna.trees import tree_map_only

Copies = Ids
#: Reason of a group that :meth:`ChannelGraph.freeze` froze; its "node" is the pattern.
FROZEN_BY_USER = "frozen by the user"
#: (slot, slot, group, node, operator): the group's units in both slots are coupled there.
Link = tuple[Slot, Slot, int, str, str]


@dataclass(frozen=True)
class ChannelGroup:
    """All units that occur in exactly the same slots: one latent vector, "the width of layer3".

    The units of a group with ``factors`` are products: one for each combination of a unit of each
    factor. Their number follows from the factors' widths, so the group itself is not prunable.

    Attributes:
        index: position in ``ChannelGraph.groups``.
        name: the producing tensor, without ``.weight``, or the first slot if nothing produces it;
            with ``:outer`` or ``:inner`` for the factors of what it produces (``:middle`` between).
        units: unit ids, ascending.
        slots: where they occur, alone or in products, with the number of occurrences of each unit
            there.
        prunable: whether the width may change.
        reasons: why not, as (reason, node) pairs; empty if prunable.
        feeds_classifier: whether the units are inputs of the layer that gives the outputs.
        factors: indices of the groups that the units are products of, outermost axis first.
    """

    index: int
    name: str
    units: Ids
    slots: tuple[tuple[Slot, int], ...]
    prunable: bool
    reasons: tuple[tuple[str, str], ...] = ()
    feeds_classifier: bool = False
    factors: tuple[int, ...] = ()

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
            meta device (real ones of a network that was captured in parts).
        origin: for a restricted graph, the unit of the unrestricted graph behind each unit.
        factors: units that each unit is the product of, shape (units, R); see
            :mod:`lwdna.copies`. R is 0 if no choice point was resolved by ``"both"``.
        links: gives the couplings, from which ``nx`` is built when it is asked for.
        calls: of a network that was captured in parts: path of each part -> the argument tuples of
            the calls whose costs are counted, as pytrees of :class:`TensorChannels`. The nodes of
            a part are named ``"path.node"``.
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
    factors: Ids = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    links: Callable[[], Iterable[Link]] = field(repr=False, compare=False, default=tuple)
    calls: Mapping[str, tuple[tuple[Any, ...], ...]] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        rows = [
            (g.name, g.width, len(g.slots), "yes" if g.prunable else _why(g))
            for g in self.groups
            if g.slots
        ]
        said = f"{len(rows)} channel groups of {self.units:,} units: {self.cost()}"
        return html_table(("group", "width", "tensors", "prunable, or why not"), rows, said)

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
        """Cost as a function of group widths; those of products follow from their factors'."""
        products = {group.index: group.factors for group in self.groups if group.factors}
        return CostModel(self.terms, self.group_of, np.maximum(self.widths, 1), products)

    @cached_property
    def prunable(self) -> NDArray[np.bool_]:
        """Whether each group may change by itself, shape (groups,)."""
        return np.array([group.prunable for group in self.groups], dtype=bool)

    @cached_property
    def changeable(self) -> NDArray[np.bool_]:
        """Whether each group may change, by itself or as a product, shape (groups,)."""
        own = self.prunable
        return np.array([bool(own[[g.index, *g.factors]].any()) for g in self.groups], dtype=bool)

    @property
    def policy(self) -> dict[str, str | int]:
        """The choices that were made, as a policy that makes them again."""
        made: dict[str, str | int] = {}
        for choice in self.choices:
            made_here = choice.chosen if choice.decided is None else choice.decided
            if made_here is not None:
                made.setdefault(choice.node, made_here)
        return made

    def inputs_per_group(self, role: WeightRole, shape: Sequence[int]) -> int:
        """C_i of the weight of ``role`` and ``shape``: how many inputs an output channel has."""
        groups = self.facts.get(role.node, {}).get("groups")
        transposed = role.in_dim < role.out_dim
        return shape[role.in_dim] // (len(groups) if transposed and groups is not None else 1)

    def keep_all(self) -> Copies:
        """One copy of every unit: the identity configuration."""
        return np.ones(self.units, dtype=np.int64)

    def completed(self, copies: Copies) -> Copies:
        """Copies with those of the products worked out from their factors, shape (units,)."""
        return arithmetic.completed(copies, self.factors)

    def gathered(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums over each unit's occurrences (..., units), a product's counted as its factors'.

        A criterion adds up what it finds at the occurrences of each unit, and calls this before
        it goes on. A factor then scores what it would score if it were the only axis to change.
        """
        return arithmetic.gathered(sums, self.factors)

    def widths_of(self, copies: Copies) -> Ids:
        """Group widths under ``copies`` (units,)."""
        widths = np.zeros(len(self.groups), dtype=np.int64)
        np.add.at(widths, self.group_of, copies)
        return widths

    def cost(self, copies: Copies | None = None) -> Cost:
        """Predicted cost on one input under ``copies``; of the graph as it is by default."""
        return self.cost_model(self.widths if copies is None else self.widths_of(copies))

    def check(self, copies: Copies) -> None:
        """Raise ``ValueError`` if ``copies`` changes what must not change or empties a group.

        Or if a product has other copies than its factors have together.
        """
        if copies.shape != (self.units,) or (copies < 0).any():
            raise ValueError(f"copies must be {self.units} non-negative integers, one per unit")
        wrong = copies != self.completed(copies)
        if wrong.any():
            product = self.groups[self.group_of[np.argmax(wrong)]]
            factors = " and ".join(repr(self.groups[g].name) for g in product.factors)
            raise ValueError(
                f"copies of group {product.name!r} are no products of those of {factors}: set the "
                "copies of these, and let graph.completed(copies) work out the others"
            )
        for group, width in zip(self.groups, self.widths_of(copies), strict=True):
            if not (group.prunable or group.factors) and (copies[group.units] != 1).any():
                reason = group.reasons[0] if group.reasons else ("not prunable", "")
                raise ValueError(f"group {group.name!r} is fixed ({reason[0]} at {reason[1]})")
            if width == 0:
                raise ValueError(f"group {group.name!r} would be empty: keep at least one unit")

    def part(self, path: str) -> ChannelGraph:
        """The channel graph of one captured part, whose nodes have their names there.

        Its only path in ``calls`` is ``""``; its ``inputs`` are those of the first call.

        Args:
            path: of a part; ``""`` is the whole of a network that is one graph.
        """
        if not path:
            return self
        start = f"{path}."

        def own(by_node: Mapping[str, Any]) -> dict[str, Any]:
            return {n[len(start) :]: v for n, v in by_node.items() if n.startswith(start)}

        values = own(self.values)
        given = next(iter(self.calls[path]))
        inputs = tree_map_only(TensorChannels, TensorChannels.empty, given)
        calls = {"": self.calls[path]}
        return replace(self, values=values, facts=own(self.facts), inputs=inputs, calls=calls)

    @cached_property
    def nx(self) -> nx.MultiGraph[tuple[Slot, int]]:
        """Slots as nodes, couplings with their cause as edges, groups as components.

        A node is a ``(Slot, group index)`` pair, because a concatenated slot belongs to several
        groups; an edge carries ``node`` and ``op``.
        """
        graph: nx.MultiGraph[tuple[Slot, int]] = nx.MultiGraph()
        for group in self.groups:
            for slot, times in group.slots:
                graph.add_node((slot, group.index), group=group.name, times=times)
        for a, b, index, node, op in self.links():
            graph.add_edge((a, index), (b, index), node=node, op=op)
        return graph

    @cached_property
    def baseline_widths(self) -> Ids:
        """Width of each group before any widening, shape (groups,): its distinct origins."""
        _, first = np.unique(self.origin, return_index=True)
        baseline: Ids = np.bincount(self.group_of[first], minlength=len(self.groups))
        return baseline

    def freeze(self, patterns: Iterable[str]) -> ChannelGraph:
        """The same graph with more groups fixed: widening and selection leave them alone.

        Args:
            patterns: ``fnmatch`` patterns of group names.

        Raises:
            ConstraintError: a pattern matches no group that could change.
        """
        groups, problems = list(self.groups), []
        for pattern in patterns:
            matched = [g for g in self.groups if g.prunable and fnmatchcase(g.name, pattern)]
            if not matched:
                problems.append(
                    f"freeze: {pattern!r} matches no group that could change; see lwdna.explain"
                )
            for group in matched:
                reason = (FROZEN_BY_USER, pattern)
                groups[group.index] = replace(group, prunable=False, reasons=(reason,))
        if problems:
            raise ConstraintError(problems)
        return replace(self, groups=tuple(groups))

    def with_terms(self, terms: Iterable[Term]) -> ChannelGraph:
        """The same graph with more cost terms, whose vectors are of its unit ids."""
        return replace(self, terms=(*self.terms, *terms))

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
        origin = np.repeat(np.arange(self.units), copies)
        moved = arithmetic.mapped(copies, self.factors)

        def vector(old: Vector) -> Vector:
            return None if old is None else moved(old)

        def channels(old: TensorChannels) -> TensorChannels:
            vectors = tuple(vector(v) for v in old.vectors)
            shape = tuple(
                n if v is None else len(v) for n, v in zip(old.shape, vectors, strict=True)
            )
            return replace(old, shape=shape, vectors=vectors)

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
            factors=arithmetic.restricted(self.factors, copies),
            calls={
                path: tuple(tree_map_only(TensorChannels, channels, call) for call in calls)
                for path, calls in self.calls.items()
            },
        )


def _why(group: ChannelGroup) -> str:
    return next((reason for reason, _ in group.reasons), "no")
