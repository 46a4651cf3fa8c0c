"""Runs a graph node by node."""

from __future__ import annotations

from typing import Any

import torch.fx
from torch import nn
from torch.fx import Graph, Node

from lwdna.fx_passes.autocast import leave_open
from lwdna.fx_passes.members import named_modules


class NodeRunner(torch.fx.Interpreter):
    """``torch.fx.Interpreter`` without what it does for tracing, and with modules looked up once.

    Args:
        root: the module tree that the graph's targets name; its modules stay what they are.
        graph: the graph to run.
        free: whether to drop values after their last use.
    """

    def __init__(self, root: nn.Module, graph: Graph, *, free: bool = True) -> None:
        super().__init__(root, garbage_collect_values=free, graph=graph)
        self._submodules: dict[str, nn.Module] = dict(named_modules(root, again=True))

    def run(self, *args: Any) -> Any:  # type: ignore[override]
        """What the graph returns; what is raised leaves no region of mixed precision open."""
        try:
            return self.run_nodes(*args)
        except BaseException:
            leave_open(self.env)
            raise

    def run_nodes(self, *args: Any) -> Any:
        """What the graph returns."""
        return super().run(*args)

    def run_node(self, n: Node) -> Any:
        """What a node returns."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return self.evaluate(n, args, kwargs)

    def evaluate(self, n: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a node returns for these values of its arguments."""
        if n.op == "call_module":
            return self.leaf(n)(*args, **kwargs)
        return getattr(self, n.op)(n.target, args, kwargs)

    def leaf(self, n: Node) -> nn.Module:
        """The module that a node calls."""
        return self._submodules[str(n.target)]
