"""The width of one channel group before and after, and its kept units as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lwdna.errors import DnaError
from lwdna.graph import ChannelGraph, Copies

#: No network has as many channels; a file that says so is damaged.
MOST_UNITS = 10**7
_RUN = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


@dataclass(frozen=True)
class GroupWidth:
    """Width of one channel group before and after.

    Attributes:
        name: the group's name.
        slots: tensor dimensions it sets the size of, as ``"tensor[dim]"``.
        baseline: units in the given network.
        widened: units after widening.
        width: units in the result.
        kept: indices of the kept units among the widened ones, ascending.
        prunable: whether the width could change.

    Raises:
        DnaError: widths and indices that contradict one another.
    """

    name: str
    slots: tuple[str, ...]
    baseline: int
    widened: int
    width: int
    kept: tuple[int, ...]
    prunable: bool

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in pairwise(self.kept))
        inside = not self.kept or (self.kept[0] >= 0 and self.kept[-1] < self.widened)
        if not (
            1 <= self.baseline <= self.widened
            and 1 <= self.width == len(self.kept)
            and ascending
            and inside
        ):
            raise DnaError(
                f"group {self.name[:60]!r}: {self.baseline} units, widened to {self.widened}, of "
                f"which {self.width} stay: the kept indices must be as many, ascend, and lie "
                "among the widened ones"
            )


def group_widths(
    graph: ChannelGraph, wide_graph: ChannelGraph, copies: Copies
) -> tuple[GroupWidth, ...]:
    """The widths of all groups that a selection keeps.

    Args:
        graph: channel graph of the given network.
        wide_graph: of the widened network.
        copies: 1 for a unit that stays and 0 for one that goes, shape (units of ``wide_graph``,).
    """
    return tuple(
        GroupWidth(
            name=group.name,
            slots=tuple(str(slot) for slot, _ in group.slots),
            baseline=graph.groups[group.index].width,
            widened=group.width,
            width=int(copies[group.units].sum()),
            kept=tuple(int(i) for i in np.flatnonzero(copies[group.units])),
            prunable=group.prunable,
        )
        for group in wide_graph.groups
        if group.slots
    )


def as_runs(kept: Sequence[int]) -> str:
    """Ascending indices as text: ``"0-2 5"`` for 0, 1, 2, 5."""
    starts = [i for k, i in enumerate(kept) if not k or kept[k - 1] != i - 1]
    ends = [i for k, i in enumerate(kept) if k + 1 == len(kept) or kept[k + 1] != i + 1]
    return " ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in zip(starts, ends, strict=True))


def from_runs(text: object, most: int) -> tuple[int, ...]:
    """The indices that :func:`as_runs` wrote.

    Raises:
        DnaError: no such text, or more indices than ``most``.
    """
    kept: list[int] = []
    for run in text.split() if isinstance(text, str) else (str(text),):
        found = _RUN.fullmatch(run)
        if found is None:
            raise DnaError(f"kept indices {run[:60]!r}: write runs such as '0-31 40'")
        first, last = int(found[1]), int(found[2] or found[1])
        if len(kept) + last - first >= most:
            raise DnaError(f"kept indices up to {run!r}: more than any network has")
        kept += range(first, last + 1)
    return tuple(kept)
