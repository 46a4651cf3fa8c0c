"""Which modules get a ``forward`` of their own, and which steps of the graph stand in it.

A captured graph is flat. The steps of one module lie together unless its code was called from
several places, and what they take from and give to the rest are its arguments and results; such a
module is a *scope*. What is no scope stands in the scope around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn
from torch.fx import Graph, Node

from lwdna.export.names import unused
from lwdna.export.tree import Tree, join
from lwdna.fx_passes.autocast import SWITCHES
from lwdna.fx_passes.conditional import Condition, conditions
from lwdna.fx_passes.module import CONSTANTS, Container

#: What a step takes: the result of another step, an input, or the path of a tensor or flag.
Value = Node | str
_NO_STEPS = ("placeholder", "output", "get_attr")


@dataclass(eq=False)
class Scope:
    """A module with a ``forward``.

    Attributes:
        path: where it is.
        items: its steps, and the scopes that it calls, in order.
        inputs: what it takes from outside, in the order in which it is used.
        outputs: what is used of it outside.
        condition: the mode that all of its steps need, if they need one.
        chain: whether its items are its children, each called on the result of the one before.
    """

    path: str
    items: list[Node | Scope]
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)
    condition: Condition | None = None
    chain: bool = False

    def steps(self) -> Iterator[Node]:
        """Its steps and those of the scopes in it."""
        for item in self.items:
            if isinstance(item, Scope):
                yield from item.steps()
            else:
                yield item


@dataclass(frozen=True)
class Program:
    """A network's modules and steps, sorted.

    Attributes:
        tree: its modules.
        scopes: path -> scope; "" is the network itself.
        owners: step -> path of the module whose code it is.
        conditions: step -> the mode that it needs, if it needs one.
        constants: target of a tensor that tracing has made -> path at which the file keeps it.
    """

    tree: Tree
    scopes: Mapping[str, Scope]
    owners: Mapping[Node, str]
    conditions: Mapping[Node, Condition]
    constants: Mapping[str, str]

    def value(self, node: Node) -> Value:
        """What a node among the arguments of a step stands for."""
        if node.op != "get_attr":
            return node
        target = str(node.target)
        return self.constants.get(target, target)

    def condition(self, item: Node | Scope) -> Condition | None:
        """The mode that a step or all steps of a scope need."""
        return item.condition if isinstance(item, Scope) else self.conditions.get(item)


def is_below(value: Value, path: str) -> bool:
    """Whether a tensor or flag belongs to the module at ``path`` or to one in it."""
    return isinstance(value, str) and (not path or value.startswith(f"{path}."))


def program(graph: Graph, tree: Tree) -> Program:
    """Sort the steps of a graph into scopes."""
    steps = [n for n in graph.nodes if n.op not in _NO_STEPS]
    owners: dict[Node, str] = {}
    for n in reversed(steps):
        owners[n] = _owner(n, tree, owners)
    scopes: dict[str, Scope] = {}
    found = Program(tree, scopes, owners, conditions(graph), _constants(graph, tree, owners))
    items = _Sorter(found, scopes, {n: k for k, n in enumerate(steps)}).items("")
    scopes[""] = Scope("", [item for _, item in items])
    return found


def _owner(step: Node, tree: Tree, owners: Mapping[Node, str]) -> str:
    """The container whose code a step is; one that a repair has added is its first user's."""
    path = step.meta.get("module")
    if path is None:
        return next((owners[user] for user in step.users if user in owners), "")
    while not tree.is_container(path):
        path = path.rpartition(".")[0]
    return str(path)


def _constants(graph: Graph, tree: Tree, owners: Mapping[Node, str]) -> dict[str, str]:
    """A path for each tensor that tracing has made: at the module that uses it."""
    users: dict[str, list[str]] = {}
    for n in graph.nodes:
        if n.op == "get_attr" and n.users and str(n.target).startswith(f"{CONSTANTS}."):
            users.setdefault(str(n.target), []).extend(owners.get(user, "") for user in n.users)
    found: dict[str, str] = {}
    for target, paths in users.items():
        home = paths[0]
        while home and not (
            type(tree.modules[home]) is Container
            and all(f"{path}.".startswith(f"{home}.") for path in paths)
        ):
            home = home.rpartition(".")[0]
        module = tree.modules[home]
        used = {*module._parameters, *module._buffers, *module._modules}
        used |= {path.rpartition(".")[2] for path in found.values()}
        found[target] = join(home, unused("constant", used))
    return found


class _Sorter:
    """Makes the scopes of a program, the innermost first."""

    def __init__(
        self, found: Program, scopes: dict[str, Scope], positions: Mapping[Node, int]
    ) -> None:
        self._program = found
        self._scopes = scopes
        self._positions = positions
        self._own: dict[str, list[Node]] = {}
        for step in positions:
            self._own.setdefault(found.owners[step], []).append(step)

    def items(self, path: str) -> list[tuple[int, Node | Scope]]:
        """(position, step or scope) for what stands in a container."""
        tree = self._program.tree
        found: list[tuple[int, Node | Scope]] = [
            (self._positions[step], step) for step in self._own.get(path, ())
        ]
        for child in tree.children(path).values():
            if tree.is_container(child):
                inner = self.items(child)
                scope = self._scope(child, [item for _, item in inner])
                found += inner if scope is None else [(inner[0][0], scope)]
        return sorted(found, key=lambda entry: entry[0])

    def _scope(self, path: str, items: list[Node | Scope]) -> Scope | None:
        scope = Scope(path, items)
        steps = list(scope.steps())
        kind = type(self._program.tree.modules[path])
        if not steps or kind not in (Container, nn.Sequential):
            return None
        places = [self._positions[step] for step in steps]
        if max(places) - min(places) + 1 != len(steps) or not _closed(steps):
            return None
        _connect(scope, steps, self._program)
        scope.chain = _is_chain(scope, self._program)
        if kind is nn.Sequential and not scope.chain:
            return None
        self._scopes[path] = scope
        return scope


def _closed(steps: list[Node]) -> bool:
    """Whether regions of mixed precision are entered and left inside."""
    inside = set(steps)
    for step in steps:
        if step.target in SWITCHES:
            partners = [*step.users, *step.all_input_nodes]
            if any(p.target in SWITCHES and p not in inside for p in partners):
                return False
    return True


def _connect(scope: Scope, steps: list[Node], found: Program) -> None:
    """Find out what a scope takes and gives."""
    inside = set(steps)
    needs = {found.conditions.get(step) for step in steps}
    scope.condition = needs.pop() if len(needs) == 1 else None
    taken: dict[Value, None] = {}
    for step in steps:
        for node in step.all_input_nodes:
            value = found.value(node)
            if value not in inside and not is_below(value, scope.path):
                taken[value] = None
        condition = found.conditions.get(step)
        if condition not in (None, scope.condition):
            assert condition is not None
            if not is_below(condition.flag, scope.path):
                taken[condition.flag] = None
    scope.inputs = list(taken)
    scope.outputs = [step for step in steps if any(user not in inside for user in step.users)]


def _is_chain(scope: Scope, found: Program) -> bool:
    """Whether ``torch.nn.Sequential`` does what the scope does."""
    tree, module = found.tree, found.tree.modules[scope.path]
    children = tree.children(scope.path)
    bare = not module._parameters and not module._buffers
    if type(module) is Container and not (bare and tree.numbered(scope.path)):
        return False
    if len(children) != len(scope.items) or len(scope.inputs) != 1 or len(scope.outputs) != 1:
        return False
    given: Value = scope.inputs[0]
    for path, item in zip(children.values(), scope.items, strict=True):
        if not isinstance(given, Node) or found.condition(item) != scope.condition:
            return False
        taken, result = _call(item)
        if result is None or taken != (tree.shared.get(path, path), [given]):
            return False
        given = result
    return scope.outputs == [given]


def _call(item: Node | Scope) -> tuple[tuple[str, list[Value]], Node | None]:
    """((path, arguments), result) of a call of a module on one value; None if it is no such."""
    if isinstance(item, Scope):
        lone = len(item.outputs) == 1
        return (item.path, item.inputs), item.outputs[0] if lone else None
    lone = item.op == "call_module" and item.args == tuple(item.all_input_nodes) and not item.kwargs
    return (str(item.target), list(item.all_input_nodes)), item if lone else None
