"""Two DNAs side by side: the groups whose widths differ, and what both cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from lwdna.dna import Dna
from lwdna.group_width import GroupWidth
from lwdna.tables import html_table

_COST_HEADERS = ("cost", "before", "a", "b", "a to b")
_WIDTH_HEADERS = ("group", "before", "a", "b", "a to b")
_SAID = ("model", "source", "input_shapes", "criterion", "seed", "widen", "settings")


@dataclass(frozen=True)
class DnaDiff:
    """What distinguishes two DNAs; prints as tables.

    Attributes:
        a: one of them.
        b: the other.
        groups: (of a, of b) for each group whose width or kept units differ, in their order; None
            where one of them has no such group.
        fields: names of what else differs: source, settings ...
    """

    a: Dna
    b: Dna
    groups: tuple[tuple[GroupWidth | None, GroupWidth | None], ...]
    fields: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<DnaDiff: {len(self.groups)} groups differ; print() shows them>"

    def __str__(self) -> str:
        tables = [_table(self._costs(), _COST_HEADERS)]
        if self.groups:
            tables.append(_table(self._widths(), _WIDTH_HEADERS))
        return "\n\n".join([*tables, *self._lines()])

    def _repr_html_(self) -> str:
        costs = html_table(_COST_HEADERS, self._costs(), *self._lines())
        return costs + (html_table(_WIDTH_HEADERS, self._widths()) if self.groups else "")

    def _lines(self) -> list[str]:
        same = len({*self.a.groups} & {*self.b.groups})
        others = [
            line
            for name in self.fields
            for line in _differences(name, getattr(self.a, name), getattr(self.b, name))
        ]
        return [f"{same} groups are the same", *others]

    def _costs(self) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        metrics = {**self.a.before.as_dict(), **self.b.before.as_dict()}
        for metric in metrics:
            before, a, b = self.a.before[metric], self.a.after[metric], self.b.after[metric]
            other = self.b.before[metric]
            given = f"{before:,}" if before == other else f"{before:,} | {other:,}"
            change = f"{b / a - 1:+.1%}" if a else ""
            rows.append((metric, given, f"{a:,}", f"{b:,}", change))
        return rows

    def _widths(self) -> list[tuple[object, ...]]:
        rows: list[tuple[object, ...]] = []
        for a, b in self.groups:
            one = a or b
            assert one is not None
            widths = [None if g is None else g.width for g in (a, b)]
            change = f"{widths[1] / widths[0] - 1:+.1%}" if widths[0] and widths[1] else ""
            if a and b and a.width == b.width:
                change = "other units"
            rows.append(
                (one.name, one.baseline, *("–" if w is None else w for w in widths), change)
            )
        return rows


def diff(a: Dna, b: Dna) -> DnaDiff:
    """Compare two DNAs, of one model or of several.

    Args:
        a: ``net.meta["lwdna"]``, or ``lwdna.Dna.from_json(text)``.
        b: the other.

    Returns:
        The differences; ``print`` shows the costs before and after, and the widths that differ.
        The findings of the searches are not compared.

    Raises:
        TypeError: something else than two DNAs.
    """
    for dna in (a, b):
        if not isinstance(dna, Dna):
            raise TypeError(f"{type(dna).__name__}: pass DNAs, such as net.meta['lwdna']")
    theirs = {group.name: group for group in b.groups}
    ours = {group.name: group for group in a.groups}
    pairs = [(ours.get(name), theirs.get(name)) for name in {**ours, **theirs}]
    return DnaDiff(
        a=a,
        b=b,
        groups=tuple(pair for pair in pairs if pair[0] != pair[1]),
        fields=tuple(name for name in _SAID if getattr(a, name) != getattr(b, name)),
    )


def _differences(name: str, a: Any, b: Any) -> list[str]:
    """What differs, one line each; of mappings the entries."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = [key for key in {**a, **b} if a.get(key) != b.get(key)]
        return [line for k in keys for line in _differences(f"{name}.{k}", a.get(k), b.get(k))]
    return [f"{name}: {a} | {b}"]


def _table(rows: Sequence[tuple[object, ...]], headers: tuple[str, ...]) -> str:
    return tabulate(
        rows,
        headers=headers,
        disable_numparse=True,
        colalign=("left", *["right"] * (len(headers) - 1)),
    )
