"""Graphs as bytes, node by node.

A GraphModule is pickled as code and traced again when it is loaded, which burns in the mode of
that moment; a Graph is pickled as a linked list, as deep as the network.
"""

from __future__ import annotations

import io
import pickle
from pkgutil import resolve_name
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Graph, Node
from torch.fx.node import _get_qualified_name


class _Pickler(pickle.Pickler):
    """Nodes, operators and C functions of torch by name: as objects, many functions refuse."""

    def persistent_id(self, value: Any) -> str | None:
        return value.name if isinstance(value, Node) else None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, (OpOverload, OpOverloadPacket)):
            return resolve_name, (f"torch.ops:{value}",)
        local = isinstance(value, FunctionType) and "<locals>" in value.__qualname__
        if not local and (
            not isinstance(value, BuiltinFunctionType) or value.__module__ in ("_operator", "math")
        ):
            return NotImplemented
        name = _get_qualified_name(value)
        name = name if "." in name else f"builtins.{name}"
        if local and not _finds(name, value):  # F.max_pool2d is a local one under a public name
            raise pickle.PicklingError(
                f"the network calls {name}, which no import can find: define it at the top level "
                "of a module"
            )
        return resolve_name, (name,)


def _finds(name: str, function: FunctionType) -> bool:
    try:
        return resolve_name(name) is function
    except (ImportError, AttributeError, ValueError):
        return False


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, nodes: dict[str, Node]) -> None:
        super().__init__(io.BytesIO(data))
        self._nodes = nodes

    def persistent_load(self, name: str) -> Node:
        return self._nodes[name]


def packed(graph: Graph) -> list[bytes]:
    """One entry per node, in order, to be given to :func:`unpacked`."""
    entries = []
    for n in graph.nodes:
        entry = io.BytesIO()
        _Pickler(entry).dump((n.op, n.target, n.args, n.kwargs, n.name, n.type, n.meta))
        entries.append(entry.getvalue())
    return entries


def unpacked(entries: list[bytes]) -> Graph:
    """The graph that was packed."""
    graph, nodes = Graph(), dict[str, Node]()
    for entry in entries:
        op, target, args, kwargs, name, kind, meta = _Unpickler(entry, nodes).load()
        node = graph.create_node(op, target, args, kwargs, name, kind)
        node.meta = meta
        nodes[node.name] = node
    return graph
