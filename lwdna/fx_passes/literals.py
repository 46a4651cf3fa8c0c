"""Numbers written into a graph that mean a channel count, and their repair after resizing.

Two kinds. *Positions* (slice bounds, split sizes, ``num_groups``, the scale of attention) follow
from the channel vectors of a node's inputs and are always recomputed. *Sizes* (of reshape, expand,
zeros ...) follow from the shape predicted for the node's result; a size that the graph computes
from a shape is kept symbolic as long as it still yields the predicted number.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from lwdna.channels import Vector
from lwdna.errors import ResizeError
from lwdna.graph import ChannelGraph, Copies, TensorChannels


@dataclass
class Repair:
    """What a repair sees of one node.

    Attributes:
        node: the node, in the new graph; repairs rewrite its arguments.
        graph: the channel graph of the original network.
        copies: copies of each unit.
        values: what each node of the new graph has returned so far (meta tensors, numbers).
    """

    node: Node
    graph: ChannelGraph
    copies: Copies
    values: Mapping[Node, Any]

    def length(self, vector: Vector, size: int) -> int:
        """New length of a dimension."""
        return size if vector is None else int(self.copies[vector].sum())

    def shape(self, channels: TensorChannels) -> tuple[int, ...]:
        """New shape of a tensor."""
        return tuple(
            self.length(v, n) for v, n in zip(channels.vectors, channels.shape, strict=True)
        )

    @property
    def old(self) -> Any:
        """What the node returned in the original network, as :class:`TensorChannels`."""
        return self.graph.values[self.node.name]

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
        args, kwargs = torch.fx.node.map_arg((argument.args, argument.kwargs), self.old_value)
        if argument.op == "call_method":
            return tuple(args[0].shape) if len(args) == 1 else args[0].shape[args[1]]
        return argument.target(*args, **kwargs)  # type: ignore[operator]

    def new_value(self, argument: Any) -> Any:
        """What an argument is in the new network."""
        return self.values[argument] if isinstance(argument, Node) else argument

    def fact(self, key: str) -> int | None:
        """New value of an operator quantity, if the analysis tied it to channels."""
        vector = self.graph.facts.get(self.node.name, {}).get(key)
        return None if vector is None else int(self.copies[vector].sum())

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
        if number.target is operator.getitem:
            source, index = number.args
            shaped = _shaped_by(source)
            if shaped is not None and isinstance(index, int):
                channels = self.graph.values.get(shaped.name)
                return isinstance(channels, TensorChannels) and channels.vectors[index] is None
        if number.op == "call_method" and number.target == "size" and len(number.args) == 2:
            channels = self.graph.values.get(number.args[0].name)  # type: ignore[union-attr]
            return isinstance(channels, TensorChannels) and channels.vectors[number.args[1]] is None  # type: ignore[index]
        return any(self.dynamic(source) for source in number.all_input_nodes)


def _shaped_by(source: Any) -> Node | None:
    """The tensor node whose shape ``source`` is."""
    if not isinstance(source, Node):
        return None
    if source.target is getattr and source.args[1] == "shape":
        return source.args[0] if isinstance(source.args[0], Node) else None
    if source.op == "call_method" and source.target == "size" and len(source.args) == 1:
        return source.args[0] if isinstance(source.args[0], Node) else None
    return None


Repairer = Callable[[Repair], None]
_REPAIRS: dict[Any, Repairer] = {}


def repairs(*targets: Any) -> Callable[[Repairer], Repairer]:
    """Register the repair of call_function targets and (as strings) of tensor methods."""

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
        if function is not None:
            function(context)
        elif holds_tensors(context.old):
            _pin_scalars(context)


def _pin_scalars(context: Repair) -> None:
    """A factor computed from a channel count (1/sqrt(head_dim)) keeps the value it had.

    Removing channels removes terms; it does not rescale those that stay.
    """

    def pinned(argument: Node) -> Any:
        new = context.new_value(argument)
        if isinstance(new, (int, float)) and not isinstance(new, bool):
            old = context.old_value(argument)
            if new != old and not context.dynamic(argument):
                return old
        return argument

    context.node.args = torch.fx.node.map_arg(context.node.args, pinned)
    context.node.kwargs = torch.fx.node.map_arg(context.node.kwargs, pinned)


def _sizes(context: Repair, position: int, name: str, wanted: Sequence[int]) -> None:
    """Repair size arguments, given as varargs, a tuple or one symbolic shape."""
    node = context.node
    given = context.argument(position, name)
    if isinstance(given, (tuple, list)):
        new = [_size(context, a, n) for a, n in zip(given, wanted, strict=True)]
        context.set_argument(position, name, tuple(new))
    elif len(node.args) - position > 1 or isinstance(context.new_value(given), int):
        sizes = node.args[position : position + len(wanted)]
        new = [_size(context, a, n) for a, n in zip(sizes, wanted, strict=True)]
        node.args = (*node.args[:position], *new, *node.args[position + len(wanted) :])
    elif isinstance(given, Node):  # a whole shape, as in x.view(y.shape)
        shape = context.new_value(given)
        if tuple(shape) != tuple(wanted):
            with node.graph.inserting_before(node):
                entries = [node.graph.call_function(operator.getitem, (given, d)) for d in range(len(wanted))]
            numbers = [e if shape[d] == n else n for d, (e, n) in enumerate(zip(entries, wanted, strict=True))]
            for e in entries:
                if e not in numbers:
                    node.graph.erase_node(e)
            context.set_argument(position, name, tuple(numbers))


def _size(context: Repair, argument: Any, wanted: int) -> Any:
    return argument if context.new_value(argument) == -1 else context.number(argument, wanted)


@repairs("view", "reshape", "expand", torch.reshape, torch.broadcast_to)
def _view(context: Repair) -> None:
    if isinstance(context.argument(1, "dtype"), torch.dtype):
        return
    name = "size" if context.node.target in ("view", "expand", torch.broadcast_to) else "shape"
    _sizes(context, 1, name, context.shape(context.old))


@repairs("unflatten", torch.unflatten)
def _unflatten(context: Repair) -> None:
    sizes = context.argument(2, "sizes")
    rank = len(context.old.shape) - len(sizes) + 1
    start = context.argument(1, "dim") % rank
    _sizes(context, 2, "sizes", context.shape(context.old)[start : start + len(sizes)])


@repairs("repeat", torch.tile)
def _repeat(context: Repair) -> None:
    """Only a repeated single entry (which fits any size) has a repeat count that may change."""
    source = context.old_value(context.node.args[0])
    shape = context.shape(context.old)
    lead = len(shape) - len(source.shape)
    inner = (1,) * lead + context.shape(source)
    _sizes(context, 1, "repeats", [n // size for n, size in zip(shape, inner, strict=True)])


@repairs(torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn, torch.full)
def _factory(context: Repair) -> None:
    _sizes(context, 0, "size", context.shape(context.old))


@repairs("new_zeros", "new_ones", "new_empty", "new_full")
def _new_factory(context: Repair) -> None:
    _sizes(context, 1, "size", context.shape(context.old))


@repairs("split", torch.split, "chunk", torch.chunk, "tensor_split", torch.tensor_split, "split_with_sizes", torch.split_with_sizes)
def _split(context: Repair) -> None:
    """Parts that are no longer what the literal says become explicit split sizes."""
    node = context.node
    dim = context.argument(2, "dim", 0)
    parts = [context.shape(part)[dim] for part in context.old]
    fixed = all(part.vectors[dim] is None for part in context.old)
    if fixed or parts == [part.shape[dim] for part in context.old]:
        return
    source = node.args[0]
    name = "split_size" if node.op == "call_method" else "split_size_or_sections"
    if node.op == "call_method":
        node.target = "split"
    else:
        node.target = torch.split
    node.args, node.kwargs = (source,), {name: parts, "dim": dim}


@repairs("narrow", torch.narrow)
def _narrow(context: Repair) -> None:
    dim, start = context.argument(1, "dim"), context.argument(2, "start")
    source = context.old_value(context.node.args[0])
    vector = source.vectors[dim]
    if vector is not None:
        before = vector[: context.old_value(start)]
        context.set_argument(2, "start", context.number(start, context.length(before, 0)))
        wanted = context.shape(context.old)[dim]
        context.set_argument(3, "length", context.number(context.argument(3, "length"), wanted))


@repairs(operator.getitem, operator.setitem)
def _getitem(context: Repair) -> None:
    """Slice bounds on channel dimensions count the entries before them."""
    source = context.old_value(context.node.args[0])
    if not isinstance(source, TensorChannels):
        return
    index = context.node.args[1]
    entries = list(index) if isinstance(index, (tuple, list)) else [index]
    used = sum(e is not None and e is not Ellipsis for e in entries)
    new, dim = [], 0
    for entry in entries:
        if entry is Ellipsis:
            dim += len(source.shape) - used
        elif entry is not None:
            if isinstance(entry, slice) and dim < len(source.shape):
                entry = _slice(context, entry, source.vectors[dim])
            dim += 1
        new.append(entry)
    context.node.update_arg(1, tuple(new) if isinstance(index, (tuple, list)) else new[0])


def _slice(context: Repair, bounds: slice, vector: Vector) -> slice:
    if vector is None:
        return bounds

    def bound(argument: Any) -> Any:
        position = context.old_value(argument)
        if position is None:
            return None
        if position >= 0:
            return context.number(argument, context.length(vector[:position], 0))
        after = context.length(vector[position:], 0)
        return context.number(argument, -after)

    return slice(bound(bounds.start), bound(bounds.stop), bounds.step)


_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@repairs(*dict.fromkeys(_CONVOLUTIONS))
def _conv(context: Repair) -> None:
    _groups(context, 6, "groups")


@repairs(*dict.fromkeys(_TRANSPOSED))
def _conv_transpose(context: Repair) -> None:
    _groups(context, 6, "groups")


def _groups(context: Repair, position: int, key: str) -> None:
    wanted = context.fact(key)
    if wanted is not None:
        context.set_argument(position, key, context.number(context.argument(position, key, 1), wanted))


@repairs(F.group_norm, torch.group_norm)
def _group_norm(context: Repair) -> None:
    _groups(context, 1, "num_groups")


@repairs(F.layer_norm, torch.layer_norm, F.rms_norm)
def _layer_norm(context: Repair) -> None:
    given = context.argument(1, "normalized_shape")
    _sizes(context, 1, "normalized_shape", context.shape(context.old)[-len(context.new_value(given)) :])


@repairs(F.scaled_dot_product_attention)
def _attention(context: Repair) -> None:
    """The implicit scale 1/sqrt(E) is written out once E changes: it keeps its value."""
    query = context.old_value(context.argument(0, "query"))
    if context.argument(6, "scale") is None and context.shape(query)[-1] != query.shape[-1]:
        context.node.update_kwarg("scale", query.shape[-1] ** -0.5)


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
            "lwdna.fx_passes.literals.repairs, or freeze the channels it sees."
        )


def holds_tensors(tree: Any) -> bool:
    """Whether a recorded node value contains a tensor."""
    return any(isinstance(leaf, TensorChannels) for leaf in tree_leaves(tree))
