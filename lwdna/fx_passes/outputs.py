"""The outputs of a network: which of their dimensions may change, and how many channels they have.

An output's *channel dimension* is the one dimension, batch aside, along which channels lie that
could change. It is found from the channel vectors, so (B, C, H, W) maps, (B, H, W, C) maps and
(B, N, C) tokens need no telling apart. Where channels lie along several dimensions, it is
dimension 1 of an output of four or more, and undecided for one of three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from glob import escape
from typing import Any, Literal

from torch.utils._pytree import tree_flatten_with_path, tree_map_only

from lwdna.channels import ChannelSpace, Vector, Vectors
from lwdna.graph import ChannelGraph
from lwdna.tensor_channels import TensorChannels

Choice = Literal["fixed", "free"]
Outputs = Choice | Mapping[str, Choice]

#: The reason for which ``explain`` names outputs.
REASON = "network output"
_MAP_DIMS = 3  # what has fewer dimensions are class scores or embeddings
_LONE = "output"  # the output node; and the name of an output that is in no list or dict


def named_outputs(value: Any) -> Iterator[tuple[str, TensorChannels]]:
    """(name, shape and vectors) of each output tensor: ``"0"``, ``"layer4"``, ``"maps.0"``."""
    leaves, _ = tree_flatten_with_path(value)
    for path, leaf in leaves:
        if isinstance(leaf, TensorChannels):
            name = ".".join(_key(key) for key in path)
            yield name or _LONE, leaf


def _key(entry: Any) -> str:
    """A step of a pytree's path: of a mapping, a sequence, or an object with attributes."""
    found = (getattr(entry, name, None) for name in ("key", "idx", "name"))
    return str(next((value for value in found if value is not None), entry))


def check_outputs(outputs: Outputs) -> None:
    """Raise ``ValueError`` unless ``outputs`` is a choice or a mapping from pattern to choice."""
    for choice in outputs.values() if isinstance(outputs, Mapping) else (outputs,):
        if choice not in ("fixed", "free"):
            raise ValueError(
                f"outputs {choice!r}: 'fixed', 'free', or a mapping from output names to these"
            )


def freeze_outputs(space: ChannelSpace, value: Any, outputs: Outputs) -> None:
    """Freeze every dimension of the outputs, except the channels of those that are free.

    Args:
        space: the ids.
        value: the output's pytree of :class:`TensorChannels`, with raw ids.
        outputs: see :func:`lwdna.analyse`.

    Raises:
        ValueError: a pattern that no output has, or free outputs where there is no feature map.
    """
    named = list(named_outputs(value))
    _check_matches(named, outputs)
    live = {
        name: _channel_dim(t, lambda v: not space.frozen(v).all())  # before any is frozen
        for name, t in named
        if _choice(outputs, name) == "free"
    }
    for name, t in named:
        for d, vector in enumerate(t.vectors):
            if d != live.get(name):
                space.freeze(vector, REASON, _LONE)


def _check_matches(named: list[tuple[str, TensorChannels]], outputs: Outputs) -> None:
    shapes = {name: t.shape for name, t in named}
    patterns = outputs if isinstance(outputs, Mapping) else {"*": outputs}
    for pattern, choice in patterns.items():
        matched = [name for name in shapes if fnmatchcase(name, pattern)]
        if not matched and isinstance(outputs, Mapping):
            raise ValueError(f"outputs pattern {pattern!r} matches none of {list(shapes)}")
        if choice == "free" and all(len(shapes[name]) < _MAP_DIMS for name in matched):
            raise ValueError(
                f"outputs {pattern!r}='free', but of the outputs {shapes} it is to free, none is a "
                "feature map or token sequence: class scores and embeddings stay 'fixed'"
            )


def _choice(outputs: Outputs, name: str) -> Choice:
    if not isinstance(outputs, Mapping):
        return outputs
    return next((c for pattern, c in outputs.items() if fnmatchcase(name, pattern)), "fixed")


def _channel_dim(t: TensorChannels, live: Callable[[Any], bool]) -> int | None:
    if len(t.shape) < _MAP_DIMS:
        return None
    dims = [d for d, v in enumerate(t.vectors) if d and v is not None and live(v)]
    if len(dims) > 1 and len(t.shape) > _MAP_DIMS:
        return 1 if 1 in dims else None
    return dims[0] if len(dims) == 1 else None


def freed(graph: ChannelGraph) -> dict[str, Choice]:
    """The outputs whose channels may change, as a choice that frees them again.

    Args:
        graph: a channel graph, possibly a restricted one.
    """
    return {
        escape(name): "free"
        for name, t in named_outputs(graph.values["output"])
        if any(_prunable(graph, v) for v in t.vectors)
    }


def _prunable(graph: ChannelGraph, vector: Vector) -> bool:
    return vector is not None and bool(graph.changeable[graph.group_of[vector]].any())


def output_channels(graph: ChannelGraph) -> Any:
    """How many channels each output of a network has, in the structure of its outputs.

    After a backbone is shrunk with free outputs, the counts that the model kept for its users
    (timm's ``feature_info``, torchvision's ``out_channels``) are those of the model it was made
    from; these are the new ones.

    Args:
        graph: channel graph of the network as it is: of the shrunk one, either by analysing it or
            by restricting the graph that it was shrunk by.

    Returns:
        What ``forward`` returns, with a number in place of each tensor: the size of its channel
        dimension (of dimension 1 for class scores), ``None`` where that is undecided.

    >>> output_channels(analyse(net, inputs))  # doctest: +SKIP
    [64, 64, 128, 256, 512]
    """

    def channels(t: TensorChannels) -> int | None:
        dim = channel_dim(graph, t)
        return None if dim is None else t.shape[dim]

    return tree_map_only(TensorChannels, channels, graph.values["output"])


def channel_dim(graph: ChannelGraph, t: TensorChannels) -> int | None:
    """The channel dimension of an activation; None where there is none, or several.

    Args:
        graph: the channel graph.
        t: one of its activations.
    """
    if len(t.shape) == 2:
        return 1
    return _channel_dim(t, lambda v: _could_change(graph, v))


def _could_change(graph: ChannelGraph, vector: Vectors) -> bool:
    """Whether a dimension would be free if it were not an output's."""
    groups = {int(g) for g in graph.group_of[vector]}
    return any(
        graph.changeable[g] or any(reason == REASON for reason, _ in graph.groups[g].reasons)
        for g in groups
    )
