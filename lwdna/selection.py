"""Select: saliency + budget + floors + divisor -> which channels stay.

One threshold over the saliencies of all channels, a floor per group, never above the budget, and
what the threshold leaves over is given back. The search is exact: channels are sorted once and
the threshold is bisected with the closed-form cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lwdna.budget import Floors, attainable, check_attainable, least_widths
from lwdna.channels import Ids
from lwdna.cost import METRICS, Cost, CostModel, Term
from lwdna.errors import ScoringError
from lwdna.graph import ChannelGraph, Copies

#: What a selection uses less than this of every limit, it explains.
WELL_USED = 0.995


@dataclass(frozen=True, eq=False)
class Selection:
    """Which channels stay, and what that costs.

    Attributes:
        copies: 1 for a unit that stays and 0 for one that goes, shape (units,), int64.
        cost: cost of the selection.
        used: metric -> used fraction of its limit, at most 1.
        threshold: saliency of the last block that the global threshold kept; ``inf`` if the
            floors are all it kept. What was given back afterwards lies below it.
        note: why less than 99.5 % of every limit is used; ``None`` if one is.
    """

    copies: Copies
    cost: Cost
    used: dict[str, float]
    threshold: float
    note: str | None = None


def select(
    graph: ChannelGraph,
    saliency: NDArray[np.float64],
    limits: Mapping[str, int],
    *,
    floors: Floors | None = None,
    divisor: int = 1,
) -> Selection:
    """Keep the most salient channels that the budget allows.

    Each prunable group's units are sorted by saliency and cut into blocks of ``divisor`` units;
    the first blocks of a group are its floor. Of the other blocks, all at and above one global
    threshold are kept, the lowest threshold that stays within every limit. Then the blocks below
    it are offered, in descending order, what is left. No block that was left out fits any more.

    Args:
        graph: the (widened) channel graph.
        saliency: importance of each unit, shape (units,), any finite numbers; those of fixed
            groups do not matter. Equal saliencies are ordered by unit id.
        limits: metric name -> most that the result may cost (see :meth:`Budget.limits`).
        floors: least widths; ``Floors()`` by default.
        divisor: a group's width will be a multiple of it, or its current width. A block's
            saliency is its units' mean; floors are rounded up.

    Returns:
        The selection.

    Raises:
        ScoringError: a saliency is NaN or infinite.
        BudgetError: the floors alone exceed a limit, or the whole network stays below all of
            them; carries the attainable range.
        ValueError: a saliency of the wrong shape, an unknown metric, a limit or divisor below 1.

    Source: METHOD §3, with an exact search in place of the released code's fixed steps.
    """
    floors = floors or Floors()
    _check_saliency(graph, saliency)
    _check_limits(limits)
    check_attainable(limits, attainable(graph, floors, divisor))
    least = least_widths(graph, floors, divisor)
    queue = _queue(graph, np.asarray(saliency, dtype=np.float64), least, divisor)
    kept = _bisect(graph, queue, limits)
    growth = _Growth(graph, queue.widths(kept), limits)
    for g in queue.group[kept:].tolist():  # descending saliency
        growth.grow(g, divisor)
    copies = np.ones(graph.units, dtype=np.int64)
    for g in np.flatnonzero(growth.widths < graph.widths).tolist():
        copies[queue.ranked[g][growth.widths[g] :]] = 0
    used = {metric: growth.cost[metric] / limit for metric, limit in limits.items()}
    return Selection(
        copies=copies,
        cost=Cost(**growth.cost),
        used=used,
        threshold=float(queue.saliency[kept - 1]) if kept else float("inf"),
        note=None if max(used.values()) >= WELL_USED else _note(growth, used, divisor),
    )


@dataclass(frozen=True)
class _Queue:
    """The blocks above the floors, most salient first.

    The blocks of one group come in the order of ``ranked``, so a prefix of the queue is a number
    of blocks per group.
    """

    least: Ids  # widths of the floors, (groups,)
    most: Ids  # present widths, (groups,)
    divisor: int
    ranked: dict[int, Ids]  # prunable group -> its units, most salient first
    group: Ids  # (blocks,)
    saliency: NDArray[np.float64]  # (blocks,)

    def widths(self, kept: int) -> Ids:
        """Group widths when the first ``kept`` blocks are kept, shape (groups,)."""
        blocks = np.bincount(self.group[:kept], minlength=len(self.least))
        widths: Ids = np.minimum(self.least + self.divisor * blocks, self.most)
        return widths


def _queue(graph: ChannelGraph, saliency: NDArray[np.float64], least: Ids, divisor: int) -> _Queue:
    ranked: dict[int, Ids] = {}
    columns: list[tuple[Ids, NDArray[np.float64], Ids]] = [_NO_BLOCKS]
    for group in graph.groups:
        if not group.prunable:
            continue
        units = group.units[np.argsort(-saliency[group.units], kind="stable")]
        ranked[group.index] = units
        starts = np.arange(least[group.index], len(units), divisor)
        if len(starts):
            sums = np.add.reduceat(saliency[units], starts)
            means = sums / np.minimum(divisor, len(units) - starts)
            columns.append((np.full(len(starts), group.index), means, units[starts]))
    index, means, first = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.lexsort((first, -means))
    return _Queue(least, graph.widths, divisor, ranked, index[order], means[order])


_NO_BLOCKS = (np.zeros(0, np.int64), np.zeros(0, np.float64), np.zeros(0, np.int64))


def _bisect(graph: ChannelGraph, queue: _Queue, limits: Mapping[str, int]) -> int:
    """The largest number of blocks whose cost is within all limits; cost grows with it."""
    low, high = 0, len(queue.group)
    while low < high:
        middle = (low + high + 1) // 2
        cost = graph.cost_model(queue.widths(middle))
        if all(cost[metric] <= limit for metric, limit in limits.items()):
            low = middle
        else:
            high = middle - 1
    return low


class _Growth:
    """A configuration that grows block by block, within limits.

    Cost is a polynomial of the widths with non-negative coefficients, so the price of a block
    only rises as others are added: a group that did not fit once is closed for good. The price
    comes from the terms that contain the group, a small cost model of their own.
    """

    def __init__(self, graph: ChannelGraph, widths: Ids, limits: Mapping[str, int]) -> None:
        self.graph = graph
        self.widths = widths
        self.limits = limits
        self.cost = graph.cost_model(widths).as_dict()
        self._closed: set[int] = set()
        self._local: dict[int, CostModel] = {}
        self._terms: dict[int, list[Term]] = {}
        for term in graph.terms:
            groups = {int(g) for v in term.vectors for g in np.unique(graph.group_of[v])}
            for g in groups:
                self._terms.setdefault(g, []).append(term)

    def price(self, g: int, size: int) -> tuple[int, dict[str, int]]:
        """Units of the next block of group ``g``, and what it would add to each metric."""
        if g not in self._local:
            self._local[g] = CostModel(
                self._terms.get(g, []), self.graph.group_of, np.maximum(self.graph.widths, 1)
            )
        size = min(size, self.graph.groups[g].width - int(self.widths[g]))
        before = self._local[g](self.widths)
        self.widths[g] += size
        after = self._local[g](self.widths)
        self.widths[g] -= size
        return size, {metric: after[metric] - before[metric] for metric in METRICS}

    def grow(self, g: int, size: int) -> None:
        """Add the next block of group ``g`` if it fits."""
        if g in self._closed:
            return
        size, price = self.price(g, size)
        if any(self.cost[m] + price[m] > limit for m, limit in self.limits.items()):
            self._closed.add(g)
            return
        self.widths[g] += size
        for metric in METRICS:
            self.cost[metric] += price[metric]


def _note(growth: _Growth, used: Mapping[str, float], divisor: int) -> str:
    """Why the selection leaves part of its budget."""
    figures = ", ".join(f"{value:.1%} of {metric}" for metric, value in used.items())
    open_groups = np.flatnonzero(growth.widths < growth.graph.widths)
    if not len(open_groups):
        return f"{figures} used: every channel is kept; widen the network to use more"
    left = {metric: limit - growth.cost[metric] for metric, limit in growth.limits.items()}
    overshoot = []
    for g in open_groups.tolist():
        size, price = growth.price(g, divisor)
        metric = max(left, key=lambda m: price[m] / left[m])
        overshoot.append((price[metric] / left[metric], g, size, metric, price[metric]))
    _, g, size, metric, price_of = min(overshoot)
    channels = f"{size} channel{'s' * (size > 1)} of {growth.graph.groups[g].name!r}"
    cause = f"; divisor={divisor} sets the block size" if divisor > 1 else ""
    return (
        f"{figures} used: {left[metric]:,} {metric} are left, and the smallest block that was "
        f"left out ({channels}) costs {price_of:,}{cause}"
    )


def _check_saliency(graph: ChannelGraph, saliency: NDArray[np.float64]) -> None:
    shape, kind = np.shape(saliency), np.asarray(saliency).dtype.kind
    if shape != (graph.units,) or kind not in "fiu":
        raise ValueError(
            f"saliency: one number for each of the graph's {graph.units} units, not shape {shape} "
            f"of {np.asarray(saliency).dtype}. It must be scored on the graph it selects from"
        )
    for group in graph.groups:
        if group.prunable and not np.isfinite(np.asarray(saliency)[group.units]).all():
            raise ScoringError(
                f"saliency of group {group.name!r} is NaN or infinite: check the loss and the "
                "batches, or score with another criterion"
            )


def _check_limits(limits: Mapping[str, int]) -> None:
    if not limits or not set(limits) <= set(METRICS):
        raise ValueError(f"limits {dict(limits)}: at least one of {', '.join(METRICS)}")
    for metric, limit in limits.items():
        if isinstance(limit, bool) or not isinstance(limit, (int, np.integer)) or limit < 1:
            raise ValueError(f"limit {metric}={limit!r}: a positive int (see Budget.limits)")
