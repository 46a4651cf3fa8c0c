"""What one mode alone needs runs in that mode alone.

A captured graph holds what a network computes in training and in evaluation. A node that only one
mode's trace has, and whose result is chosen in that mode only (an auxiliary head), has a
condition: the generated code runs it where the condition holds. Interpreters, which follow
channels, run every node.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from textwrap import indent
from typing import Any

from torch.fx import Graph, Node
from torch.fx.graph import _format_target
from torch.fx.node import map_arg

from lwdna.fx_passes.proxy import has_effect

#: Key of ``Node.meta``: whether only one mode's trace has the node.
LONE = "lone"


@dataclass(frozen=True)
class Condition:
    """Holds while a module is in one mode.

    Attributes:
        flag: path of the module's ``training`` attribute.
        training: the mode.
    """

    flag: str
    training: bool

    def __str__(self) -> str:
        flag = _format_target("self", self.flag)
        return flag if self.training else f"not {flag}"


_Needs = frozenset[Condition | None]  # None: whatever the mode
_ALWAYS: _Needs = frozenset((None,))


def alternatives(node: Node) -> tuple[Any, Any] | None:
    """(in evaluation, in training) of a node that chooses by mode; None for any other node."""
    if node.target is not operator.getitem or not isinstance(node.args[0], tuple):
        return None
    pair, flag = node.args[0], node.args[1]
    if isinstance(flag, Node) and str(flag.target).rpartition(".")[2] == "training":
        return pair[0], pair[1]
    return None


def conditions(graph: Graph) -> dict[Node, Condition]:
    """The nodes that need not always run, and when they must."""
    needs: dict[Node, _Needs] = {}
    for node in reversed(graph.nodes):
        if node.meta.get(LONE) and node.op.startswith("call"):
            needs[node] = _needs(node, needs)
    return _followed(needs)


def _needs(node: Node, needs: Mapping[Node, _Needs]) -> _Needs:
    found: _Needs = frozenset()
    for user in node.users:
        pair = alternatives(user)
        if pair is None:
            found |= needs.get(user, _ALWAYS)
            continue
        for training, side in enumerate(pair):
            if node in _nodes_in(side):
                found |= {Condition(str(user.args[1].target), bool(training))}  # type: ignore[union-attr]
    changed = node.all_input_nodes[:1] if has_effect(node) else []
    for other in changed:  # who uses it from here on needs the change
        found |= needs.get(other, frozenset())
    return found


def _nodes_in(tree: Any) -> list[Node]:
    found: list[Node] = []
    map_arg(tree, found.append)
    return found


def _followed(needs: dict[Node, _Needs]) -> dict[Node, Condition]:
    """What nobody uses (an assertion) runs where what it looks at does."""
    found: dict[Node, Condition] = {}
    for node in reversed(needs):  # in the order of the graph
        own = needs[node] or {found[n] for n in node.all_input_nodes if n in found}
        if len(own) > 1 and not needs[node]:
            return {}  # it would need two conditions at once
        condition = next(iter(own)) if len(own) == 1 else None
        if condition is not None:
            found[node] = condition
    return found


def under(condition: Condition | None, nodes: Iterable[Node], code: str) -> Iterator[str]:
    """Code of nodes that run under a condition, if there is one; else their result is None."""
    if condition is None:
        yield code
        return
    yield " = ".join(node.name for node in nodes) + " = None\n"
    yield f"if {condition}:\n" + indent(code, "    ")
