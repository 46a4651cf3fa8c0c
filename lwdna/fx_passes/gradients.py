"""Which nodes of a trace have gradients: regions without gradients, carried over into the graph.

A graph has no ``with torch.no_grad()``. What such a region gets and gives is detached instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from lwdna.fx_passes.proxy import is_proxy
from lwdna.trees import tree_leaves

_CUTS = ("detach", "detach_", torch.detach)


class Gradients:
    """Follows a trace node by node, and cuts gradients off where the model does.

    Args:
        root: the network that is traced.
        tensors: its parameters and buffers, by name.
        record: records a node that detaches a proxy, and returns its proxy.
    """

    def __init__(
        self, root: nn.Module, tensors: Mapping[str, Tensor], record: Callable[[Any], Any]
    ) -> None:
        self._root = root
        self._tensors = tensors
        self._record = record
        self._differentiable: set[Node] = set()
        self._learned: set[Node] = set()
        self._without: dict[Node, Any] = {}

    def follow(self, node: Node) -> None:
        """Note whether a node that was just recorded may have a gradient."""
        if node.target in _CUTS:
            return
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
        if may and self._depends_on_parameters(node):
            self._learned.add(node)

    def _depends_on_parameters(self, node: Node) -> bool:
        if node.op == "get_attr":
            return self._tensors[str(node.target)].requires_grad
        if any(n in self._learned for n in node.all_input_nodes):
            return True
        module = self._root.get_submodule(str(node.target)) if node.op == "call_module" else None
        return module is not None and any(p.requires_grad for p in module.parameters())

    def required(self, node: Node) -> bool:
        """What ``requires_grad`` of a node's result is: in training; evaluation needs none."""
        return self._root.training and node in self._learned

    def detached(self, value: Any) -> Any:
        """A proxy that passes no gradient on, for one that may; any other value as it is."""
        if not is_proxy(value) or value.node not in self._differentiable:
            return value
        if not isinstance(value.hint, Tensor):
            return value
        if value.node not in self._without:
            self._without[value.node] = self._record(value)
        return self._without[value.node]
