"""Select: saliency + limits + constraints -> which channels stay.

Exact in what it promises: never above a limit, every constraint kept, and nothing that was left
out still fits. Costs are closed-form, so no network is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lwdna.allocation import balanced, saliency_per_cost, threshold
from lwdna.blocks import Blocks, make_blocks
from lwdna.budget import check_attainable, rules_range
from lwdna.channels import Ids
from lwdna.constraints import Constraints
from lwdna.cost import METRICS, Cost
from lwdna.errors import ScoringError
from lwdna.graph import ChannelGraph, Copies
from lwdna.width_rules import WidthRules, resolve

Allocation = Literal["balanced", "threshold", "saliency-per-cost"]

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
            floors are all it kept. What was given back afterwards lies below it. ``None`` if no
            single threshold made the selection.
        note: why less than 99.5 % of every limit is used; ``None`` if one is.
    """

    copies: Copies
    cost: Cost
    used: dict[str, float]
    threshold: float | None
    note: str | None = None


def select(
    graph: ChannelGraph,
    saliency: NDArray[np.float64],
    limits: Mapping[str, int],
    *,
    constraints: Constraints | None = None,
    allocation: Allocation = "balanced",
) -> Selection:
    """Keep the most salient channels that the budget allows.

    Each group's units are sorted by saliency and cut into blocks, one for each step from an
    allowed width to the next (one unit, unless there is a divisor); tied groups take their steps
    together. A block's saliency is its units' mean. Within a group the most salient stay, and no
    block that was left out fits any more, in all allocations:

    ``"balanced"``: as ``"threshold"`` where that uses all limits, one limit above all. Otherwise a
    group's threshold is raised the more of the scarce limit, and lowered the more of the others,
    a channel of the group costs, just so far that each limit is used as much as uniform widths
    would use it (as far as that can be). Saliencies below 0 are shifted to 0 for that.

    ``"threshold"``: all blocks at and above one global threshold are kept, the lowest threshold
    that stays within every limit. Then the blocks below it are offered, in descending order, what
    is left.

    ``"saliency-per-cost"``: the total kept saliency is made great. Blocks are ordered by saliency
    per marginal cost at the present configuration (several limits enter with a price each, which
    falls while a limit has slack), the budget cuts the order, and prices are worked out again
    until they settle; then single blocks are exchanged while that gains saliency. Guaranteed: a
    total no smaller than that of ``"threshold"``, whose selection is the result where nothing
    better is found. Not guaranteed: the maximum. Costs are products of widths, so this is a
    knapsack with a bilinear constraint, NP-hard even where the constraint is linear. Nor is a
    larger budget, or one limit less, sure to give a larger total.

    Args:
        graph: the (widened) channel graph.
        saliency: importance of each unit, shape (units,), any finite numbers; those of fixed
            groups do not matter. Equal saliencies are ordered by unit id.
        limits: metric name -> most that the result may cost (see :meth:`Budget.limits`).
        constraints: what the widths must obey; ``Constraints()`` by default.
        allocation: how the budget is shared out among groups.

    Returns:
        The selection.

    Raises:
        ConstraintError: constraints contradict one another or the graph.
        ScoringError: a saliency is NaN or infinite.
        BudgetError: the floors alone exceed a limit, or the greatest widths stay below all of
            them; carries the attainable range.
        ValueError: a saliency of the wrong shape, an unknown metric or allocation, a limit
            below 1.

    Source: Li et al., "The Heterogeneity Hypothesis", CVPR 2021, whose released code has a search
    in steps (https://github.com/ofsoundof/Heterogeneity_Hypothesis, main_hh_grad.py) in place
    of this exact one; prices for several knapsack constraints: Everett, "Generalized Lagrange
    Multiplier Method", Operations Research 11(3), 1963.
    """
    if allocation not in get_args(Allocation):
        raise ValueError(f"allocation={allocation!r}: one of {', '.join(get_args(Allocation))}")
    constraints = constraints or Constraints()
    _check_limits(limits)
    rules = resolve(graph, constraints)
    _check_saliency(graph, saliency)
    check_attainable(limits, rules_range(graph, rules))
    blocks = make_blocks(graph, np.asarray(saliency, dtype=np.float64), rules, limits)
    kept_above: float | None
    levels, kept_above = balanced(blocks) if allocation == "balanced" else threshold(blocks)
    if allocation == "saliency-per-cost":
        better = saliency_per_cost(blocks, levels)
        kept_above = kept_above if better is levels else None
        levels = better
    cost = graph.cost_model(blocks.group_widths(levels))
    used = {metric: cost[metric] / limit for metric, limit in limits.items()}
    return Selection(
        copies=blocks.copies(graph, levels),
        cost=cost,
        used=used,
        threshold=kept_above,
        note=None
        if max(used.values()) >= WELL_USED
        else _note(graph, rules, blocks, levels, cost, limits),
    )


def _note(
    graph: ChannelGraph,
    rules: WidthRules,
    blocks: Blocks,
    levels: Ids,
    cost: Cost,
    limits: Mapping[str, int],
) -> str:
    """Why the selection leaves part of its budget.

    Some group could still grow: at the greatest widths, a budget that is not refused is used up.
    """
    figures = ", ".join(f"{cost[m] / limit:.1%} of {m}" for m, limit in limits.items())
    open_classes = np.flatnonzero(levels < blocks.height)
    left = {metric: limit - cost[metric] for metric, limit in limits.items()}
    steps = blocks.step(levels, 1)
    prices = blocks.pricing.prices(blocks.widths(levels), steps)
    ratio = prices / np.maximum(list(left.values()), 1e-9)[:, None]
    smallest = open_classes[np.argmin(ratio.max(axis=0)[open_classes])]
    metric = tuple(limits)[int(np.argmax(ratio[:, smallest]))]
    price = int(prices[tuple(limits).index(metric), smallest])
    groups = blocks.members[smallest]
    size = int(steps[smallest])
    names = " and ".join(repr(graph.groups[g].name) for g in groups)
    channels = f"{size} channel{'s' * (size > 1)} of {'each of ' * (len(groups) > 1)}{names}"
    divisor = int(rules.divisor[groups[0]])
    cause = f"; divisor={divisor} sets the block size" if divisor > 1 else ""
    return (
        f"{figures} used: {left[metric]:,} {metric} are left, and the smallest block that was "
        f"left out ({channels}) costs {price:,}{cause}"
    )


def _check_saliency(graph: ChannelGraph, saliency: NDArray[np.float64]) -> None:
    shape, kind = np.shape(saliency), np.asarray(saliency).dtype.kind
    if shape != (graph.units,) or kind not in "fiu":
        raise ValueError(
            f"saliency: one number for each of the graph's {graph.units} units, not shape {shape} "
            f"of {np.asarray(saliency).dtype}. It must be scored on the graph it selects from"
        )
    bad = ~np.isfinite(np.asarray(saliency)) & graph.prunable[graph.group_of]
    if bad.any():
        name = graph.groups[int(graph.group_of[np.argmax(bad)])].name
        raise ScoringError(
            f"saliency of group {name!r} is NaN or infinite: check the loss and the "
            "batches, or score with another criterion"
        )


def _check_limits(limits: Mapping[str, int]) -> None:
    if not limits or not set(limits) <= set(METRICS):
        raise ValueError(f"limits {dict(limits)}: at least one of {', '.join(METRICS)}")
    for metric, limit in limits.items():
        if isinstance(limit, bool) or not isinstance(limit, (int, np.integer)) or limit < 1:
            raise ValueError(f"limit {metric}={limit!r}: a positive int (see Budget.limits)")
