"""The repairs of literals, per function and tensor method; importing registers them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Node

from lwdna.channels import Vector
from lwdna.fx_passes.literals import Repair, repairs
from lwdna.tensor_channels import TensorChannels


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
                entries = [
                    node.graph.call_function(operator.getitem, (given, d))
                    for d in range(len(wanted))
                ]
            numbers = [
                e if shape[d] == n else n
                for d, (e, n) in enumerate(zip(entries, wanted, strict=True))
            ]
            for e in entries:
                if e not in numbers:
                    node.graph.erase_node(e)
            context.set_argument(position, name, tuple(numbers))


def _size(context: Repair, argument: Any, wanted: int) -> Any:
    return argument if context.new_value(argument) == -1 else context.number(argument, wanted)


@repairs("view", "reshape", "expand", "broadcast_to", torch.reshape, torch.broadcast_to)
def _view(context: Repair) -> None:
    if isinstance(context.argument(1, "dtype"), torch.dtype):
        return
    name = "shape" if context.node.target in ("reshape", torch.reshape) else "size"
    _sizes(context, 1, name, context.shape(context.old))


@repairs("unflatten", torch.unflatten)
def _unflatten(context: Repair) -> None:
    sizes = context.argument(2, "sizes")
    rank = len(context.old.shape) - len(sizes) + 1
    start = context.argument(1, "dim") % rank
    _sizes(context, 2, "sizes", context.shape(context.old)[start : start + len(sizes)])


_REPEATS = {"repeat": "repeats", "tile": "dims", torch.tile: "dims"}


@repairs(*_REPEATS)
def _repeat(context: Repair) -> None:
    """Only a repeated single entry (which fits any size) has a repeat count that may change."""
    source = context.old_value(context.node.args[0])
    shape = context.shape(context.old)
    lead = len(shape) - len(source.shape)
    inner = (1,) * lead + context.shape(source)
    counts = [n // size for n, size in zip(shape, inner, strict=True)]
    given = context.new_value(context.argument(1, _REPEATS[context.node.target]))
    if isinstance(given, int):  # each count an argument of its own
        given = context.node.args[1:]
    # A tile may leave leading counts out, which are 1.
    _sizes(context, 1, _REPEATS[context.node.target], counts[-len(given) :] if given else [])


@repairs("as_strided", torch.as_strided)
def _as_strided(context: Repair) -> None:
    """A view whose channels may change is contiguous: strides follow from the sizes."""
    wanted = context.shape(context.old)
    if wanted != context.old.shape:
        strides = [prod(wanted[d + 1 :]) for d in range(len(wanted))]
        for position, name, numbers in ((1, "size", wanted), (2, "stride", strides)):
            given = context.argument(position, name)
            pairs = zip(given, numbers, strict=True)
            context.set_argument(position, name, tuple(context.number(a, n) for a, n in pairs))


@repairs(F.channel_shuffle, torch.native_channel_shuffle)
def _channel_shuffle(context: Repair) -> None:
    _groups(context, 1, "groups")


@repairs("repeat_interleave", torch.repeat_interleave)
def _repeat_interleave(context: Repair) -> None:
    """How often each entry is repeated, where that may change beside the entries themselves."""
    repeats, dim = context.argument(1, "repeats"), context.argument(2, "dim")
    if dim is None or not isinstance(context.old_value(repeats), int):
        return
    source = context.shape(context.old_value(context.node.args[0]))
    wanted = context.shape(context.old)[dim] // source[dim]
    context.set_argument(1, "repeats", context.number(repeats, wanted))


@repairs(torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn, torch.full)
def _factory(context: Repair) -> None:
    _sizes(context, 0, "size", context.shape(context.old))


@repairs("new_zeros", "new_ones", "new_empty", "new_full")
def _new_factory(context: Repair) -> None:
    _sizes(context, 1, "size", context.shape(context.old))


@repairs(
    "split",
    torch.split,
    "chunk",
    torch.chunk,
    "tensor_split",
    torch.tensor_split,
    "split_with_sizes",
    torch.split_with_sizes,
    torch.unsafe_split,
    torch.unsafe_chunk,
    torch.unsafe_split_with_sizes,
)
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

    # A stride counts from its start, whatever comes before: only its stop is a count of entries.
    start = bound(bounds.start) if bounds.step in (None, 1) else bounds.start
    return slice(start, bound(bounds.stop), bounds.step)


_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d)


_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@repairs(*dict.fromkeys((*_CONVOLUTIONS, *_TRANSPOSED)))
def _conv(context: Repair) -> None:
    _groups(context, 6, "groups")


def _groups(context: Repair, position: int, key: str) -> None:
    wanted = context.fact(key)
    if wanted is not None:
        context.set_argument(
            position, key, context.number(context.argument(position, key, 1), wanted)
        )


@repairs(F.group_norm, torch.group_norm)
def _group_norm(context: Repair) -> None:
    _groups(context, 1, "num_groups")


@repairs(F.layer_norm, torch.layer_norm, F.rms_norm)
def _layer_norm(context: Repair) -> None:
    given = context.argument(1, "normalized_shape")
    _sizes(
        context, 1, "normalized_shape", context.shape(context.old)[-len(context.new_value(given)) :]
    )


@repairs(F.scaled_dot_product_attention)
def _attention(context: Repair) -> None:
    """The implicit scale 1/sqrt(E) is written out once E changes: it keeps its value."""
    query = context.old_value(context.argument(0, "query"))
    if context.argument(6, "scale") is None and context.shape(query)[-1] != query.shape[-1]:
        context.node.update_kwarg("scale", query.shape[-1] ** -0.5)
