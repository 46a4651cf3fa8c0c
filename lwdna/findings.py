"""What a search found on its way to the widths: saliencies, costs by layer, what was fixed and why.

A report shows it. It is compact (quantiles and counts, no saliency of a single channel) and goes
into the :class:`lwdna.Dna`, because none of it can be worked out from the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from lwdna.channels import Ids
from lwdna.cost import METRICS, Cost
from lwdna.errors import DnaError
from lwdna.graph import ChannelGraph
from lwdna.group_width import GroupWidth
from lwdna.selection import Selection

#: The shares of a group's units that lie below the five numbers kept of its saliencies.
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
BINS = 40
#: A logarithmic histogram spans this many decades below the greatest saliency, at most.
DECADES = 12
_TINY = 1e-300
_SAME = 1e-9  # saliencies that differ by less than this share are one bar


@dataclass(frozen=True)
class LayerCost:
    """What the operators and parameters of one module cost, without its submodules.

    Attributes:
        path: of the module; ``""`` is the network itself.
        macs: multiply-accumulates (before, after).
        params: parameter entries (before, after).

    Raises:
        DnaError: a negative figure.
    """

    path: str
    macs: tuple[int, int]
    params: tuple[int, int]

    def __post_init__(self) -> None:
        if min(*self.macs, *self.params) < 0:
            raise DnaError(f"layer {self.path[:60]!r} costs less than nothing")


@dataclass(frozen=True)
class Histogram:
    """How many units of prunable groups have which saliency.

    Attributes:
        log: whether the bins are equal in the logarithm. They are unless a saliency is negative or
            all are 0; what lies below the first bin (0, for one) is counted in it then.
        least: where the first bin begins.
        most: where the last one ends.
        kept: units that stayed, by bin, (bins,).
        removed: units that went, by bin, (bins,).

    Raises:
        DnaError: an empty or impossible range, or other bins than :data:`BINS`.
    """

    log: bool
    least: float
    most: float
    kept: tuple[int, ...]
    removed: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.least < self.most or (self.log and self.least <= 0):
            raise DnaError(f"no histogram from {self.least} to {self.most}, log={self.log}")
        for counts in (self.kept, self.removed):
            if len(counts) != BINS or min(counts) < 0:
                raise DnaError(f"a histogram needs {BINS} counts, none of them negative")

    @property
    def edges(self) -> NDArray[np.float64]:
        """Edges of the bins, ascending, shape (bins + 1,)."""
        space = np.geomspace if self.log else np.linspace
        return space(self.least, self.most, BINS + 1)


@dataclass(frozen=True)
class Findings:
    """What a search found on its way.

    Attributes:
        saliency: prunable group -> its units' saliencies at :data:`QUANTILES`, to 4 digits.
        histogram: of all prunable units; ``None`` if there are none.
        threshold: saliency of the last block that one threshold over all channels kept; ``None``
            where the floors are all it kept, or another allocation chose.
        layers: cost by layer, in the order in which the network runs them; what costs nothing is
            left out. They add up to the costs of the whole.
        frozen: group that could not change -> the (reason, node) pairs.
        axes: node of a choice point -> the axis that could change, as a policy that decides so
            again (:attr:`lwdna.ChannelGraph.policy`).

    Raises:
        DnaError: quantiles that descend, or are others than :data:`QUANTILES`.
    """

    saliency: Mapping[str, tuple[float, ...]]
    histogram: Histogram | None
    threshold: float | None
    layers: tuple[LayerCost, ...]
    frozen: Mapping[str, tuple[tuple[str, str], ...]]
    axes: Mapping[str, str | int]

    def __post_init__(self) -> None:
        for name, numbers in self.saliency.items():
            if len(numbers) != len(QUANTILES) or any(a > b for a, b in pairwise(numbers)):
                raise DnaError(f"saliencies of {name[:60]!r}: {len(QUANTILES)} ascending numbers")

    def check(self, groups: Sequence[GroupWidth], before: Cost, after: Cost) -> None:
        """Refuse findings that are of other widths or costs than these.

        Args:
            groups: all groups of the DNA.
            before: cost of the given network.
            after: cost of the result.

        Raises:
            DnaError: they contradict the findings.
        """
        free = [group for group in groups if group.prunable]
        fixed = {group.name for group in groups if not group.prunable}
        if self.saliency.keys() != {g.name for g in free} or self.frozen.keys() != fixed:
            raise DnaError("the findings are of other channel groups than the DNA's")
        counts = self.histogram or Histogram(False, 0.0, 1.0, (0,) * BINS, (0,) * BINS)
        widths = sum(counts.kept), sum(counts.kept) + sum(counts.removed)
        if widths != (sum(g.width for g in free), sum(g.widened for g in free)):
            raise DnaError("the findings are of other widths than the DNA's: set findings=None")
        for metric in ("macs", "params"):
            found = tuple(sum(getattr(c, metric)[k] for c in self.layers) for k in (0, 1))
            if found != (before[metric], after[metric]):
                raise DnaError(
                    f"the findings' layers have {found[0]:,} {metric} before and {found[1]:,} "
                    f"after, and the DNA says {before[metric]:,} and {after[metric]:,}: it was "
                    "changed; set findings=None"
                )

    @classmethod
    def of(
        cls,
        graph: ChannelGraph,
        wide_graph: ChannelGraph,
        saliency: NDArray[np.float64],
        selection: Selection,
        places: Mapping[str, str],
    ) -> Findings:
        """The findings of a selection.

        Args:
            graph: channel graph of the given network.
            wide_graph: channel graph of the widened network.
            saliency: of each unit of the widened network, shape (units,).
            selection: what was selected by it.
            places: graph node -> path of its module (:func:`lwdna.fx_passes.places.places`).
        """
        groups = [group for group in wide_graph.groups if group.slots]
        prunable = wide_graph.prunable[wide_graph.group_of]
        cut = selection.threshold
        return cls(
            saliency={
                group.name: tuple(map(_short, np.quantile(saliency[group.units], QUANTILES)))
                for group in groups
                if group.prunable
            },
            histogram=_histogram(saliency[prunable], selection.copies[prunable]),
            threshold=None if cut is None or not isfinite(cut) else cut,
            layers=_layers(graph, wide_graph, selection.copies, places),
            frozen={group.name: group.reasons for group in groups if not group.prunable},
            axes=dict(graph.policy),
        )


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _histogram(saliency: NDArray[np.float64], copies: Ids) -> Histogram | None:
    if not len(saliency):
        return None
    # Beyond these, halves, doubles and differences of saliencies would no longer be numbers.
    tame = np.where(np.abs(saliency) < _TINY, 0.0, np.clip(saliency, -1 / _TINY, 1 / _TINY))
    empty = Histogram(*_range(tame), (0,) * BINS, (0,) * BINS)
    edges = empty.edges
    inside = np.clip(tame, edges[0], edges[-1])
    kept, removed = (
        tuple(int(n) for n in np.histogram(inside[which], edges)[0])
        for which in (copies > 0, copies == 0)
    )
    return replace(empty, kept=kept, removed=removed)


def _range(saliency: NDArray[np.float64]) -> tuple[bool, float, float]:
    """(whether the bins are logarithmic, least, most); never an empty range."""
    least, most = float(saliency.min()), float(saliency.max())
    if least >= 0 and most > 0:
        least = max(float(saliency[saliency > 0].min()), most * 10.0**-DECADES)
        return (True, least, most) if least < most * (1 - _SAME) else (True, least / 2, most * 2)
    size = max(abs(least), abs(most), 1.0)
    wide = most - least > _SAME * size
    return (False, least, most) if wide else (False, least - size, most + size)


def _layers(
    graph: ChannelGraph, wide_graph: ChannelGraph, copies: Ids, places: Mapping[str, str]
) -> tuple[LayerCost, ...]:
    """Cost by module; a parameter's is the module that has it."""
    terms = graph.cost_model.terms
    path_of = [
        term.node.rpartition(".")[0] if term.kind == "params" else places.get(term.node, "")
        for term in terms
    ]
    paths = list(dict.fromkeys([*places.values(), *path_of]))
    index = {path: k for k, path in enumerate(paths)}
    row = np.array([index[path] for path in path_of], dtype=np.int64)
    found = np.zeros((2, 2, len(paths)), dtype=np.int64)  # metric, before and after, path
    widths = ((graph, graph.widths), (wide_graph, wide_graph.widths_of(copies)))
    for when, (of, width) in enumerate(widths):
        values = of.cost_model.per_monomial(width)
        for k, metric in enumerate(("macs", "params")):
            counted = of.cost_model.in_metric[METRICS.index(metric)] * values
            np.add.at(found[k, when], row[of.cost_model.term_of], counted)
    return tuple(
        LayerCost(path, macs=(int(a), int(b)), params=(int(c), int(d)))
        for path, a, b, c, d in zip(paths, *found.reshape(4, -1), strict=True)
        if a or b or c or d
    )
