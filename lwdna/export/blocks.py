"""Statements in order, under ``with`` and ``if`` where regions and modes ask for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from lwdna.export.code import Code

#: (depth of indentation, statement or comment)
Line = tuple[int, Code]


@dataclass(frozen=True)
class Entry:
    """The statements of one item of a scope.

    Attributes:
        index: of the item.
        lines: its statements.
        names: variable that it binds -> index of the last item that uses it, -1 if none does.
        condition: what holds where the item runs; None if it always runs.
        owner: the module whose code it is, for a comment.
        enters: whether what follows stands under it.
        leaves: whether it ends what stands under another one.
    """

    index: int
    lines: tuple[Code, ...] = ()
    names: Mapping[str, int] = field(default_factory=dict)
    condition: str | None = None
    owner: str = ""
    enters: bool = False
    leaves: bool = False


def blocks(entries: Sequence[Entry], own: str) -> Iterator[Line]:
    """The statements of a function.

    Args:
        entries: of its items, in order.
        own: the module that the function belongs to, which needs no comment.
    """
    depth, owner, empty = 0, own, False
    for condition, group in groupby(entries, lambda entry: entry.condition):
        several = list(group)
        if condition is not None:
            yield from ((depth, code) for code in _opened(condition, several))
            depth += 1
        for entry in several:
            if entry.leaves:
                if empty:
                    yield depth, ("pass",)
                depth -= 1
            elif entry.owner not in (owner, own):
                yield depth, (f"# {entry.owner}",)
            owner = owner if entry.leaves else entry.owner
            yield from ((depth, line) for line in entry.lines)
            empty = entry.enters
            depth += entry.enters
        depth -= condition is not None


def _opened(condition: str, entries: list[Entry]) -> Iterator[Code]:
    """``if``; what is used after it is None where it does not hold."""
    end = entries[-1].index
    names = [name for entry in entries for name, last in entry.names.items() if last > end]
    if names:
        yield (" = ".join(names) + " = None",)
    yield (f"if {condition}:",)
