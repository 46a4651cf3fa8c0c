"""Small channel graphs and selection problems on them."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fnmatch import fnmatchcase as fnmatch
from functools import cache
from itertools import pairwise

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from lwdna.budget import cost_range
from lwdna.channels import Slot
from lwdna.constraints import Constraints, Floors
from lwdna.cost import Term
from lwdna.errors import ConstraintError
from lwdna.graph import ChannelGraph, ChannelGroup
from lwdna.selection import Selection
from tests.scoring.networks import Concatenated, Depthwise, Net, Residual, analysed

NO_FLOORS = Floors(0, 1, 0)


@cache
def graph_of(model: type[Net], widen: int = 1) -> ChannelGraph:
    _, graph = analysed(model())
    return graph.restrict(np.where(graph.prunable[graph.group_of], widen, 1))


def toy(*widths: int, frozen: int = 1) -> ChannelGraph:
    """A chain of linear layers: macs = params = Σ w[i]·w[i+1], the first and last width fixed."""
    widths = (frozen, *widths, frozen)
    group_of = np.repeat(np.arange(len(widths)), widths)
    units = [np.flatnonzero(group_of == g) for g in range(len(widths))]
    fixed = (0, len(widths) - 1)
    return ChannelGraph(
        tensors={},
        buffers=frozenset(),
        groups=tuple(
            ChannelGroup(g, f"g{g}", u, ((Slot("w", 0), 1),), g not in fixed)
            for g, u in enumerate(units)
        ),
        group_of=group_of,
        terms=tuple(
            Term(kind, 1, pair, "n") for pair in pairwise(units) for kind in ("linear", "params")
        ),
        values={},
        facts={},
        roles={},
        choices=(),
        origin=np.arange(len(group_of)),
        inputs=(),
    )


def kept(graph: ChannelGraph, selection: Selection) -> list[int]:
    return graph.widths_of(selection.copies).tolist()


graphs = st.one_of(
    st.builds(
        graph_of,
        st.sampled_from([Net, Residual, Concatenated, Depthwise]),
        st.sampled_from([1, 2, 3]),
    ),
    st.builds(toy, *[st.integers(1, 12)] * 3),
)


def allowed(graph: ChannelGraph, constraints: Constraints, g: int) -> list[int]:
    """The widths a group may have, straight from the definitions."""
    group, floors = graph.groups[g], constraints.floors
    baseline = len(set(graph.origin[group.units]))
    if not group.prunable:
        return [group.width]
    if any(fnmatch(group.name, p) for p in constraints.freeze):
        return [baseline]

    def value(given: object, default: object) -> object:
        if isinstance(given, dict):
            return next((v for p, v in given.items() if fnmatch(group.name, p)), default)
        return given

    growth = value(constraints.max_growth, None)
    cap = group.width if growth is None else min(group.width, int(Decimal(str(growth)) * baseline))
    own = value(dict(floors.overrides), None)
    if own is None:
        share = floors.classifier if group.feeds_classifier else floors.fraction
        floor = max(int(Decimal(str(share)) * group.width), min(floors.absolute, cap, baseline))
    else:
        floor = own if isinstance(own, int) else int(Decimal(str(own)) * group.width)
    divisor = value(constraints.divisor, 1)
    return [
        w for w in range(max(floor, 1), cap + 1) if w % divisor == 0 or w in (baseline, group.width)
    ]


def classes(graph: ChannelGraph, constraints: Constraints) -> list[tuple[list[int], list[int]]]:
    """(groups that share a width, widths they may have) for all groups that can change."""
    ties = [
        [g.index for g in graph.groups if any(fnmatch(g.name, p) for p in entry)]
        for entry in constraints.tie
    ]
    tied = {g for tie in ties for g in tie}
    ties += [[g.index] for g in graph.groups if g.prunable and g.index not in tied]
    widths = [[allowed(graph, constraints, g) for g in tie] for tie in ties]
    shared = [sorted(set.intersection(*map(set, own))) for own in widths]
    return list(zip(ties, shared, strict=True))


def within(graph: ChannelGraph, widths: np.ndarray, limits: dict[str, int]) -> bool:
    cost = graph.cost_model(widths)
    return all(cost[metric] <= limit for metric, limit in limits.items())


def best_first(graph: ChannelGraph, saliency: np.ndarray, g: int) -> list[int]:
    return sorted(graph.groups[g].units.tolist(), key=lambda u: (-saliency[u], u))


def total(graph: ChannelGraph, saliency: np.ndarray, copies: np.ndarray) -> float:
    """Summed saliency of the kept units of groups that may change."""
    return float(saliency[(copies == 1) & graph.prunable[graph.group_of]].sum())


def chain(draw: st.DrawFn) -> ChannelGraph:
    """A widened chain of linear layers with unequal costs."""
    width = st.integers(1, 8)
    graph = toy(*draw(st.lists(width, min_size=1, max_size=4)), frozen=draw(st.integers(1, 3)))
    cost = st.integers(1, 9)
    graph = replace(graph, terms=tuple(replace(t, coefficient=draw(cost)) for t in graph.terms))
    copies = graph.keep_all()
    for group in graph.groups:
        if group.prunable:
            copies[group.units] = draw(st.integers(1, 3))
            copies[group.units[0]] += draw(st.integers(0, 1))
    return graph.restrict(copies)


@st.composite
def constraints_for(draw: st.DrawFn, graph: ChannelGraph) -> Constraints:
    names = [g.name for g in graph.groups if g.prunable]
    name = st.sampled_from(names)
    fraction, units = st.sampled_from([0.0, 0.1, 0.3, 0.75]), st.integers(1, 3)
    divisor = st.sampled_from([1, 1, 2, 3, 8])
    alike: dict[tuple[int, int], list[str]] = {}
    for g in graph.groups:
        if g.prunable:
            alike.setdefault((g.width, len(set(graph.origin[g.units]))), []).append(g.name)
    pairs = [same[:2] for same in alike.values() if len(same) > 1]
    return Constraints(
        floors=Floors(
            draw(fraction),
            draw(st.integers(1, 4)),
            draw(fraction),
            draw(st.dictionaries(name, st.one_of(fraction, units), max_size=2)),
        ),
        divisor=draw(st.one_of(divisor, divisor, st.dictionaries(name, divisor, max_size=2))),
        freeze=draw(st.lists(name, max_size=1)),
        tie=draw(st.lists(st.sampled_from(pairs), max_size=1)) if pairs else (),
        max_growth=draw(
            st.one_of(
                st.none(),
                st.sampled_from([0.75, 1.0, 1.5, 4.0]),
                st.dictionaries(name, st.sampled_from([1.0, 1.25]), max_size=2),
            )
        ),
    )


Problem = tuple[ChannelGraph, np.ndarray, dict[str, int], Constraints]


@st.composite
def problems(draw: st.DrawFn, small: bool = False) -> Problem:
    """A graph, saliencies, one or more limits that can be met, and constraints that can hold."""
    graph = chain(draw) if small or draw(st.booleans()) else draw(graphs)
    levels = draw(st.sampled_from([2, 5, 10_000]))  # few levels: many ties
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    skew = 2.0 ** rng.integers(-9, 1, len(graph.groups))  # sums of saliencies are exact
    saliency = rng.integers(0, levels, graph.units) * skew[graph.group_of]
    constraints = draw(constraints_for(graph))
    try:
        ranges = cost_range(graph, constraints)
    except ConstraintError:
        assume(False)
    metrics = draw(st.sets(st.sampled_from(("macs", "params")), min_size=1))
    if not small:
        metrics |= draw(st.sets(st.sampled_from(sorted(ranges)), max_size=1))
    limits = {}
    for metric in sorted(metrics):
        least, most = ranges[metric]
        if most:
            limits[metric] = max(least + int(draw(st.floats(0, 1)) * (most - least)), 1)
    return graph, saliency, limits, constraints
