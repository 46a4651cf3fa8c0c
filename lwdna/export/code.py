"""Pieces of Python code that know where lines may be broken, and which numbers stand in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

#: Columns of the written file: the default of ruff and black.
COLUMNS = 88
INDENT = "    "


@dataclass(frozen=True)
class Number:
    """A number that may become an argument of the class, where instances differ in it.

    Attributes:
        value: a finite number.
        hint: what to call it.
    """

    value: int | float
    hint: str


@dataclass(frozen=True)
class Group:
    """Items between brackets, one per line where one line is too short.

    Attributes:
        items: separated by commas.
        opening: the bracket, and what must not be torn from it.
        closing: the other bracket.
    """

    items: tuple[Code, ...]
    opening: str = "("
    closing: str = ")"


Piece = str | Number | Group
#: What stands one after the other.
Code = tuple[Piece, ...]


def call(function: str, *items: Code) -> Code:
    """``function(items)``."""
    return (function, Group(items))


def quoted(text: str) -> str:
    """A string literal of ASCII characters, in double quotes where that takes no escapes."""
    literal = ascii(text)
    return literal if '"' in text or literal.startswith('"') else f'"{literal[1:-1]}"'


def readable(text: str) -> str:
    """Text that cannot end the comment or docstring it stands in."""
    return ascii(text)[1:-1].replace('"', "'").replace("\\", "/")


def number(value: int | float, hint: str) -> Code:
    """A number; infinities and NaN, which have no literal, as ``float("inf")``."""
    if isinstance(value, float) and not math.isfinite(value):
        return (f"float({quoted(str(value))})",)
    return (Number(value, hint),)


def numbers(code: Code) -> Iterator[Number]:
    """The numbers in a piece of code, in order."""
    for piece in code:
        if isinstance(piece, Number):
            yield piece
        elif isinstance(piece, Group):
            for item in piece.items:
                yield from numbers(item)


def filled(code: Code, texts: Iterator[str]) -> Code:
    """The same code with these texts in place of its numbers."""
    return tuple(_filled(piece, texts) for piece in code)


def _filled(piece: Piece, texts: Iterator[str]) -> Piece:
    if isinstance(piece, Number):
        return next(texts)
    if isinstance(piece, Group):
        items = tuple(filled(item, texts) for item in piece.items)
        return Group(items, piece.opening, piece.closing)
    return piece


def plain(code: Code) -> Code:
    """The same code with its numbers written out."""
    return filled(code, (repr(n.value) for n in numbers(code)))


def flat(code: Code) -> str:
    """The code as one line."""
    return "".join(_flat(piece) for piece in plain(code))


def _flat(piece: Piece) -> str:
    if isinstance(piece, Group):
        inner = ", ".join(flat(item) for item in piece.items)
        return f"{piece.opening}{inner}{piece.closing}"
    return str(piece)


def lines(code: Code, depth: int) -> Iterator[str]:
    """The code as lines, indented; the last brackets are broken where one line is too short.

    Args:
        code: one statement.
        depth: levels of indentation.
    """
    yield from _broken(code, depth, "")


def _broken(code: Code, depth: int, after: str) -> Iterator[str]:
    line = f"{INDENT * depth}{flat(code)}{after}"
    groups = [k for k, piece in enumerate(code) if isinstance(piece, Group) and piece.items]
    if len(line) <= COLUMNS or not groups:
        yield line
        return
    last = groups[-1]
    group = code[last]
    assert isinstance(group, Group)
    yield f"{INDENT * depth}{flat(code[:last])}{group.opening}"
    for item in group.items:
        yield from _broken(item, depth + 1, ",")
    closing = group.closing.removeprefix(",")
    yield f"{INDENT * depth}{closing}{flat(code[last + 1 :])}{after}"
