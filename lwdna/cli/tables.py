"""Figures for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tabulate import tabulate

from lwdna.cost import Cost
from lwdna.tables import amount


def costs(cost: Cost) -> str:
    """One network's costs."""
    rows = [(metric, amount(metric, value)) for metric, value in cost.as_dict().items()]
    return table(rows, ("cost", "per input"))


def before_after(before: Cost, after: Cost, limits: Mapping[str, int]) -> str:
    """Costs before and after, with what is left and what was allowed."""
    rows = [
        (
            metric,
            amount(metric, value),
            amount(metric, after[metric]),
            f"{after[metric] / value:.1%}" if value else "",
            amount(metric, limits[metric]) if metric in limits else "",
        )
        for metric, value in before.as_dict().items()
    ]
    return table(rows, ("cost", "before", "after", "left", "limit"))


def ranges(attainable: Mapping[str, tuple[int, int]], before: Cost) -> str:
    """The least and the most of each cost, beside the network's own."""
    rows = [
        (m, f"{before[m]:,}", *(f"{n:,} ({n / max(before[m], 1):.1%})" for n in attainable[m]))
        for m in before.as_dict()
    ]
    return table(rows, ("cost", "the model's", "least", "most"))


def table(rows: Sequence[tuple[object, ...]], headers: Sequence[str], texts: int = 1) -> str:
    """A table: its first ``texts`` columns to the left, the others, figures, to the right."""
    aligned = ["left"] * texts + ["right"] * (len(headers) - texts)
    return tabulate(rows, headers=headers, disable_numparse=True, colalign=aligned)
