"""The figures of a DNA: widths, saliencies, costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from lwdna.dna import Dna
from lwdna.findings import Findings, LayerCost
from lwdna.group_width import GroupWidth
from lwdna.reporting.style import (
    ACCENT,
    AFTER,
    BEFORE,
    INK,
    dress,
    legend_above,
    logarithmic,
    new_figure,
    shortened,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_LABELS = 72  # that stand beside each other without touching, rotated, at 7 points
_MOST_BLOCKS = 36
_MUCH = 0.25
_UNITS = ((10**9, "G"), (10**6, "M"), (10**3, "k"), (1, ""))
_UNKNOWN = (
    "This DNA has no findings: lwdna.shrink keeps them, and a DNA that was carried over to other "
    "widths (dna.at) has none."
)
_NOTHING = "No channel group of this network could change."


def draw(dna: Dna, figure: str) -> Figure:
    """One of the figures of a DNA; see :meth:`lwdna.Dna.plot`.

    Raises:
        ValueError: there is no such figure, or nothing to draw it from.
        ImportError: matplotlib is not installed.
    """
    if figure not in FIGURES:
        raise ValueError(f"figure {figure!r}: one of {', '.join(map(repr, FIGURES))}")
    reason = missing(dna, figure)
    if reason is not None:
        raise ValueError(f"figure {figure!r}: {reason}")
    return FIGURES[figure](dna)


def missing(dna: Dna, figure: str) -> str | None:
    """Why a figure cannot be drawn from a DNA; ``None`` if it can."""
    if figure != "widths" and dna.findings is None:
        return _UNKNOWN
    return None if figure == "costs" or prunable(dna) else _NOTHING


def prunable(dna: Dna) -> list[GroupWidth]:
    """The groups that could change, in the order in which the network opens them."""
    return [group for group in dna.groups if group.prunable]


def widths(dna: Dna) -> Figure:
    """Widths before and after, and their ratio, group by group.

    Source: Li et al., "The Heterogeneity Hypothesis", CVPR 2021, figure 1.
    """
    groups = prunable(dna)
    before = np.array([group.baseline for group in groups])
    after = np.array([group.width for group in groups])
    figure = new_figure(6.0)
    absolute, relative = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    x = np.arange(len(groups))
    absolute.bar(x, after, width=0.8, color=AFTER, label="after")
    edges = np.arange(len(groups) + 1) - 0.5
    thin = min(1.1, 90 / len(groups))
    absolute.stairs(before, edges, baseline=None, color=INK, linewidth=thin, label="before")
    logarithmic(absolute, "y", base=2)
    absolute.set_ylim(bottom=min(before.min(), after.min()) / 1.5)
    absolute.set(ylabel="channels (log scale)")
    legend_above(absolute)
    ratio = after / before
    relative.bar(x, ratio, width=0.8, color=[AFTER if r <= 1 else ACCENT for r in ratio])
    relative.axhline(1.0, color=INK, linewidth=0.8)
    relative.set(ylabel="after / before", xlim=(-0.6, len(groups) - 0.4))
    _name(relative.xaxis, [group.name for group in groups])
    _dress(absolute, relative)
    return figure


def saliency(dna: Dna) -> Figure:
    """Saliencies over all channels and within each group, with the threshold."""
    found = dna.findings
    assert found is not None and found.histogram is not None
    histogram = found.histogram
    figure = new_figure(6.4)
    over_all, by_group = figure.subplots(2, 1, height_ratios=(2, 3))
    kept = np.array(histogram.kept)
    over_all.stairs(
        kept + histogram.removed, histogram.edges, fill=True, color=BEFORE, label="removed"
    )
    over_all.stairs(kept, histogram.edges, fill=True, color=AFTER, label="kept")
    over_all.set(xlabel="saliency", ylabel="channels")
    names = [group.name for group in prunable(dna)]
    _ranges(by_group, found, names)
    by_group.set(ylabel="saliency", xlim=(-0.6, len(names) - 0.4))
    _name(by_group.xaxis, names)
    if histogram.log:
        logarithmic(over_all, "x")
        logarithmic(by_group, "y")
    if found.threshold is not None:
        over_all.axvline(found.threshold, color=ACCENT, linewidth=1.4, label="threshold")
        by_group.axhline(found.threshold, color=ACCENT, linewidth=1.4)
    legend_above(over_all)
    _dress(over_all, by_group)
    return figure


def _ranges(axes: Any, found: Findings, names: Sequence[str]) -> None:
    """Least to greatest as a thin line, the middle half as a thick one, the median as a dot."""
    assert found.histogram is not None
    x, floor = np.arange(len(names)), found.histogram.edges[0]
    numbers = np.array([found.saliency[name] for name in names]).T
    if found.histogram.log:  # 0 has no place on a logarithmic axis
        numbers = np.maximum(numbers, floor)
    least, lower, median, upper, most = numbers
    axes.vlines(x, least, most, color=BEFORE, linewidth=1)
    axes.vlines(x, lower, upper, color=AFTER, linewidth=min(6, 400 / len(names)))
    axes.plot(x, median, linestyle="none", marker="o", markersize=2.5, color=INK)


def costs(dna: Dna) -> Figure:
    """MACs and params before and after, block by block."""
    assert dna.findings is not None
    blocks = by_block(dna.findings.layers)
    figure = new_figure(1.2 + 0.26 * len(blocks))
    sides = figure.subplots(1, 2, sharey=True)
    y = np.arange(len(blocks))
    for axes, metric, title in zip(sides, _METRICS, ("MACs", "params"), strict=True):
        before, after = np.array([getattr(block, metric) for block in blocks]).T
        unit, letter = next((u, c) for u, c in _UNITS if before.max() >= u or u == 1)
        axes.barh(y - 0.2, before / unit, height=0.36, color=BEFORE, label="before")
        axes.barh(y + 0.2, after / unit, height=0.36, color=AFTER, label="after")
        axes.set(xlabel=f"{title}, {letter}" if letter else title)
    sides[0].set_ylim(len(blocks) - 0.4, -0.6)
    names = [shortened(block.path) or "(network)" for block in blocks]
    sides[0].set_yticks(y, names, parse_math=False)
    legend_above(sides[0])
    _dress(*sides)
    return figure


def by_block(layers: Sequence[LayerCost], most: int = _MOST_BLOCKS) -> list[LayerCost]:
    """Layers added up by the first parts of their paths, as many parts as ``most`` blocks allow.

    All paths are cut at one depth first. Then a block that has more than :data:`_MUCH` of a cost is
    opened, the largest first, while there is room: trees are not equally deep everywhere.

    Args:
        layers: costs by layer.
        most: number of blocks; the outermost modules may be more.

    >>> a, b = LayerCost("stem", (1, 1), (2, 1)), LayerCost("body.0.conv", (5, 3), (4, 2))
    >>> [(c.path, c.macs) for c in by_block([a, b, LayerCost("body.0.bn", (0, 0), (2, 1))], 2)]
    [('stem', (1, 1)), ('body.0', (5, 3))]
    """
    parts = [tuple(layer.path.split(".")) for layer in layers]
    deepest = max(map(len, parts), default=1)
    counts = {d: len({p[:d] for p in parts}) for d in range(deepest, 0, -1)}
    depth = next((d for d, n in counts.items() if n <= most), 1)
    cuts = [part[:depth] for part in parts]
    total = _added(layers, [()] * len(layers)).get((), LayerCost("", (1, 1), (1, 1)))
    while True:
        blocks = _added(layers, cuts)
        shares = {cut: _share(block, total) for cut, block in blocks.items()}
        for cut in sorted(shares, key=lambda c: -shares[c]):
            opened = [p[: len(c) + 1] if c == cut else c for p, c in zip(parts, cuts, strict=True)]
            if shares[cut] > _MUCH and opened != cuts and len(set(opened)) <= most:
                cuts = opened
                break
        else:
            return list(blocks.values())


def _added(
    layers: Sequence[LayerCost], cuts: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], LayerCost]:
    """The costs of the layers with the same cut path, in the order of the first of them."""
    found: dict[tuple[str, ...], LayerCost] = {}
    for cut, layer in zip(cuts, layers, strict=True):
        old = found.get(cut, LayerCost(".".join(cut), (0, 0), (0, 0)))
        found[cut] = replace(
            old, macs=_sum(old.macs, layer.macs), params=_sum(old.params, layer.params)
        )
    return found


def _share(block: LayerCost, total: LayerCost) -> float:
    """The greatest share of a cost that a block has."""
    pairs = zip((*block.macs, *block.params), (*total.macs, *total.params), strict=True)
    return max(part / max(whole, 1) for part, whole in pairs)


def _sum(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return a[0] + b[0], a[1] + b[1]


def _name(axis: Any, names: Sequence[str]) -> None:
    """Names along a horizontal axis; of many, every second or third."""
    ticks = range(0, len(names), ceil(len(names) / _MOST_LABELS))
    labels = [shortened(names[k]) for k in ticks]
    axis.set_ticks(list(ticks), labels, rotation=90, parse_math=False)


def _dress(*several: Any) -> None:
    for axes in several:
        dress(axes)
        for text in axes.get_xticklabels():
            text.set_fontsize(7)


_METRICS = ("macs", "params")
#: Name -> what draws it.
FIGURES: dict[str, Callable[[Dna], Figure]] = {
    "widths": widths,
    "saliency": saliency,
    "costs": costs,
}
