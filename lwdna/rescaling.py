"""The widths of a DNA at another budget: all groups multiplied by one factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lwdna.budget import Budget, check_attainable
from lwdna.channels import Ids
from lwdna.cost import Cost
from lwdna.dna import Dna
from lwdna.errors import LatencyError
from lwdna.graph import ChannelGraph, Copies
from lwdna.group_width import group_widths
from lwdna.rebuilding import construct_for, originate
from lwdna.selection import WELL_USED
from lwdna.width_rules import WidthRules, resolve


def rescale(
    dna: Dna,
    budget: float | str | Budget,
    model: nn.Module | None = None,
    *,
    trust: Sequence[str] = (),
) -> Dna:
    """The widths of a DNA, multiplied by one factor, within another budget.

    The law: at the factor t, a group of width w gets the largest width that its constraints allow
    (floor, divisor, cap, the widened width) up to t·w, and its floor where all of these are larger.
    Costs grow with t, in steps, and are known in closed form; the result is that of the greatest
    t within every limit, found by bisection over the steps, not to a tolerance.

    Widths are what is carried over. A DNA keeps no saliencies, so which units stay is settled by
    their order: of a smaller group the first of those that were kept, of a larger one all of these
    and the first of the others. Train the network of such a DNA from scratch.

    Args:
        dna: the widths.
        budget: as for :func:`lwdna.shrink`; fractions refer to ``dna.before``.
        model: the network that the DNA was found on; by default it is built by ``dna.source``.
        trust: modules that may be imported for that; see :func:`lwdna.load`.

    Returns:
        The DNA with other widths, limits and costs; ``settings["scaled"]`` is the factor, from
        this DNA to that.

    Raises:
        BudgetError: the budget is out of reach; carries the attainable range.
        LatencyError: latency is limited, which a DNA does not know.
        SourceError: no model is given, and the constructor is unknown, not trusted, or fails.
        DnaError: the DNA is of another network.

    Source: width multipliers: Howard et al., "MobileNets", arXiv 1704.04861, section 3.3.
    """
    limits = Budget.of(budget).limits(dna.before)
    if "latency" in limits:
        raise LatencyError("a DNA keeps no table of latencies: give a budget of macs or params")
    origin = originate(construct_for(dna, trust) if model is None else model, dna)
    wide = origin.free.restrict(origin.wide_copies)
    rules = resolve(wide, dna.constraints)
    widths_at, factors = _law(wide, rules, wide.widths_of(dna.copies(wide)))

    def cost(factor: float) -> Cost:
        return wide.cost_model(widths_at(factor))

    least, most = cost(0.0), cost(factors[-1])
    ranges = {metric: (least[metric], figure) for metric, figure in most.as_dict().items()}
    check_attainable(limits, ranges, dna.before)
    low, high = 0, len(factors)  # factors[low] is within the limits, factors[high] is not
    while high - low > 1:
        middle = (low + high) // 2
        found = cost(factors[middle])
        fits = all(found[metric] <= limit for metric, limit in limits.items())
        low, high = (middle, high) if fits else (low, middle)
    copies = _copies(wide, widths_at(factors[low]), dna.copies(wide))
    after = wide.cost(copies)
    used = {metric: after[metric] / limit for metric, limit in limits.items()}
    return replace(
        dna,
        groups=group_widths(origin.graph, wide, copies),
        limits=limits,
        used=used,
        note=_note(used, factors, high),
        settings={**dna.settings, "scaled": factors[low]},
        before=replace(origin.graph.cost(), latency=dna.before.latency),
        after=after,
        findings=None,  # they are of the search, which chose other widths
    )


def _law(
    wide: ChannelGraph, rules: WidthRules, own: Ids
) -> tuple[Callable[[float], Ids], list[float]]:
    """Group widths as a function of the factor, and the factors (0 first) at which they change."""
    free = np.flatnonzero(wide.prunable & (rules.least < rules.most)).tolist()
    ladders = {g: rules.ladder(g) for g in free}
    steps: dict[int, NDArray[np.float64]] = {g: ladders[g] / own[g] for g in free}

    def widths_at(factor: float) -> Ids:
        widths = rules.least.copy()
        for g, ladder in ladders.items():
            reached = int(np.searchsorted(steps[g], factor, side="right"))
            widths[g] = ladder[max(reached - 1, 0)]
        return widths

    return widths_at, [0.0, *np.unique(np.concatenate([[], *steps.values()])).tolist()]


def _copies(wide: ChannelGraph, widths: Ids, kept: Copies) -> Copies:
    """1 for the units that stay: of each group the kept ones first, each part in order."""
    copies = wide.keep_all()
    for group in wide.groups:
        if group.prunable:
            order = np.argsort(1 - kept[group.units], kind="stable")
            copies[group.units[order[widths[group.index] :]]] = 0
    return wide.completed(copies)


def _note(used: Mapping[str, float], factors: Sequence[float], following: int) -> str | None:
    if max(used.values()) >= WELL_USED:
        return None
    figures = ", ".join(f"{share:.1%} of {metric}" for metric, share in used.items())
    if following == len(factors):
        return f"{figures} used: no group can be wider"
    return (
        f"{figures} used: one factor scales all groups, and the next, {factors[following]:.4g}, "
        "exceeds the budget"
    )
