"""Which nodes of a trace have gradients: regions without gradients, carried over into the graph.

A graph has no ``with torch.no_grad()``. What such a region gets and gives is detached instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.fx import Node

from lwdna.fx_passes.proxy import is_proxy
from lwdna.fx_passes.trees import tree_leaves


class Gradients:
    """Follows a trace node by node, and cuts gradients off where the model does.

    Args:
        tensors: parameters and buffers of the network, by name.
        record: records a node that detaches a proxy, and returns its proxy.
    """

    def __init__(self, tensors: Mapping[str, Tensor], record: Callable[[Any], Any]) -> None:
        self._tensors = tensors
        self._record = record
        self._differentiable: set[Node] = set()
        self._without: dict[Node, Any] = {}

    def follow(self, node: Node) -> None:
        """Note whether a node that was just recorded may have a gradient."""
        tensors = [t for t in tree_leaves(node.meta["hint"]) if isinstance(t, Tensor)]
        if not any(t.is_floating_point() or t.is_complex() for t in tensors):
            return
        if node.op == "get_attr":
            may = isinstance(self._tensors[str(node.target)], nn.Parameter)
        else:
            source = node.op in ("placeholder", "call_module")
            may = source or any(n in self._differentiable for n in node.all_input_nodes)
        if may:
            self._differentiable.add(node)

    def detached(self, value: Any) -> Any:
        """A proxy that passes no gradient on, for one that may; any other value as it is."""
        if not is_proxy(value) or value.node not in self._differentiable:
            return value
        if not isinstance(value.hint, Tensor):
            return value
        if value.node not in self._without:
            self._without[value.node] = self._record(value)
            self._differentiable.discard(self._without[value.node].node)
        return self._without[value.node]
