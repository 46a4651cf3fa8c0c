"""Numbers written into a graph that mean a channel count, and their repair after resizing.

Two kinds. *Positions* (slice bounds, split sizes, ``num_groups``, the scale of attention) follow
from the channel vectors of a node's inputs and are always recomputed. *Sizes* (of reshape, expand,
zeros ...) follow from the shape predicted for the node's result; a size that the graph computes
from a shape is kept symbolic as long as it still yields the predicted number.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lwdna.channels import Vector
from lwdna.copies import Resizing
from lwdna.errors import ResizeError
from lwdna.graph import ChannelGraph
from lwdna.tensor_channels import TensorChannels
from lwdna.trees import tree_leaves, tree_map_only


@dataclass
class Repair:
    """What a repair sees of one node.

    Attributes:
        node: the node, in the new graph; repairs rewrite its arguments.
        graph: the channel graph of the original network.
        resizing: what becomes of channel vectors.
        values: what each node of the new graph has returned so far (meta tensors, numbers).
    """

    node: Node
    graph: ChannelGraph
    resizing: Resizing
    values: Mapping[Node, Any]

    def length(self, vector: Vector, size: int) -> int:
        """New length of a dimension."""
        return size if vector is None else self.resizing.length(vector)

    def shape(self, channels: TensorChannels) -> tuple[int, ...]:
        """New shape of a tensor."""
        return tuple(
            self.length(v, n) for v, n in zip(channels.vectors, channels.shape, strict=True)
        )

    @property
    def old(self) -> Any:
        """What the node returned in the original network, as :class:`TensorChannels`.

        None for a number that an earlier repair put into the graph.
        """
        return self.graph.values.get(self.node.name)

    def old_value(self, argument: Any) -> Any:
        """What an argument was in the original network.

        Tensors are looked up in the channel graph; numbers are computed from their shapes, so
        that they are right for a restricted graph too.
        """
        if not isinstance(argument, Node):
            return argument
        if argument.name not in self.graph.values:
            return self.new_value(argument)  # made by a repair
        value = self.graph.values[argument.name]
        if holds_tensors(value) or not argument.all_input_nodes:
            return value
        given: Any = (argument.args, argument.kwargs)
        args, kwargs = torch.fx.node.map_arg(given, self.old_value)
        args, kwargs = tree_map_only(TensorChannels, TensorChannels.empty, (args, kwargs))
        if argument.op == "call_method":
            return getattr(args[0], str(argument.target))(*args[1:], **kwargs)
        return argument.target(*args, **kwargs)  # type: ignore[operator]

    def new_value(self, argument: Any) -> Any:
        """What an argument is in the new network."""
        return self.values[argument] if isinstance(argument, Node) else argument

    def fact(self, key: str) -> int | None:
        """New value of an operator quantity, if the analysis tied it to channels."""
        vector = self.graph.facts.get(self.node.name, {}).get(key)
        return None if vector is None else self.resizing.length(vector)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        if len(self.node.args) > position:
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    def set_argument(self, position: int, name: str, value: Any) -> None:
        """Replace an argument where it was given; add it by name otherwise."""
        if len(self.node.args) > position:
            self.node.update_arg(position, value)
        else:
            self.node.update_kwarg(name, value)

    def number(self, argument: Any, wanted: int) -> Any:
        """An argument that yields ``wanted``: itself if it does, else a literal or an expression.

        An expression that follows the batch or the resolution keeps following it: it is scaled by
        the ratio of the wanted to the present value.
        """
        present = self.new_value(argument)
        if present == wanted:
            return argument
        if not isinstance(argument, Node) or not self.dynamic(argument):
            return wanted
        common = math.gcd(wanted, present)
        with self.node.graph.inserting_before(self.node):
            scaled = self.node.graph.call_function(operator.mul, (argument, wanted // common))
            return self.node.graph.call_function(operator.floordiv, (scaled, present // common))

    def dynamic(self, number: Node) -> bool:
        """Whether a number depends on a dimension that is no channel dimension."""
        shaped, index = _measured(number)
        if shaped is not None and isinstance(index, int):
            channels = self.graph.values.get(shaped.name)
            return isinstance(channels, TensorChannels) and channels.vectors[index] is None
        return any(self.dynamic(source) for source in number.all_input_nodes)


def _measured(number: Node) -> tuple[Node | None, Any]:
    """(tensor, dimension) if a number is one entry of a tensor's shape; else (None, None)."""
    if number.op == "call_method" and number.target == "size" and len(number.args) == 2:
        tensor, dim = number.args
        return (tensor, dim) if isinstance(tensor, Node) else (None, None)
    if number.target is operator.getitem and isinstance(number.args[0], Node):
        shape: Any = number.args[0]
        dim = number.args[1]
        whole = shape.op == "call_method" and shape.target == "size" and len(shape.args) == 1
        if whole or (shape.target is getattr and shape.args[1] == "shape"):
            tensor = shape.args[0]
            return (tensor, dim) if isinstance(tensor, Node) else (None, None)
    return None, None


Repairer = Callable[[Repair], None]
_REPAIRS: dict[Any, Repairer] = {}


def repairs(*targets: Any) -> Callable[[Repairer], Repairer]:
    """Register how the literals of a node follow a resizing.

    The function is called as ``f(repair)`` (:class:`Repair`) for each node of these targets, and
    rewrites the node's arguments.

    Args:
        targets: functions that a graph calls (an operator's packet or overload, as the model calls
            it) and tensor methods (by name).

    Raises:
        ValueError: a target has a repair already.
    """

    def register(function: Repairer) -> Repairer:
        for target in targets:
            if target in _REPAIRS:
                raise ValueError(f"{target} already has a repair")
            _REPAIRS[target] = function
        return function

    return register


def repair(context: Repair) -> None:
    """Bring a node's literals up to date (nodes without literals are left alone)."""
    if context.node.op in ("call_function", "call_method"):
        function = _REPAIRS.get(context.node.target)
        if holds_tensors(context.old):
            _pin_scalars(context, (int, float) if function is None else (float,))
        if function is not None:
            function(context)


def _pin_scalars(context: Repair, kinds: tuple[type, ...]) -> None:
    """A factor computed from a channel count (1/sqrt(head_dim)) keeps the value it had.

    Removing channels removes terms; it does not rescale those that stay.
    """

    def pinned(argument: Node) -> Any:
        new = context.new_value(argument)
        if isinstance(new, kinds) and not isinstance(new, bool):
            old = context.old_value(argument)
            if new != old and not context.dynamic(argument):
                return old
        return argument

    context.node.args = torch.fx.node.map_arg(context.node.args, pinned)
    context.node.kwargs = torch.fx.node.map_arg(context.node.kwargs, pinned)


def drop_broken_assertion(node: Node, values: Mapping[Node, Any]) -> bool:
    """Remove an assertion about a size that the resizing changed; True if it was one."""
    if node.target is not torch._assert:
        return False
    condition = node.args[0]
    holds = values[condition] if isinstance(condition, Node) else condition
    if isinstance(holds, Tensor) or holds:
        return False
    node.graph.erase_node(node)
    return True


def check_shapes(context: Repair, result: Any) -> None:
    """Compare a node's result with its prediction.

    Raises:
        ResizeError: they differ; names the node, both shapes and the remedy.
    """
    if isinstance(result, (tuple, list)) and context.node.op != "output":
        return  # each element that is used is checked where it is taken out
    wanted = [c for c in tree_leaves(context.old) if isinstance(c, TensorChannels)]
    got = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
    shapes = [context.shape(c) for c in wanted], [tuple(t.shape) for t in got]
    if shapes[0] != shapes[1]:
        raise ResizeError(
            f"{context.node.format_node()} returns {shapes[1]} after resizing, {shapes[0]} was "
            "predicted: a literal of this node means a channel count. Register its repair with "
            "lwdna.rules.repairs, or freeze the channels it sees."
        )


def holds_tensors(tree: Any) -> bool:
    """Whether a recorded node value contains a tensor."""
    return any(isinstance(leaf, TensorChannels) for leaf in tree_leaves(tree))
