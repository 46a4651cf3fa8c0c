"""Tables of results: their rows, and HTML for notebooks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

if TYPE_CHECKING:
    from lwdna.dna import Dna

#: A notebook shows this many rows; the object has them all.
MOST_ROWS = 60
COST_HEADERS = ("cost", "before", "after", "ratio")
WIDTH_HEADERS = ("channel group", "before", "widened", "after", "ratio", "tensors sized by it")
_PICOSECONDS_PER_MS = 10**9
_FIGURE = re.compile(r"-|[\d.,]+(%| ms)?")


def shown(text: str) -> str:
    """A name as it can be printed: control characters, line breaks and the like are replaced."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def amount(metric: str, value: int) -> str:
    """A cost as text; latencies are kept in picoseconds and read in milliseconds.

    >>> amount("macs", 4089184256)
    '4,089,184,256'
    """
    return f"{value / _PICOSECONDS_PER_MS:.3f} ms" if metric == "latency" else f"{value:,}"


def limit_rows(dna: Dna) -> list[tuple[str, str, str, str]]:
    """(metric, limit, its share of the cost before, share of it that is used) of the budget."""
    return [
        (m, amount(m, n), _share(n, dna.before[m]), f"{dna.used[m]:.2%}")
        for m, n in dna.limits.items()
    ]


def cost_rows(dna: Dna) -> list[tuple[str, str, str, str]]:
    """One row of :data:`COST_HEADERS` for each metric."""
    return [
        (m, amount(m, b), amount(m, dna.after[m]), _share(dna.after[m], b))
        for m, b in dna.before.as_dict().items()
    ]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"


def width_rows(dna: Dna) -> list[tuple[str, int, int, int, str, int]]:
    """One row of :data:`WIDTH_HEADERS` for each group that could change."""
    return [
        (shown(g.name), g.baseline, g.widened, g.width, f"{g.width / g.baseline:.2f}", len(g.slots))
        for g in dna.groups
        if g.prunable
    ]


def html_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], *lines: str) -> str:
    """An HTML table under some lines of text, everything escaped.

    Args:
        headers: of the columns.
        rows: cells; columns of text go to the left, of figures to the right.
        lines: paragraphs above the table.

    Source: https://pypi.org/project/tabulate/ (``tablefmt="html"`` escapes every cell).
    """
    if len(rows) > MOST_ROWS:
        lines = (*lines, f"The first {MOST_ROWS} of {len(rows)} rows:")
    cells = [[shown(str(cell)) for cell in row] for row in rows[:MOST_ROWS]]
    right = [all(map(_FIGURE.fullmatch, column)) for column in zip(*cells, strict=True)]
    table = tabulate(
        cells,
        headers=headers,
        tablefmt="html",
        disable_numparse=True,
        colalign=tuple("right" if r else "left" for r in right) if cells else None,
    )
    return "".join(f"<p>{escape(shown(line))}</p>" for line in lines) + str(table)
