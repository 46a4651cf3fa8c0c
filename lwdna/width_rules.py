"""Constraints against a graph: the widths that every group may have, or all contradictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lwdna.channels import Ids
from lwdna.constraints import Constraints, Floors, portion
from lwdna.errors import ConstraintError
from lwdna.graph import FROZEN_BY_USER, ChannelGraph, ChannelGroup


@dataclass(frozen=True, eq=False)
class WidthRules:
    """The widths that the groups may have, one entry per group, each of shape (groups,), int64.

    Attributes:
        least: least allowed width.
        most: greatest allowed width; equal to ``least`` where the width is fixed.
        divisor: allowed widths are multiples of it, or the baseline or current width.
        tie: class of the group; groups of one class have equal widths.
        baseline: width before any widening.
        current: width in the graph.
    """

    least: Ids
    most: Ids
    divisor: Ids
    tie: Ids
    baseline: Ids
    current: Ids

    def ladder(self, group: int) -> Ids:
        """The allowed widths of a group, ascending."""
        least, most = int(self.least[group]), int(self.most[group])
        own = (int(self.baseline[group]), int(self.current[group]))
        return _ladder(least, most, int(self.divisor[group]), own)


def resolve(graph: ChannelGraph, constraints: Constraints) -> WidthRules:
    """What the constraints mean for the groups of a graph.

    Args:
        graph: the channel graph, as a rule widened. Groups that match ``freeze`` are fixed at
            their baseline width, whether or not :meth:`ChannelGraph.freeze` fixed them before.
        constraints: the constraints.

    Returns:
        The allowed widths. Every ``least`` and ``most`` is an allowed width.

    Raises:
        ConstraintError: some constraints contradict one another or the graph, or concern no group
            that can change; the message lists all of them.
    """
    problems: list[str] = []
    frozen = _frozen(graph, constraints, problems)
    free = graph.prunable & ~frozen
    groups = [group for group in graph.groups if free[group.index]]
    baseline, current = graph.baseline_widths, graph.widths
    growth = _values(graph, groups, "max_growth", constraints.max_growth, None, problems)
    caps = {
        g: int(current[g]) if factor is None else min(portion(factor, baseline[g]), current[g])
        for g, factor in growth.items()
    }
    floors = _floors(graph, groups, constraints.floors, caps, problems)
    divisors = _values(graph, groups, "divisor", constraints.divisor, 1, problems)
    divisor = np.array([divisors.get(g, 1) for g in range(len(current))], dtype=np.int64)
    tie = _classes(graph, constraints, free, divisor, problems)
    least, most = np.where(frozen, baseline, current), np.where(frozen, baseline, current)
    for members in np.split(np.argsort(tie, kind="stable"), np.cumsum(np.bincount(tie))[:-1]):
        if not free[members].all():
            continue  # a class of one; ties of fixed groups are refused
        first = int(members[0])
        low, high = max(floors[g] for g in members), min(caps[g] for g in members)
        own = (int(baseline[first]), int(current[first]))
        ladder = _ladder(low, high, int(divisor[first]), own)
        if len(ladder):
            least[members], most[members] = ladder[0], ladder[-1]
        else:
            names = " = ".join(repr(graph.groups[g].name) for g in members)
            problems.append(
                f"group {names}: no width is left between its floor of {low} and its cap of {high}"
                f" (divisor {divisor[first]}, baseline width {own[0]}, present width {own[1]})"
            )
    if problems:
        raise ConstraintError(problems)
    return WidthRules(least, most, divisor, tie, baseline, current)


def _ladder(low: int, high: int, divisor: int, own: Iterable[int]) -> Ids:
    """Multiples of ``divisor`` and the group's own widths, from ``low`` to ``high``."""
    multiples = np.arange(-(-low // divisor) * divisor, high + 1, divisor, dtype=np.int64)
    extra = [width for width in own if low <= width <= high]
    return np.unique(np.concatenate([multiples, np.array(extra, dtype=np.int64)]))


def _matching(groups: Iterable[ChannelGroup], pattern: str) -> list[ChannelGroup]:
    return [group for group in groups if fnmatchcase(group.name, pattern)]


def _useless(graph: ChannelGraph, what: str, pattern: str) -> str:
    """Why a pattern concerns no group that can change."""
    named = _matching(graph.groups, pattern)
    if not named:
        return f"{what}: {pattern!r} matches no group; see lwdna.explain"
    reason, node = next(iter(named[0].reasons), ("frozen by these constraints", ""))
    at = f" at {node}" if node else ""
    return (
        f"{what}: {pattern!r} matches only groups that cannot change ({named[0].name!r}: "
        f"{reason}{at})"
    )


def _frozen(
    graph: ChannelGraph, constraints: Constraints, problems: list[str]
) -> NDArray[np.bool_]:
    """Which groups the constraints freeze, shape (groups,)."""
    mask = np.zeros(len(graph.groups), dtype=bool)
    for pattern in constraints.freeze:
        matched = [
            group.index
            for group in _matching(graph.groups, pattern)
            if group.prunable or any(reason == FROZEN_BY_USER for reason, _ in group.reasons)
        ]
        if not matched:
            problems.append(_useless(graph, "freeze", pattern))
        mask[matched] = True
    return mask


def _values(
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
    what: str,
    given: Any,
    default: Any,
    problems: list[str],
) -> dict[int, Any]:
    """Value of each group: the one for all, or that of the first pattern that matches."""
    if not isinstance(given, Mapping):
        return {group.index: given for group in groups}
    values: dict[int, Any] = {}
    for pattern, value in given.items():
        matched = _matching(groups, pattern)
        if not matched:
            problems.append(_useless(graph, what, pattern))
        elif all(group.index in values for group in matched):
            problems.append(
                f"{what}: {pattern!r} matches only groups that earlier patterns match; put the "
                "narrower pattern first"
            )
        for group in matched:
            values.setdefault(group.index, value)
    return {group.index: values.get(group.index, default) for group in groups}


def _floors(
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
    floors: Floors,
    caps: Mapping[int, int],
    problems: list[str],
) -> dict[int, int]:
    """Floor of each group, not yet a multiple of its divisor."""
    overrides = _values(graph, groups, "floors: overrides", floors.overrides, None, problems)
    least = {}
    for group in groups:
        g, own = group.index, overrides[group.index]
        if own is None:
            fraction = floors.classifier if group.feeds_classifier else floors.fraction
            absolute = min(floors.absolute, caps[g], graph.baseline_widths[g])
            least[g] = max(portion(fraction, group.width), int(absolute), 1)
        elif isinstance(own, float):
            least[g] = max(portion(own, group.width), 1)
        else:
            least[g] = int(own)
    return least


def _classes(
    graph: ChannelGraph,
    constraints: Constraints,
    free: NDArray[np.bool_],
    divisor: Ids,
    problems: list[str],
) -> Ids:
    """Class of each group under the ties, shape (groups,): classes are numbered from 0."""
    tie = np.arange(len(graph.groups))
    taken: dict[int, int] = {}
    for k, patterns in enumerate(constraints.tie):
        members: dict[int, ChannelGroup] = {}
        for pattern in patterns:
            matched = _matching(graph.groups, pattern)
            if not matched:
                problems.append(_useless(graph, f"tie[{k}]", pattern))
            members |= {group.index: group for group in matched}
        found = _tie_problems(graph, members.values(), free, divisor)
        found += [
            f"{graph.groups[g].name!r} is also in tie[{taken[g]}]; write one entry with all of them"
            for g in members
            if g in taken
        ]
        problems += [f"tie[{k}]: {problem}" for problem in found]
        taken |= dict.fromkeys(members, k)
        if members and not found:
            tie[list(members)] = min(members)
    classes: Ids = np.unique(tie, return_inverse=True)[1].astype(np.int64)
    return classes


def _tie_problems(
    graph: ChannelGraph,
    members: Iterable[ChannelGroup],
    free: NDArray[np.bool_],
    divisor: Ids,
) -> list[str]:
    """Why these groups cannot keep equal widths."""
    problems, can_change = [], []
    for group in members:
        if free[group.index]:
            can_change.append(group)
            continue
        reason = next(iter(group.reasons), ("frozen by these constraints", ""))[0]
        problems.append(f"{group.name!r} cannot change ({reason}), so nothing can be tied to it")
    if len(can_change) < 2 and not problems:
        names = ", ".join(repr(group.name) for group in can_change) or "nothing"
        problems.append(f"the patterns match {names}; a tie needs two groups")
    for what, values in (
        ("baseline widths", graph.baseline_widths),
        ("present widths", graph.widths),
        ("divisors", divisor),
    ):
        found = {group.name: int(values[group.index]) for group in can_change}
        if len(set(found.values())) > 1:
            listed = ", ".join(f"{name!r}: {value}" for name, value in found.items())
            problems.append(f"different {what} ({listed})")
    return problems
