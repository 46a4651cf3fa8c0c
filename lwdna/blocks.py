"""What a selection decides on: which blocks of channels to add to the least widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lwdna.channels import Ids
from lwdna.graph import ChannelGraph, Copies
from lwdna.pricing import Pricing
from lwdna.width_rules import WidthRules

Floats = NDArray[np.float64]
_NO_LIMIT = 2**62  # far above any cost, and sums with costs stay within int64


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks above the least widths, within limits.

    A class is a group, or several that are tied, whose width can change. It climbs a ladder of
    allowed widths; the channels between two rungs are a block, the most salient ones first. A
    configuration is a level per class: the number of its blocks that are kept, shape (C,), int64.
    Blocks are listed by saliency. Along a ladder it only falls, so the first blocks of a class in
    the list are its lowest ones.

    Attributes:
        members: indices of the groups of each class, C arrays.
        rungs: the ladders, one after the other.
        start: where each class's ladder starts in ``rungs``, (C,).
        height: number of blocks of each class, (C,).
        of: class of each block, (B,).
        mean: mean saliency of each block's units, (B,).
        total: summed saliency of each block by class and level (not by saliency), (B,).
        ranked: all units by group, the most salient first, (units,).
        least: width of every group at level 0, (groups,).
        limits: the most that a configuration may cost in each metric, (M,).
        pricing: its cost, in the same metrics.
    """

    members: tuple[Ids, ...]
    rungs: Ids
    start: Ids
    height: Ids
    of: Ids
    mean: Floats
    total: Floats
    ranked: Ids
    least: Ids
    limits: Ids
    pricing: Pricing

    def widths(self, levels: Ids) -> Ids:
        """Width of each class, shape (C,)."""
        widths: Ids = self.rungs[self.start + levels]
        return widths

    def group_widths(self, levels: Ids) -> Ids:
        """Width of each group, shape (groups,)."""
        widths = self.least.copy()
        for members, width in zip(self.members, self.widths(levels).tolist(), strict=True):
            widths[members] = width
        return widths

    def fits(self, levels: Ids) -> bool:
        """Whether a configuration is within all limits."""
        return bool((self.pricing.cost(self.widths(levels)) <= self.limits).all())

    def step(self, levels: Ids, by: int) -> Ids:
        """Units that each class gains if it moves ``by`` levels (0 beyond an end), shape (C,)."""
        there = np.clip(levels + by, 0, self.height)
        return self.widths(there) - self.widths(levels)

    def next_fits(self, levels: Ids) -> NDArray[np.bool_]:
        """Which classes could add their next block to a configuration that fits, shape (C,)."""
        widths = self.widths(levels)
        left = self.limits - self.pricing.cost(widths)
        prices = self.pricing.prices(widths, self.step(levels, 1))
        fits: NDArray[np.bool_] = (prices <= left[:, None]).all(axis=0) & (levels < self.height)
        return fits

    def saliency(self, levels: Ids) -> float:
        """Summed saliency of the kept blocks."""
        kept = np.arange(len(self.total)) - np.repeat(self._first, self.height) < np.repeat(
            levels, self.height
        )
        return float(self.total[kept].sum())

    def block_saliency(self, levels: Ids) -> Floats:
        """Summed saliency of the block above each class's level; 0 at its top. Shape (C,)."""
        padded = np.append(self.total, 0.0)
        at = np.minimum(self._first + levels, len(self.total))
        return np.where((levels >= 0) & (levels < self.height), padded[at], 0.0)

    @property
    def _first(self) -> Ids:
        """Position of each class's lowest block in ``total``, (C,)."""
        first: Ids = np.cumsum(self.height) - self.height
        return first

    def copies(self, graph: ChannelGraph, levels: Ids) -> Copies:
        """1 for every unit that a configuration keeps, shape (units,)."""
        widths = self.group_widths(levels)
        rank = np.empty(graph.units, dtype=np.int64)
        starts = np.cumsum(graph.widths) - graph.widths
        rank[self.ranked] = np.arange(graph.units) - np.repeat(starts, graph.widths)
        return graph.completed((rank < widths[graph.group_of]).astype(np.int64))


def make_blocks(
    graph: ChannelGraph, saliency: Floats, rules: WidthRules, limits: Mapping[str, int]
) -> Blocks:
    """The blocks of a graph.

    Args:
        graph: the channel graph.
        saliency: importance of each unit, shape (units,); anything for units of fixed groups.
        rules: the allowed widths.
        limits: metric name -> most.
    """
    members = _classes(rules)
    ladders = [rules.ladder(int(groups[0])) for groups in members]
    height = np.array([len(ladder) - 1 for ladder in ladders], dtype=np.int64)
    known = np.where(np.isfinite(saliency), saliency, 0.0)
    ranked = np.lexsort((-known, graph.group_of))
    total, first = _sums(graph, known[ranked], ranked, members, ladders)
    units = np.concatenate(
        [np.zeros(0), *(len(m) * np.diff(la) for m, la in zip(members, ladders, strict=True))]
    )
    of = np.repeat(np.arange(len(members)), height)
    mean = total / units
    order = np.lexsort((first, -mean))
    return Blocks(
        members=members,
        rungs=np.concatenate([np.zeros(0, np.int64), *ladders]),
        start=np.cumsum(height + 1) - (height + 1),
        height=height,
        of=of[order],
        mean=mean[order],
        total=total,
        ranked=ranked,
        least=rules.least,
        limits=np.array([min(limit, _NO_LIMIT) for limit in limits.values()], dtype=np.int64),
        pricing=Pricing(graph.cost_model, tuple(limits), rules.least, members),
    )


def _classes(rules: WidthRules) -> tuple[Ids, ...]:
    """Groups whose width can change, by tie class."""
    changing = np.flatnonzero(rules.most > rules.least)
    order = changing[np.argsort(rules.tie[changing], kind="stable")]
    bounds = np.flatnonzero(np.diff(rules.tie[order])) + 1
    return tuple(np.split(order, bounds)) if len(order) else ()


def _sums(
    graph: ChannelGraph,
    ordered: Floats,
    ranked: Ids,
    members: tuple[Ids, ...],
    ladders: list[Ids],
) -> tuple[Floats, Ids]:
    """Summed saliency and first unit of every block, by class and level."""
    starts = np.cumsum(graph.widths) - graph.widths
    padded = np.append(ordered, 0.0)
    bounds, blocks, begin = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for groups, ladder in zip(members, ladders, strict=True):
        for g in groups.tolist():
            bounds.append(starts[g] + ladder)
            blocks.append(np.append(np.arange(begin, begin + len(ladder) - 1), -1))
        begin += len(ladder) - 1
    edge, block = np.concatenate(bounds), np.concatenate(blocks)
    total, first = np.zeros(begin), np.full(begin, graph.units, dtype=np.int64)
    if begin:
        inside = block >= 0
        np.add.at(total, block[inside], np.add.reduceat(padded, edge)[inside])
        np.minimum.at(first, block[inside], ranked[edge[inside]])
    return total, first
