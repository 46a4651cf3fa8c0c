"""Steps of a graph as expressions of Python."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.fx import Node

from lwdna.errors import UnsupportedModelError
from lwdna.export.code import Code, Group, Number, Piece, call, flat, plain
from lwdna.export.literals import Literals
from lwdna.export.names import Imports, is_identifier
from lwdna.export.values import function_name
from lwdna.fx_passes.conditional import alternatives
from lwdna.fx_passes.module import FUNCTIONS, CalledFunction

#: Operators between two values; operands that are no names or calls get parentheses.
_INFIX: dict[Any, str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.floordiv: "//",
    operator.truediv: "/",
    operator.mod: "%",
    operator.pow: "**",
    operator.matmul: "@",
    operator.lshift: "<<",
    operator.rshift: ">>",
    operator.and_: "&",
    operator.or_: "|",
    operator.xor: "^",
    operator.eq: "==",
    operator.ne: "!=",
    operator.lt: "<",
    operator.le: "<=",
    operator.gt: ">",
    operator.ge: ">=",
}
_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)
_PREFIX: dict[Any, str] = {operator.neg: "-", operator.pos: "+", operator.invert: "~"}
#: Operators in place.
ASSIGNING: dict[Any, str] = {
    operator.iadd: "+=",
    operator.isub: "-=",
    operator.imul: "*=",
    operator.ifloordiv: "//=",
    operator.itruediv: "/=",
    operator.imod: "%=",
    operator.ipow: "**=",
    operator.imatmul: "@=",
    operator.iand: "&=",
    operator.ior: "|=",
    operator.ixor: "^=",
}
#: Functions whose numbers may be widths; those of others (dimensions, mostly) stay in the code.
_SIZED = frozenset(
    (
        *("batch_norm", "dropout", "expand", "group_norm", "layer_norm", "leaky_relu", "narrow"),
        *("new_ones", "new_zeros", "ones", "repeat", "reshape", "rms_norm", "split", "unflatten"),
        *("scaled_dot_product_attention", "split_with_sizes", "tile", "view", "zeros"),
    )
)
_ABSOLUTE = re.compile(r"(?:[A-Za-z]:)?[/\\](?:[^\s:/\\]+[/\\])+(?=[^\s:/\\]+\.py:\d+)")
_SIMPLE = re.compile(r"-?[\w.]+")
_ATOM = re.compile(r"(?:getattr\(self, \"[^\"\\]*\"\)|[\w.]+)(?:\[[\w.:, -]*\]|[\w.]+)*")


class Expressions:
    """Writes the steps of one scope.

    Args:
        imports: collects what the code needs.
        numbers: the steps that give sizes.
        name: the code of a node among the arguments of a step.
        access: how a module or tensor is reached.
        module: the module at a path.
    """

    def __init__(
        self,
        imports: Imports,
        numbers: Collection[Node],
        name: Callable[[Node], Code],
        access: Callable[[str], str],
        module: Callable[[str], Any],
    ) -> None:
        self._imports = imports
        self._numbers = numbers
        self._name = name
        self._access = access
        self._module = module

    def value(self, value: Any, where: str, hint: str = "") -> Code:
        """An argument, with the nodes in it."""
        return Literals(self._imports, where, self._name).of(value, hint)

    def of(self, step: Node) -> Code:
        """What a step computes.

        Raises:
            UnsupportedModelError: it calls or holds something that has no name in source code.
        """
        where = f"step {step.name!r}"
        if step.op == "call_module":
            return self._called(step, self._callee(str(step.target), where), step.args)
        if step.op == "call_method":
            base = self._base(step.args[0], where)
            return self._called(step, (*base, f".{_named(step.target, where)}"), step.args[1:])
        pair = alternatives(step)
        if pair is not None:
            flag: Any = step.args[1]
            no, yes = (self._operand(side, where, "mode") for side in pair)
            return (*yes, " if ", *self._name(flag), " else ", *no)
        return self._function(step, where)

    def _function(self, step: Node, where: str) -> Code:
        target: Any = step.target
        plainly = not step.kwargs
        if target is operator.eq and self._compared(step):
            said = self._operand(step.args[0], where)
            return said if step.args[1] else ("not ", *said)
        if target in _INFIX and plainly and len(step.args) == 2:
            hint = function_name(step)
            left, right = (self._operand(a, where, hint) for a in step.args)
            if target is operator.pow:
                left = ("(", *left, ")") if flat(left).startswith("-") else left
                if all(_SIMPLE.fullmatch(flat(side)) for side in (left, right)):
                    return (*left, "**", *right)
            return (*left, f" {_INFIX[target]} ", *right)
        if target in _PREFIX and plainly:
            return (_PREFIX[target], *self._operand(step.args[0], where))
        if target is getattr and len(step.args) == 2 and is_identifier(str(step.args[1])):
            return (*self._base(step.args[0], where), f".{step.args[1]}")
        if target is operator.getitem and plainly:
            return self.item(step, where)
        if target is torch._assert and plainly and len(step.args) == 2:
            condition, message = step.args
            self._imports.add("import torch")
            message = _ABSOLUTE.sub("", message) if isinstance(message, str) else message
            return call("torch._assert", self.value(condition, where), self.value(message, where))
        return self._called(step, (self._imports.name_of(target, where),), step.args)

    def _compared(self, step: Node) -> bool:
        """Whether a step compares what a comparison of sizes says with True or False."""
        said, expected = step.args
        return (
            isinstance(expected, bool)
            and isinstance(said, Node)
            and said in self._numbers
            and said.target in _COMPARISONS
        )

    def item(self, step: Node, where: str) -> Code:
        """``tensor[index]`` of a step that reads or sets items."""
        base, index = step.args[:2]
        if isinstance(index, tuple) and len(index) > 1:
            parts = tuple(self._index(entry, where) for entry in index)
            return (*self._base(base, where), Group(parts, "[", "]"))
        return (*self._base(base, where), "[", *self._index(index, where), "]")

    def _index(self, index: Any, where: str) -> Code:
        if isinstance(index, slice):
            return self._slice(index, where)
        return plain(self.value(index, where))

    def _slice(self, index: slice, where: str) -> Code:
        bounds = [
            "" if b is None else flat(self.value(b, where)) for b in (index.start, index.stop)
        ]
        simple = all(not b or _SIMPLE.fullmatch(b) for b in bounds)
        text = ":".join(bounds) if simple else " : ".join(bounds).strip()
        return (text if index.step is None else f"{text}:{flat(self.value(index.step, where))}",)

    def _called(self, step: Node, function: Code, args: Any) -> Code:
        where, hint = f"step {step.name!r}", function_name(step).strip("_")
        items = [self.value(a, where, f"{hint}_{k}") for k, a in enumerate(args)]
        for key, a in step.kwargs.items():
            items.append((f"{_named(key, where)}=", *self.value(a, where, f"{hint}_{key}")))
        code: Code = (*function, Group(tuple(items)))
        return code if hint in _SIZED else plain(code)

    def _callee(self, target: str, where: str) -> Code:
        if not target.startswith(f"{FUNCTIONS}."):
            return (self._access(target),)
        module = self._module(target)
        assert isinstance(module, CalledFunction)
        owner = getattr(module._function, "function_class", None)
        if owner is not None:  # of torch.autograd.Function
            return (f"{self._imports.name_of(owner, where)}.apply",)
        return (self._imports.name_of(module._function, where),)

    def _base(self, value: Any, where: str) -> Code:
        """A value before a dot or a bracket."""
        code = self._operand(value, where)
        return ("(", *code, ")") if _is_number(code) else code

    def _operand(self, value: Any, where: str, hint: str = "") -> Code:
        """A value beside an operator."""
        code = self.value(value, where, hint)
        if _ATOM.fullmatch(flat(code)) and not _is_number(code):
            return code
        lone = [p for p in code if not isinstance(p, str)]
        last: Piece = code[-1]
        head = flat(code[:-1])
        called = isinstance(last, Group) and len(lone) == 1 and (not head or _ATOM.fullmatch(head))
        if called or _is_number(code):
            return code
        return ("(", *code, ")")


def _is_number(code: Code) -> bool:
    return len(code) == 1 and isinstance(code[0], Number)


def _named(name: Any, where: str) -> str:
    if not is_identifier(str(name)) and not re.fullmatch(r"__\w+__", str(name)):
        raise UnsupportedModelError(f"{where} uses the name {name!r}, which code cannot: rename it")
    return str(name)
