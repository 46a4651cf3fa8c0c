"""The ``forward`` of a scope: its steps in order, one statement per line."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node
from torch.fx.node import map_arg

from lwdna.errors import UnsupportedModelError
from lwdna.export.blocks import Entry, Line, blocks
from lwdna.export.code import COLUMNS, Code, Group, call, flat, readable
from lwdna.export.expressions import ASSIGNING, Expressions
from lwdna.export.locals import Locals
from lwdna.export.names import TAKEN, Imports, is_identifier
from lwdna.export.scopes import Program, Scope, Value, is_below
from lwdna.export.tree import PLAIN
from lwdna.export.values import inlined, sizes
from lwdna.fx_passes.autocast import enter_autocast, exit_autocast
from lwdna.fx_passes.conditional import Condition

#: Builtins that the code may call, so that arguments of ``forward`` must not hide them.
_CALLED = frozenset(("float", "getattr", "int", "len", "max", "min", "range", "round", "slice"))
_AUTOCAST = ("device_type", "dtype", "enabled", "cache_enabled")


@dataclass(frozen=True)
class Function:
    """A ``forward``.

    Attributes:
        arguments: after ``self``.
        lines: (depth of indentation, statement or comment) of the body.
    """

    arguments: tuple[Code, ...]
    lines: tuple[Line, ...]


class Writer:
    """Writes the functions of a program.

    Args:
        graph: the captured graph.
        program: its steps, sorted.
        imports: collects what the code needs.
    """

    def __init__(self, graph: Graph, program: Program, imports: Imports) -> None:
        self._program = program
        self._imports = imports
        self._numbers = sizes(n for n in graph.nodes if n.op.startswith("call"))
        self._inputs = [n for n in graph.nodes if n.op == "placeholder"]
        self._result = next(n for n in reversed(graph.nodes) if n.op == "output").args[0]

    def function(self, scope: Scope) -> Function:
        """The ``forward`` of a scope."""
        return _Body(scope, self._program, self._imports, self._numbers).function(
            self._inputs if not scope.path else None, self._result if not scope.path else None
        )


class _Body:
    def __init__(
        self, scope: Scope, program: Program, imports: Imports, numbers: set[Node]
    ) -> None:
        self._scope = scope
        self._program = program
        self._imports = imports
        self._locals = Locals(numbers)
        self._inlined = inlined(scope.items, numbers, program.conditions)
        modules = program.tree.modules[""].get_submodule
        self._code = Expressions(imports, numbers, self._name, self._access, modules)

    def function(self, inputs: list[Node] | None, result: Any) -> Function:
        """Written from the top.

        Args:
            inputs: the placeholders, of the network itself.
            result: what the network returns.
        """
        if inputs is None:
            arguments: list[Code] = [(self._locals.argument(v),) for v in self._scope.inputs]
            returned: list[Node] = self._scope.outputs
        else:
            arguments = [self._placeholder(n) for n in inputs]
            returned = _nodes(result)
        last = self._last_uses(returned)
        ending: dict[int, list[Value]] = {}
        for value, k in last.items():
            ending.setdefault(k, []).append(value)
        entries = [
            self._entry(k, item, ending.get(k, []), last)
            for k, item in enumerate(self._scope.items)
            if item not in self._inlined
        ]
        lines = list(blocks(entries, readable(self._scope.path)))
        if inputs is not None:
            lines.append((0, ("return ", *self._code.value(result, "the output"))))
        elif returned:
            names = [self._locals[n] for n in returned]
            lines.append((0, ("return ", *_together(names))))
        return Function(tuple(arguments), tuple(lines))

    def _placeholder(self, node: Node) -> Code:
        name = str(node.target)
        if not is_identifier(name) or name in TAKEN | _CALLED:
            raise UnsupportedModelError(
                f"forward has an argument {name!r}, which means something else in the file: "
                "rename it in the model"
            )
        self._locals.bind(node, name)
        default = self._code.value(node.args[0], f"argument {name!r}") if node.args else ()
        return (f"{name}=", *default) if default else (name,)

    def _name(self, node: Node) -> Code:
        """A node among the arguments of a step."""
        value = self._program.value(node)
        if isinstance(value, Node) and value in self._inlined:
            return self._code.of(value)
        if is_below(value, self._scope.path):
            return (self._access(str(value)),)
        return (self._locals[value],)

    def _access(self, path: str) -> str:
        path = self._program.tree.shared.get(path, path)
        return self._program.tree.access(path, self._scope.path)

    def _taken(self, item: Node | Scope) -> Iterator[Value]:
        """What an item uses, that of the sizes in it included; one by one, in order."""
        condition = self._relative(item)
        if condition is not None and not is_below(condition.flag, self._scope.path):
            yield condition.flag
        for value in (
            item.inputs
            if isinstance(item, Scope)
            else map(self._program.value, item.all_input_nodes)
        ):
            if isinstance(value, Node) and value in self._inlined:
                yield from self._taken(value)
            elif not is_below(value, self._scope.path):
                yield value

    def _last_uses(self, returned: list[Node]) -> dict[Value, int]:
        """Value -> the last item that uses it; what is returned is used at the end."""
        last: dict[Value, int] = {}
        for k, item in enumerate(self._scope.items):
            if item not in self._inlined:
                for value in self._taken(item):
                    last.pop(value, None)
                    last[value] = k
        for node in returned:
            value = self._program.value(node)
            last[value] = len(self._scope.items)
        return last

    def _relative(self, item: Node | Scope) -> Condition | None:
        """The mode that an item needs, unless the whole scope needs it."""
        condition = self._program.condition(item)
        return None if condition == self._scope.condition else condition

    def _entry(
        self, k: int, item: Node | Scope, ending: list[Value], last: Mapping[Value, int]
    ) -> Entry:
        """The statements of the ``k``-th item.

        Args:
            k: index of the item.
            item: a step or scope.
            ending: values that it is the last to use.
            last: value -> index of the last item that uses it.
        """
        condition = self._relative(item)
        flag = None if condition is None else self._flag(condition)
        # Names that stand for None before an ``if`` must not be in use there: all stay taken.
        used = list(dict.fromkeys(self._taken(item))) if condition is None else []
        dying = [value for value in used if value in ending and value in self._locals]
        target = None if isinstance(item, Scope) else item.target
        made = self._statement(item, dying, last)
        return Entry(
            k,
            () if made is None else (made[0],),
            {} if made is None else {name: last.get(v, -1) for name, v in made[1].items()},
            flag,
            readable(self._owner(item)),
            enters=target is enter_autocast,
            leaves=target is exit_autocast,
        )

    def _statement(
        self, item: Node | Scope, dying: list[Value], last: Mapping[Value, int]
    ) -> tuple[Code, Mapping[str, Value]] | None:
        """(statement, the variables that it binds) of an item; None if it needs none."""
        if isinstance(item, Scope):
            return self._scope_call(item, dying)
        if item.target is exit_autocast:
            return None
        if item.target in ASSIGNING:
            return self._in_place(item, dying, last)
        where = f"step {item.name!r}"
        if item.target is enter_autocast:
            code = self._region(item)
        elif item.target is operator.setitem and not item.users:
            code = (*self._code.item(item, where), " = ", *self._code.value(item.args[2], where))
        else:
            code = self._code.of(item)
        used_up = self._locals.release(dying)
        if item not in last or item.target is enter_autocast:
            return code, {}
        name = self._locals.result(item, item, used_up)
        return (f"{name} = ", *code), {name: item}

    def _region(self, item: Node) -> Code:
        arguments = (
            (f"{name}=", *self._code.value(value, "a region of mixed precision"))
            for name, value in zip(_AUTOCAST, item.args, strict=True)
            if value is not None
        )
        self._imports.add("import torch")
        return ("with ", *call("torch.autocast", *arguments), ":")

    def _in_place(
        self, item: Node, dying: list[Value], last: Mapping[Value, int]
    ) -> tuple[Code, Mapping[str, Value]]:
        """``x += y`` where nobody asks for the old ``x``; else by the function."""
        target, other = item.args
        code = self._code.value(other, f"step {item.name!r}")
        if isinstance(target, Node) and target in dying:
            name = self._locals[target]
            self._locals.release(dying)
            if item in last:
                self._locals.bind(item, name)
            return (f"{name} {ASSIGNING[item.target]} ", *code), {}
        function = self._imports.name_of(item.target, f"step {item.name!r}")
        code = call(function, self._code.value(target, f"step {item.name!r}"), code)
        self._locals.release(dying)
        if item not in last:
            return code, {}
        name = self._locals.result(item, item, ())
        return (f"{name} = ", *code), {name: item}

    def _scope_call(self, scope: Scope, dying: list[Value]) -> tuple[Code, Mapping[str, Value]]:
        arguments = tuple(
            (self._access(str(v)) if is_below(v, self._scope.path) else self._locals[v],)
            for v in scope.inputs
        )
        code = call(self._access(scope.path), *arguments)
        used_up = self._locals.release(dying)
        if not scope.outputs:
            return code, {}
        if len(scope.outputs) == 1:
            names = {self._locals.result(scope.outputs[0], scope, used_up): scope.outputs[0]}
        else:
            names = {self._locals.result(n, n, ()): n for n in scope.outputs}
        return (*_together(list(names)), " = ", *code), dict(names)

    def _owner(self, item: Node | Scope) -> str:
        """Whose code a step is, for the comment above it; lists of modules have none."""
        path = self._scope.path if isinstance(item, Scope) else self._program.owners[item]
        while type(self._program.tree.modules[path]) in PLAIN:
            path = path.rpartition(".")[0]
        return path

    def _flag(self, condition: Condition) -> str:
        own = is_below(condition.flag, self._scope.path)
        flag = self._access(condition.flag) if own else self._locals[condition.flag]
        return flag if condition.training else f"not {flag}"


def _nodes(tree: Any) -> list[Node]:
    found: list[Node] = []
    map_arg(tree, found.append)
    return found


def _together(names: list[str]) -> Code:
    """Several names, as they are returned and unpacked."""
    code: Code = (", ".join(names),)
    if len(names) > 1 and len(flat(code)) > COLUMNS // 2:
        return (Group(tuple((name,) for name in names)),)
    return code
