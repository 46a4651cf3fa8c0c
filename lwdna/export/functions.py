"""The ``forward`` of a scope: its steps in order, one statement per line."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from torch.fx import Graph, Node
from torch.fx.node import map_arg

from lwdna.errors import UnsupportedModelError
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
    lines: tuple[tuple[int, Code], ...]


@dataclass(frozen=True)
class _Entry:
    """One item's statements.

    Attributes:
        item: the step or scope.
        lines: its statements.
        names: variable that it binds -> the value in it.
    """

    item: Node | Scope
    lines: tuple[Code, ...]
    names: Mapping[str, Value] = field(default_factory=dict)


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
        entries = []
        for k, item in enumerate(self._scope.items):
            if item not in self._inlined:
                entries.append(self._entry(item, [v for v, at in last.items() if at == k], last))
        lines = list(self._blocks(entries, last))
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

    def _entry(self, item: Node | Scope, dying: list[Value], last: dict[Value, int]) -> _Entry:
        alone = self._relative(item) is not None  # its variables are bound in one mode only
        order = list(dict.fromkeys(self._taken(item)))
        dying = [value for value in order if value in dying and value in self._locals]
        if alone:  # names that stand for None before the ``if`` must not be in use there
            dying = []
        if isinstance(item, Scope):
            return self._scope_call(item, dying)
        if item.target is enter_autocast:
            given = zip(_AUTOCAST, item.args, strict=True)
            arguments = (
                (f"{name}=", *self._code.value(value, "a region of mixed precision"))
                for name, value in given
                if value is not None
            )
            self._imports.add("import torch")
            code: Code = ("with ", *call("torch.autocast", *arguments), ":")
            self._locals.release(dying)
            return _Entry(item, (code,))
        if item.target is exit_autocast:
            return _Entry(item, ())
        if item.target is operator.setitem and not item.users:
            where = f"step {item.name!r}"
            code = (*self._code.item(item, where), " = ", *self._code.value(item.args[2], where))
            self._locals.release(dying)
            return _Entry(item, (code,))
        if item.target in ASSIGNING:
            return self._in_place(item, dying, last)
        code = self._code.of(item)
        used_up = self._locals.release(dying)
        if item not in last:
            return _Entry(item, (code,))
        name = self._locals.result(item, item, used_up)
        return _Entry(item, ((f"{name} = ", *code),), {name: item})

    def _in_place(self, item: Node, dying: list[Value], last: dict[Value, int]) -> _Entry:
        """``x += y`` where nobody asks for the old ``x``; else by the function."""
        target, other = item.args
        owned = isinstance(target, Node) and target in dying
        code = self._code.value(other, f"step {item.name!r}")
        if not owned:
            self._imports.add("import operator")
            code = call(f"operator.{item.target.__name__}", self._code.value(target, ""), code)  # type: ignore[union-attr]
            self._locals.release(dying)
            name = self._locals.result(item, item, ()) if item in last else ""
            bound = {name: item} if name else {}
            return _Entry(item, ((f"{name} = ", *code) if name else code,), bound)
        assert isinstance(target, Node)
        name = self._locals[target]
        self._locals.release(dying)
        if item in last:
            self._locals.bind(item, name)
        return _Entry(item, ((f"{name} {ASSIGNING[item.target]} ", *code),))  # type: ignore[index]

    def _scope_call(self, scope: Scope, dying: list[Value]) -> _Entry:
        arguments = tuple(
            (self._access(str(v)) if is_below(v, self._scope.path) else self._locals[v],)
            for v in scope.inputs
        )
        code = call(self._access(scope.path), *arguments)
        used_up = self._locals.release(dying)
        if not scope.outputs:
            return _Entry(scope, (code,))
        if len(scope.outputs) == 1:
            name = self._locals.result(scope.outputs[0], scope, used_up)
            return _Entry(scope, ((f"{name} = ", *code),), {name: scope.outputs[0]})
        names = {self._locals.result(n, n, ()): n for n in scope.outputs}
        return _Entry(scope, ((*_together(list(names)), " = ", *code),), names)

    def _blocks(
        self, entries: list[_Entry], last: Mapping[Value, int]
    ) -> Iterator[tuple[int, Code]]:
        """The statements, in ``with`` and ``if`` where regions and modes ask for it."""
        depth, empty = 0, False
        owner = self._scope.path
        for condition, group in groupby(entries, lambda entry: self._relative(entry.item)):
            several = list(group)
            inner = depth
            if condition is not None:
                end = self._scope.items.index(several[-1].item)
                bound = [pair for entry in several for pair in entry.names.items()]
                names = [name for name, value in bound if last.get(value, -1) > end]
                if names:
                    yield depth, (" = ".join(names) + " = None",)
                yield depth, (f"if {self._flag(condition)}:",)
                inner += 1
            for entry in several:
                if entry.item.target is exit_autocast if isinstance(entry.item, Node) else False:
                    if empty:
                        yield inner, ("pass",)
                    depth, inner, empty = depth - 1, inner - 1, False
                    continue
                previous, owner = owner, self._owner(entry.item)
                if owner not in (previous, self._scope.path):
                    yield inner, (f"# {readable(owner)}",)
                for line in entry.lines:
                    yield inner, line
                empty = isinstance(entry.item, Node) and entry.item.target is enter_autocast
                if empty:
                    depth, inner = depth + 1, inner + 1

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
