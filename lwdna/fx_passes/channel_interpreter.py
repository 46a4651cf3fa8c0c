"""Runs a graph node by node, and follows the channels of what every node returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_flatten

from lwdna.channels import Slot
from lwdna.fx_passes import modules
from lwdna.fx_passes.channel_mode import ChannelMode
from lwdna.fx_passes.conditional import alternatives, conditions
from lwdna.fx_passes.interpreter import NodeRunner
from lwdna.fx_passes.outputs import REASON
from lwdna.fx_passes.regions import tensors_in
from lwdna.fx_passes.rules import OpCall
from lwdna.trees import tree_leaves, tree_map


class ChannelInterpreter(NodeRunner):
    """Runs a graph under a :class:`ChannelMode` and notes what every node returns.

    Args:
        root: the module tree that the graph's targets name.
        graph: the graph of a captured network.
        mode: follows the channels; made for ``root`` or for a network that it is a part of.
        prefix: of the nodes' names, where the graph is a part of a network.
    """

    def __init__(self, root: nn.Module, graph: Graph, mode: ChannelMode, prefix: str = "") -> None:
        super().__init__(root, graph)
        self.mode, self.prefix = mode, prefix
        self.values: dict[str, Any] = {}
        self._trained = {n for n, under in conditions(graph).items() if under.training}

    def run_node(self, n: Node) -> Any:
        """Run one node and record shapes and vectors of its result."""
        self.mode.node = self.prefix + n.name
        self.mode.counting = n not in self._trained
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        result = self.evaluate(n, args, kwargs)
        self.mode.counting = True
        if n.op == "placeholder":
            for x in tensors_in(result):
                self._open_input(x)
        if n.op == "call_module":
            self._module_constraints(self.leaf(n), args, kwargs, result)
        pair = alternatives(n)
        if pair is not None:
            self._unite_modes(n, *map_arg(pair, self.env.__getitem__))
        self.values[self.mode.node] = tree_map(self._channels, result)
        return result

    def _open_input(self, x: Tensor) -> None:
        """Channels that come from nowhere are the image's; of a part, they may come with ids."""
        if x.dim() > 1 and x.shape[1] > 1 and not self.mode.knows(x):
            ids = self.mode.space.fresh(x.shape[1], Slot(self.mode.node, 1, "input"))
            self.mode.space.freeze(ids, "network input", self.mode.node)
            self.mode.set_vectors(x, (None, ids, *(None,) * (x.dim() - 2)))

    def _module_constraints(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        modules.couple(module, OpCall(module, args, kwargs, result, self.mode))
        reason = modules.unsupported(module)
        if reason is not None:
            self._freeze(
                (args, kwargs, result, list(module.parameters()), list(module.buffers())), reason
            )

    def _unite_modes(self, n: Node, evaluated: Any, trained: Any) -> None:
        """What is chosen by mode has the same channels in both modes, or fixed ones."""
        trees = tree_flatten(evaluated), tree_flatten(trained)
        pairs = list(zip(trees[0][0], trees[1][0], strict=False))
        if trees[0][1] != trees[1][1] or any(_shape(a) != _shape(b) for a, b in pairs):
            if all(user.op == "output" for user in n.users):
                self._freeze(trained, REASON)  # those of evaluation mode are on their way there
            else:
                self._freeze((evaluated, trained), "its shape depends on the mode")
            return
        for a, b in pairs:
            if isinstance(a, Tensor):
                for v, w in zip(self.mode.vectors(a), self.mode.vectors(b), strict=True):
                    self.mode.space.couple(v, w, self.mode.node, "chosen by mode")

    def _freeze(self, tree: Any, reason: str) -> None:
        for t in tree_leaves(tree):
            if isinstance(t, Tensor):
                for v in self.mode.vectors(t):
                    self.mode.space.freeze(v, reason, self.mode.node)

    def _channels(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.mode.channels(value)
        return value


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else None
