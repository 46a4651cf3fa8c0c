"""Classes of the written file: one for all modules that differ in numbers alone.

Two modules share a class if their code is the same but for numbers. Numbers that all of them have
in common stand in the class; the others become arguments of its constructor, and those that go
together in all of them become one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from lwdna.export.code import INDENT, Code, Group, Number, call, filled, lines, numbers, readable
from lwdna.export.functions import Function
from lwdna.export.names import identifier, unused

#: Columns of names of modules in a docstring.
_SHOWN = 72


@dataclass(frozen=True)
class Template:
    """A module's class, with its own numbers.

    Attributes:
        path: where the module is.
        name: what its class was called in the model.
        base: the class that it derives from.
        fields: statements of the constructor.
        function: its ``forward``, if it has one.
    """

    path: str
    name: str
    base: str
    fields: tuple[Code, ...]
    function: Function | None

    def codes(self) -> Iterator[Code]:
        """Everything that numbers stand in: the constructor, then ``forward``."""
        yield from self.fields
        if self.function is not None:
            yield from self.function.arguments
            yield from (code for _, code in self.function.lines)

    def numbers(self) -> list[Number]:
        """All numbers, in order."""
        return [number for code in self.codes() for number in numbers(code)]

    def key(self) -> tuple[object, ...]:
        """The same for modules that can share a class."""
        depths = None if self.function is None else tuple(d for d, _ in self.function.lines)
        holes = iter([""] * len(self.numbers()))
        return (
            self.name,
            self.base,
            depths,
            len(self.fields),
            tuple(filled(c, holes) for c in self.codes()),
        )


@dataclass
class Written:
    """A class of the file.

    Attributes:
        name: of the class.
        templates: the modules that it is for.
        parameters: name of an argument of the constructor -> one value per module.
        texts: how each number of the class is written: an argument's name, or the number.
    """

    name: str
    templates: list[Template]
    parameters: dict[str, list[int | float]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    def instance(self, k: int, hint: str) -> Code:
        """The call that makes the ``k``-th of its modules.

        Args:
            k: index of a template.
            hint: what the numbers in it are called after.
        """
        return call(
            self.name,
            *(
                (f"{name}=", Number(values[k], f"{hint}_{name}"))
                for name, values in self.parameters.items()
            ),
        )


def parametrise(written: Written, used: set[str]) -> None:
    """Tell the numbers that all modules share from those that they are made with."""
    columns = list(zip(*(template.numbers() for template in written.templates), strict=True))
    known: dict[tuple[str, ...], str] = {}
    for column in columns:
        values = tuple(repr(number.value) for number in column)
        if len(set(values)) == 1:
            written.texts.append(values[0])
            continue
        if values not in known:
            name = unused(identifier(column[0].hint.strip("_"), "n"), used)
            used.add(name)
            known[values] = name
            written.parameters[name] = [number.value for number in column]
        written.texts.append(known[values])


def class_lines(written: Written) -> Iterator[str]:
    """The source of a class."""
    template = written.templates[0]
    count = sum(len(list(numbers(code))) for code in template.fields)
    inside = written.texts[:count]
    outside = [
        f"self.{text}" if text in written.parameters else text for text in written.texts[count:]
    ]
    kept = [name for name in written.parameters if f"self.{name}" in outside]
    yield f"class {written.name}({template.base}):"
    yield from _docstring(written)
    parameters = tuple((name,) for name in ("self", *written.parameters))
    yield from lines(("def __init__", Group(parameters), ":"), 1)
    texts = iter(inside)
    first, *others = [filled(code, texts) for code in template.fields]
    yield from lines(first, 2)
    for name in kept:
        yield f"{INDENT * 2}self.{name} = {name}"
    for code in others:
        yield from lines(code, 2)
    if template.function is None:
        return
    texts = iter(outside)
    arguments = tuple(filled(code, texts) for code in template.function.arguments)
    yield ""
    yield from lines(("def forward", Group((("self",), *arguments)), ":"), 1)
    for depth, code in template.function.lines:
        yield from lines(filled(code, texts), 2 + depth)
    if not template.function.lines:
        yield f"{INDENT * 2}pass"


def _docstring(written: Written) -> Iterator[str]:
    """Which modules the class is for; none for the network itself."""
    paths = [readable(template.path) for template in written.templates if template.path]
    if paths:
        shown = ", ".join(paths)
        if len(shown) > _SHOWN:
            shown = f"{paths[0]}, and {len(paths) - 1} more like it" if paths[1:] else "A module"
        yield f'{INDENT}"""{shown}."""'
        yield ""
