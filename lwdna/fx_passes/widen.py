"""Widen: more copies of every prunable unit, by any real multiplier per group."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from lwdna.fx_passes._base import captured, described, graph_pass, own_state
from lwdna.fx_passes.resize import resize
from lwdna.graph import ChannelGraph, ChannelGroup, Copies

Multiplier = float | Mapping[str, float]


def widen_copies(graph: ChannelGraph, multiplier: Multiplier) -> Copies:
    """Copies per unit that give every prunable group ``multiplier`` times its width.

    Args:
        graph: the channel graph.
        multiplier: a factor >= 1 for all groups, or a mapping from group-name pattern
            (``fnmatch``) to factor; groups that match nothing keep their width. The new width is
            the nearest integer; copies that do not come out even go to the group's first units.
            Where two axes of a dimension may change (policy ``"both"``), each is a group, and the
            dimension grows by the product of their factors.

    Returns:
        int64 array of shape (units,), every entry >= 1.

    Raises:
        ValueError: a factor below 1 or not finite, or a pattern that matches no group.
    """
    if isinstance(multiplier, Mapping):
        for pattern in multiplier:
            if not any(fnmatchcase(group.name, pattern) for group in graph.groups):
                raise ValueError(f"widen pattern {pattern!r} matches no group; see lwdna.explain")
    copies = graph.keep_all()
    for group in graph.groups:
        factor = _factor(group, multiplier)
        if group.prunable and factor > 1:
            every, extra = divmod(round(group.width * factor), group.width)
            copies[group.units] = every
            copies[group.units[:extra]] += 1
    return graph.completed(copies)


def _factor(group: ChannelGroup, multiplier: Multiplier) -> float:
    if isinstance(multiplier, Mapping):
        matches = (f for pattern, f in multiplier.items() if fnmatchcase(group.name, pattern))
        factor = next(matches, 1.0)
    else:
        factor = multiplier
    if isinstance(factor, bool) or not isinstance(factor, (int, float, np.number)):
        raise TypeError(f"widen = {factor!r}: a number, or a mapping from pattern to number")
    if not np.isfinite(factor) or factor < 1:
        raise ValueError(f"widen = {factor!r}: a finite factor >= 1 is needed (1 does not widen)")
    return float(factor)


@graph_pass(requires=(captured, described), ensures=(own_state,))
def widen(
    gm: nn.Module,
    graph: ChannelGraph,
    multiplier: Multiplier,
    *,
    seed: int = 0,
) -> tuple[nn.Module, ChannelGraph]:
    """The widened network and its channel graph.

    Args:
        gm: a captured network; it is not changed.
        graph: its channel graph.
        multiplier: see :func:`widen_copies`.
        seed: seeds the new entries; see :func:`lwdna.resize`.

    Returns:
        (widened network, channel graph of it whose ``origin`` names the unit behind each).

    Raises:
        ValueError: see :func:`widen_copies`.

    Source: Li et al., "The Heterogeneity Hypothesis", CVPR 2021 (baselines are widened, then
    shrunk); Gordon et al., "MorphNet", CVPR 2018 (the expansion, of all groups alike).
    """
    copies = widen_copies(graph, multiplier)
    return resize(gm, graph, copies, seed=seed), graph.restrict(copies)
